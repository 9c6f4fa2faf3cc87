// SPDX-License-Identifier: GPL-2.0
/*
 * What an operator sees: the number of a group, the counter of packets that
 * found only OFF listeners, and the events of mode changes.
 */
#include "reuseport_listen_off_udp.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

/* ---- the number of a group ---------------------------------------------- */

static unsigned int group_id(int fd)
{
	return get_info(fd).group_id;
}

/* Groups that others have made, or will, do not show. */
TEST(group_id_is_of_the_namespace)
{
	unsigned int first, second;
	int i, fd[8];

	ASSERT_EQ(0, enter_netns());
	fd[0] = open_member("127.0.0.1", SOCK_STREAM, 0);
	ASSERT_LE(0, fd[0]);
	first = group_id(fd[0]);
	EXPECT_NE(0, first);
	for (i = 1; i < 8; i++) {
		fd[i] = open_member("127.0.0.1", SOCK_STREAM, 0);
		ASSERT_LE(0, fd[i]);
	}

	ASSERT_EQ(0, enter_netns());
	fd[1] = open_member("127.0.0.1", SOCK_STREAM, 0);
	ASSERT_LE(0, fd[1]);
	second = group_id(fd[1]);
	EXPECT_EQ(first, second);
	/* The first one's is what it was. */
	EXPECT_EQ(first, group_id(fd[0]));
}

TEST(group_id_tells_groups_apart)
{
	unsigned int id, last = 0;
	int types[] = { SOCK_STREAM, SOCK_DGRAM };
	int i, k, fd, other, port;
	const struct path *p;

	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < NR_PATHS * 2; i++) {
		p = &paths[i / 2];
		fd = open_member(p->bind, types[i % 2], 0);
		ASSERT_LE(0, fd);
		port = local_port(fd);
		id = group_id(fd);
		EXPECT_LT(last, id);
		/* Kept while it grows, and when the first has left. */
		for (k = 0; k < 130; k++) {
			other = open_member(p->bind, types[i % 2], port);
			ASSERT_LE(0, other);
			EXPECT_EQ(id, group_id(other));
		}
		close(fd);
		EXPECT_EQ(id, group_id(other));
		last = id;
	}

	/* Nobody else gets it when the group is gone. */
	fd = open_member("127.0.0.1", SOCK_STREAM, 0);
	ASSERT_LE(0, fd);
	id = group_id(fd);
	EXPECT_LT(last, id);
	close(fd);
	fd = open_member("127.0.0.1", SOCK_STREAM, 0);
	ASSERT_LE(0, fd);
	EXPECT_LT(id, group_id(fd));
}

/* In no group there is none. */
TEST(group_id_without_a_group)
{
	int fd;

	ASSERT_EQ(0, enter_netns());
	fd = new_member("127.0.0.1", SOCK_STREAM);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, group_id(fd));
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(0, group_id(fd));
}

/* ---- packets that found only OFF listeners ------------------------------- */

/* What /proc/net/@file has under @name in the lines of @mib, -1 for nothing. */
static long counter(const char *file, const char *mib, const char *name)
{
	char *names = NULL, *values = NULL, *n, *v, *np, *vp;
	size_t nlen = 0, vlen = 0;
	long ret = -1;
	FILE *f;

	f = fopen(file, "r");
	if (!f)
		return -errno;
	while (getline(&names, &nlen, f) > 0 &&
	       getline(&values, &vlen, f) > 0) {
		n = strtok_r(names, "\n ", &np);
		v = strtok_r(values, "\n ", &vp);
		if (!n || strcmp(n, mib))
			continue;
		while (n && v && strcmp(n, name)) {
			n = strtok_r(NULL, "\n ", &np);
			v = strtok_r(NULL, "\n ", &vp);
		}
		if (n && v)
			ret = atol(v);
	}
	free(names);
	free(values);
	fclose(f);
	return ret;
}

static long off_drops(void)
{
	return counter("/proc/self/net/netstat", "TcpExt:", "ListenOffDrops");
}

FIXTURE(drops)
{
	int port;
	int member[3];
};

FIXTURE_VARIANT(drops)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(drops, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(drops, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(drops, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_SETUP(drops)
{
	int i;

	ASSERT_EQ(0, enter_netns());
	self->port = 0;
	for (i = 0; i < 3; i++) {
		self->member[i] = open_member(variant->path->bind, SOCK_STREAM,
					      self->port);
		ASSERT_LE(0, self->member[i]);
		self->port = local_port(self->member[i]);
	}
}

FIXTURE_TEARDOWN(drops)
{
}

#define DIAL()	dial(variant->path->dst, SOCK_STREAM, self->port)

TEST_F(drops, counted_once_a_packet)
{
	int i, client;

	ASSERT_EQ(0, off_drops());
	ASSERT_EQ(0, set_mode(self->member[0], OFF));
	ASSERT_EQ(0, set_mode(self->member[1], OFF));
	for (i = 0; i < 8; i++) {
		client = DIAL();
		EXPECT_LE(0, client);
		close(client);
	}
	EXPECT_EQ(0, off_drops());

	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(-ECONNREFUSED, DIAL());
	EXPECT_EQ(8, off_drops());

	/* On standby alone it is found, and so is an ON one. */
	ASSERT_EQ(0, set_mode(self->member[2], STANDBY));
	client = DIAL();
	EXPECT_LE(0, client);
	close(client);
	ASSERT_EQ(0, set_mode(self->member[2], ON));
	client = DIAL();
	EXPECT_LE(0, client);
	close(client);
	EXPECT_EQ(8, off_drops());

	/* The last one leaves: it is a closed port, like any other. */
	for (i = 0; i < 3; i++)
		close(self->member[i]);
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	EXPECT_EQ(8, off_drops());

	/* It is of the namespace. */
	ASSERT_EQ(0, enter_netns());
	EXPECT_EQ(0, off_drops());
}

/* Found elsewhere, it is not lost. */
TEST_F(drops, not_where_a_wildcard_takes_over)
{
	int i, wildcard, client;

	if (!strcmp(variant->path->bind, variant->path->any))
		return;
	wildcard = open_member(variant->path->any, SOCK_STREAM, self->port);
	ASSERT_LE(0, wildcard);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	for (i = 0; i < 8; i++) {
		client = DIAL();
		EXPECT_LE(0, client);
		close(client);
	}
	EXPECT_EQ(0, off_drops());

	/* Passed over in both buckets, it is still one packet. */
	ASSERT_EQ(0, set_mode(wildcard, OFF));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(-ECONNREFUSED, DIAL());
	EXPECT_EQ(8, off_drops());
}

/* In no group, as SO_REUSEPORT was cleared. */
TEST_F(drops, of_one_alone)
{
	int fd;

	fd = open_cleared(variant->path->bind, SOCK_STREAM, OFF, true);
	ASSERT_LE(0, fd);
	self->port = local_port(fd);
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	EXPECT_EQ(1, off_drops());
}

/* Of a connection that its old owner has in TIME_WAIT. */
TEST_F(drops, syn_in_time_wait)
{
	socklen_t len, blen = sizeof(union addr);
	int client, taken, again, i = 0;
	union addr a, b;

	client = DIAL();
	ASSERT_LE(0, client);
	ASSERT_TRUE(wait_for((taken = accept(self->member[i++ % 3], NULL,
					     NULL)) >= 0));
	ASSERT_EQ(0, getsockname(client, &b.sa, &blen));
	/* The server closes first and has it in TIME_WAIT. */
	close(taken);
	ASSERT_TRUE(wait_for(recv(client, &i, 1, MSG_DONTWAIT) == 0));
	close(client);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));

	again = socket(family_of(variant->path->dst),
		       SOCK_STREAM | SOCK_CLOEXEC, 0);
	ASSERT_LE(0, again);
	ASSERT_EQ(0, set_int(again, SOL_SOCKET, SO_REUSEADDR, 1));
	/* Not before the server has acknowledged the client's end. */
	ASSERT_TRUE(wait_for(!bind(again, &b.sa, blen)));
	len = make_addr(&a, variant->path->dst, self->port);
	ASSERT_EQ(-1, connect(again, &a.sa, len));
	EXPECT_EQ(ECONNREFUSED, errno);
	/* The SYN is answered by an ACK, for what is in TIME_WAIT. That is
	 * reset, and the SYN sent again, which is refused.
	 */
	EXPECT_EQ(2, off_drops());
}

static long no_ports(int family)
{
	char name[64];
	long value;
	FILE *f;

	if (family == AF_INET)
		return counter("/proc/self/net/snmp", "Udp:", "NoPorts");
	f = fopen("/proc/self/net/snmp6", "r");
	if (!f)
		return -errno;
	while (fscanf(f, "%63s %ld", name, &value) == 2 &&
	       strcmp(name, "Udp6NoPorts"))
		;
	fclose(f);
	return strcmp(name, "Udp6NoPorts") ? -ENOENT : value;
}

/* UDP has a counter of its own for whatever finds no socket. */
TEST_F(drops, udp_has_no_ports)
{
	const char *dst = variant->path->dst;
	int fd;

	fd = open_member_mode(variant->path->bind, SOCK_DGRAM, 0, OFF);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, no_ports(family_of(dst)));
	EXPECT_TRUE(is_refused(dst, local_port(fd)));
	EXPECT_EQ(1, no_ports(family_of(dst)));
	EXPECT_EQ(0, off_drops());
}

/* ---- events of mode changes ---------------------------------------------- */

#define TRACING	"/sys/kernel/tracing"

FIXTURE(events)
{
	char dir[64];	/* an instance of our own */
	int pipe;
	char text[65536];
	const char *next;
};

/* Write to a file of the instance. */
static int tell(const char *dir, const char *file, const char *text)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return write_file(path, text);
}

FIXTURE_SETUP(events)
{
	char text[64], path[160];

	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, unshare(CLONE_NEWNS));
	ASSERT_EQ(0, mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	/* It may be there already. */
	if (mount("tracefs", TRACING, "tracefs", 0, NULL))
		ASSERT_EQ(EBUSY, errno);
	ASSERT_EQ(0, access(TRACING "/events/sock/reuseport_listen_mode",
			    F_OK));
	snprintf(self->dir, sizeof(self->dir),
		 TRACING "/instances/reuseport_listen_off_%d", getpid());
	ASSERT_EQ(0, mkdir(self->dir, 0700));
	snprintf(text, sizeof(text), "common_pid == %d", getpid());
	ASSERT_EQ(0, tell(self->dir, "events/sock/reuseport_listen_mode/filter",
			  text));
	ASSERT_EQ(0, tell(self->dir, "events/sock/reuseport_listen_mode/enable",
			  "1"));
	snprintf(path, sizeof(path), "%s/trace_pipe", self->dir);
	self->pipe = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->pipe);
}

FIXTURE_TEARDOWN(events)
{
	close(self->pipe);
	tell(self->dir, "events/sock/reuseport_listen_mode/enable", "0");
	EXPECT_EQ(0, rmdir(self->dir));
}

static int read_events(int fd, char *text, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size - 1 && (n = read(fd, text + len, size - 1 - len)) > 0)
		len += n;
	text[len] = 0;
	return len < size - 1 ? 0 : -ENOSPC;
}

/* The event that comes next is of this process, and says @what. */
static bool comes(const char **next, const char *what)
{
	const char *line = *next, *end = strchr(line, '\n'), *says;
	char pid[16];
	bool ret;

	if (!end)
		return false;
	says = strstr(line, " reuseport_listen_mode: ");
	snprintf(pid, sizeof(pid), "-%d ", getpid());
	ret = says && says < end && strstr(line, pid) &&
	      strstr(line, pid) < says;
	if (ret) {
		says += strlen(" reuseport_listen_mode: ");
		ret = strlen(what) == (size_t)(end - says) &&
		      !strncmp(says, what, end - says);
	}
	if (!ret)
		ksft_print_msg("wanted: %s, got: %.*s\n", what,
			       (int)(end - line), line);
	*next = end + 1;
	return ret;
}

#define EVENT(...)							\
do {									\
	char __what[512];						\
									\
	snprintf(__what, sizeof(__what), __VA_ARGS__);			\
	EXPECT_TRUE(comes(&self->next, __what));			\
} while (0)

static unsigned long long cookie(int fd)
{
	unsigned long long value = 0;
	socklen_t len = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &value, &len);
	return value;
}

#define AT_IPV4	"saddr=127.0.0.1 daddr=0.0.0.0 "			\
		"saddrv6=::ffff:127.0.0.1 daddrv6=::ffff:0.0.0.0 "
/* The kernel gives an IPv6 address this one, which nobody has, for IPv4's. */
#define AT_IPV6	"saddr=127.0.0.6 daddr=0.0.0.0 saddrv6=::1 daddrv6=:: "
#define NOWHERE	"saddr=0.0.0.0 daddr=0.0.0.0 "				\
		"saddrv6=::ffff:0.0.0.0 daddrv6=::ffff:0.0.0.0 "

TEST_F(events, one_a_change)
{
	int tcp[2], tcp6, udp, early, port;

	tcp[0] = open_member("127.0.0.1", SOCK_STREAM, 0);
	ASSERT_LE(0, tcp[0]);
	port = local_port(tcp[0]);
	tcp[1] = open_member("127.0.0.1", SOCK_STREAM, port);
	tcp6 = open_member("::1", SOCK_STREAM, 0);
	udp = open_member("127.0.0.1", SOCK_DGRAM, 0);
	early = new_member("127.0.0.1", SOCK_STREAM);
	ASSERT_LE(0, tcp[1]);
	ASSERT_LE(0, tcp6);
	ASSERT_LE(0, udp);
	ASSERT_LE(0, early);

	ASSERT_EQ(0, set_mode(tcp[0], OFF));
	/* None of what changes nothing. */
	ASSERT_EQ(0, set_mode(tcp[0], OFF));
	ASSERT_EQ(-EINVAL, set_mode(tcp[0], 3));
	ASSERT_EQ(0, set_mode(tcp[1], ON));
	ASSERT_EQ(0, set_mode(tcp[1], STANDBY));
	ASSERT_EQ(0, set_mode(tcp[0], ON));
	ASSERT_EQ(0, set_mode(tcp6, STANDBY));
	ASSERT_EQ(0, set_mode(udp, OFF));
	/* In no group, and then closed in one. */
	ASSERT_EQ(0, set_mode(early, OFF));
	ASSERT_EQ(0, join(early, "127.0.0.1", port));
	ASSERT_EQ(0, shutdown(early, SHUT_RD));
	ASSERT_EQ(0, set_mode(early, ON));

	ASSERT_EQ(0, read_events(self->pipe, self->text, sizeof(self->text)));
	self->next = self->text;
	EXPECT_NE(cookie(tcp[0]), cookie(tcp[1]));
	EVENT("family=AF_INET protocol=IPPROTO_TCP sport=%d dport=0 " AT_IPV4
	      "group_id=%u oldmode=ON newmode=OFF sock_cookie=%llx",
	      port, group_id(tcp[0]), cookie(tcp[0]));
	EVENT("family=AF_INET protocol=IPPROTO_TCP sport=%d dport=0 " AT_IPV4
	      "group_id=%u oldmode=ON newmode=STANDBY sock_cookie=%llx",
	      port, group_id(tcp[0]), cookie(tcp[1]));
	EVENT("family=AF_INET protocol=IPPROTO_TCP sport=%d dport=0 " AT_IPV4
	      "group_id=%u oldmode=OFF newmode=ON sock_cookie=%llx",
	      port, group_id(tcp[0]), cookie(tcp[0]));
	EVENT("family=AF_INET6 protocol=IPPROTO_TCP sport=%d dport=0 " AT_IPV6
	      "group_id=%u oldmode=ON newmode=STANDBY sock_cookie=%llx",
	      local_port(tcp6), group_id(tcp6), cookie(tcp6));
	EVENT("family=AF_INET protocol=IPPROTO_UDP sport=%d dport=0 " AT_IPV4
	      "group_id=%u oldmode=ON newmode=OFF sock_cookie=%llx",
	      local_port(udp), group_id(udp), cookie(udp));
	EVENT("family=AF_INET protocol=IPPROTO_TCP sport=0 dport=0 " NOWHERE
	      "group_id=0 oldmode=ON newmode=OFF sock_cookie=%llx",
	      cookie(early));
	/* shutdown() keeps an address that was bound to. */
	EVENT("family=AF_INET protocol=IPPROTO_TCP sport=%d dport=0 " AT_IPV4
	      "group_id=0 oldmode=OFF newmode=ON sock_cookie=%llx",
	      port, cookie(early));
	EXPECT_EQ('\0', *self->next);
}

TEST_HARNESS_MAIN
