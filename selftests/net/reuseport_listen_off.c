// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF on TCP listeners.
 *
 * To anything that looks a listener up, an OFF listener is closed; to
 * everything already on its way to it, it is open.
 *
 * A half-open request is held without packet tricks by TCP_DEFER_ACCEPT: the
 * listener ignores the final ACK until data comes with it.
 */
#include "reuseport_listen_off.h"

#include <limits.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(tcp)
{
	int port;
	int a;			/* the first member */
	int clients[NR_CLIENTS];
};

FIXTURE_VARIANT(tcp)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(tcp, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(tcp, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(tcp, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_SETUP(tcp)
{
	int i;

	for (i = 0; i < NR_CLIENTS; i++)
		self->clients[i] = -1;
	ASSERT_EQ(0, enter_netns());
	self->a = open_member(variant->path->bind, SOCK_STREAM, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	ASSERT_LT(0, self->port);
}

FIXTURE_TEARDOWN(tcp)
{
}

/* Another member of the group. */
#define JOIN(mode)							\
	open_member_mode(variant->path->bind, SOCK_STREAM, self->port, mode)

#define DIAL()	dial(variant->path->dst, SOCK_STREAM, self->port)

/* NR_CLIENTS connections, all of which must succeed. */
#define DIAL_ALL()							\
({									\
	int __i;							\
									\
	for (__i = 0; __i < NR_CLIENTS; __i++) {			\
		if (self->clients[__i] >= 0)				\
			close(self->clients[__i]);			\
		self->clients[__i] = DIAL();				\
		ASSERT_LE(0, self->clients[__i]);			\
	}								\
})

TEST_F(tcp, on_members_share)
{
	int b = JOIN(ON), n, m;

	ASSERT_LE(0, b);
	DIAL_ALL();
	EXPECT_TRUE(wait_for(get_info(self->a).queued + get_info(b).queued ==
			     NR_CLIENTS));
	n = empty_queue(self->a);
	m = empty_queue(b);
	EXPECT_LT(0, n);
	EXPECT_LT(0, m);
	EXPECT_EQ(NR_CLIENTS, n + m);
}

TEST_F(tcp, off_member_gets_nothing)
{
	int b = JOIN(ON), c = JOIN(ON), n;

	ASSERT_LE(0, b);
	ASSERT_LE(0, c);
	ASSERT_EQ(0, set_mode(b, OFF));
	DIAL_ALL();
	EXPECT_TRUE(wait_for(get_info(self->a).queued + get_info(c).queued ==
			     NR_CLIENTS));
	EXPECT_EQ(0, get_info(b).queued);
	EXPECT_EQ(0, get_info(b).handshakes);
	EXPECT_EQ(0, empty_queue(b));
	n = empty_queue(self->a);
	EXPECT_LT(0, n);
	EXPECT_LT(n, NR_CLIENTS);
}

TEST_F(tcp, off_then_on_again)
{
	int b = JOIN(OFF);

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	ASSERT_EQ(0, set_mode(b, ON));
	DIAL_ALL();
	EXPECT_EQ(NR_CLIENTS, wait_queued(b, NR_CLIENTS));
	EXPECT_EQ(NR_CLIENTS, empty_queue(b));
	EXPECT_EQ(0, empty_queue(self->a));
}

TEST_F(tcp, accept_queue_survives)
{
	int b, i, child;
	char c;

	for (i = 0; i < 8; i++) {
		self->clients[i] = DIAL();
		ASSERT_LE(0, self->clients[i]);
	}
	EXPECT_EQ(8, wait_queued(self->a, 8));
	b = JOIN(ON);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(8, get_info(self->a).queued);

	/* Not just in the queue: connections that work. */
	for (i = 0; i < 8; i++) {
		child = take(self->a);
		ASSERT_LE(0, child);
		ASSERT_EQ(1, send(child, "x", 1, 0));
		close(child);
	}
	for (i = 0; i < 8; i++) {
		ASSERT_TRUE(wait_for(recv(self->clients[i], &c, 1, 0) == 1));
		EXPECT_EQ('x', c);
	}
	EXPECT_TRUE(wait_for(is_drained(self->a)));
	EXPECT_EQ(0, get_info(b).queued);
}

TEST_F(tcp, half_open_request_completes)
{
	int b, child, client;
	char c;

	ASSERT_EQ(0, set_int(self->a, IPPROTO_TCP, TCP_DEFER_ACCEPT, 30));
	client = DIAL();
	ASSERT_LE(0, client);
	ASSERT_TRUE(wait_for(get_info(self->a).handshakes == 1));
	EXPECT_EQ(0, get_info(self->a).queued);

	b = JOIN(ON);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(1, get_info(self->a).handshakes);

	/* Settled or not, there is a handshake to wait for. */
	EXPECT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_FALSE(is_drained(self->a));
	EXPECT_EQ(-1, accept(self->a, NULL, NULL));
	EXPECT_EQ(EAGAIN, errno);

	ASSERT_EQ(1, send(client, "x", 1, 0));
	child = take(self->a);
	ASSERT_LE(0, child);
	EXPECT_TRUE(wait_for(recv(child, &c, 1, 0) == 1));
	EXPECT_EQ('x', c);
	EXPECT_TRUE(wait_for(is_drained(self->a)));
	EXPECT_EQ(0, get_info(b).handshakes);
	EXPECT_EQ(-1, accept(b, NULL, NULL));
}

TEST_F(tcp, close_after_drain_loses_nothing)
{
	int b = JOIN(ON), i, n = 0;

	ASSERT_LE(0, b);
	DIAL_ALL();
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(wait_for((n += empty_queue(self->a),
			      is_drained(self->a))));
	close(self->a);
	EXPECT_EQ(NR_CLIENTS - n, wait_queued(b, NR_CLIENTS - n));

	/* Nobody was reset: those of A saw an orderly end, those of B none. */
	for (i = 0; i < NR_CLIENTS; i++)
		EXPECT_EQ(0, socket_error(self->clients[i]));
}

TEST_F(tcp, all_off_refuses)
{
	int b = JOIN(ON);

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, set_mode(b, OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	EXPECT_EQ(0, get_info(self->a).group_on);
	EXPECT_EQ(2, get_info(self->a).group_off);
	ASSERT_EQ(0, set_mode(b, ON));
	EXPECT_LE(0, DIAL());
}

TEST_F(tcp, lone_listener_off_refuses)
{
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	ASSERT_EQ(0, set_mode(self->a, ON));
	EXPECT_LE(0, DIAL());
}

/* The group on the specific address is passed over for the wildcard one. */
TEST_F(tcp, all_off_falls_back_to_wildcard)
{
	const struct path *p = variant->path;
	int group[2], wild, port, i;

	wild = open_member(p->any, SOCK_STREAM, 0);
	ASSERT_LE(0, wild);
	port = local_port(wild);
	for (i = 0; i < 2; i++) {
		group[i] = open_member(p->specific, SOCK_STREAM, port);
		ASSERT_LE(0, group[i]);
	}

	ASSERT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(0, get_info(wild).queued);
	ASSERT_EQ(0, set_mode(group[0], OFF));
	ASSERT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(0, get_info(wild).queued);
	ASSERT_EQ(0, set_mode(group[1], OFF));
	ASSERT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(1, wait_queued(wild, 1));
	ASSERT_EQ(0, set_mode(wild, OFF));
	EXPECT_EQ(-ECONNREFUSED, dial(p->dst, SOCK_STREAM, port));
	ASSERT_EQ(0, set_mode(group[0], ON));
	EXPECT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(1, get_info(wild).queued);
}

/* An OFF wildcard group leaves alone what was found before it. */
TEST_F(tcp, wildcard_off_leaves_specific)
{
	const struct path *p = variant->path;
	int wild, specific, port, i;

	wild = open_member_mode(p->any, SOCK_STREAM, 0, OFF);
	ASSERT_LE(0, wild);
	port = local_port(wild);
	EXPECT_EQ(-ECONNREFUSED, dial(p->dst, SOCK_STREAM, port));
	specific = open_member(p->specific, SOCK_STREAM, port);
	ASSERT_LE(0, specific);
	for (i = 0; i < 8; i++)
		ASSERT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(8, wait_queued(specific, 8));
	EXPECT_EQ(0, get_info(wild).queued);
}

TEST_F(tcp, standby_only_without_on)
{
	int s1 = JOIN(STANDBY), s2 = JOIN(STANDBY), b = JOIN(ON), n;

	ASSERT_LE(0, s1);
	ASSERT_LE(0, s2);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));

	DIAL_ALL();
	EXPECT_EQ(NR_CLIENTS, wait_queued(b, NR_CLIENTS));
	EXPECT_EQ(0, get_info(s1).queued + get_info(s2).queued);
	empty_queue(b);

	/* The newcomer dies, nobody has to tell the others. */
	close(b);
	DIAL_ALL();
	EXPECT_TRUE(wait_for(get_info(s1).queued + get_info(s2).queued ==
			     NR_CLIENTS));
	n = empty_queue(s1);
	EXPECT_LT(0, n);
	EXPECT_EQ(NR_CLIENTS - n, empty_queue(s2));
	EXPECT_EQ(0, get_info(self->a).queued);

	/* And back, when the next one is there. */
	b = JOIN(ON);
	ASSERT_LE(0, b);
	DIAL_ALL();
	EXPECT_EQ(NR_CLIENTS, wait_queued(b, NR_CLIENTS));
	EXPECT_EQ(0, get_info(s1).queued + get_info(s2).queued);

	ASSERT_EQ(0, set_mode(b, OFF));
	ASSERT_EQ(0, set_mode(s1, OFF));
	ASSERT_EQ(0, set_mode(s2, OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
}

/* Every change of mode, from every mode. */
TEST_F(tcp, mode_transitions)
{
	struct reuseport_listen_info info;
	int b = JOIN(ON), from, to, c;

	ASSERT_LE(0, b);
	for (from = ON; from <= STANDBY; from++) {
		for (to = ON; to <= STANDBY; to++) {
			ASSERT_EQ(0, set_mode(b, from));
			ASSERT_EQ(0, set_mode(b, to));
			EXPECT_EQ(to, get_mode(b));

			info = get_info(self->a);
			EXPECT_EQ(ON, info.mode);
			EXPECT_EQ(1 + (to == ON), info.group_on);
			EXPECT_EQ(to == STANDBY, info.group_standby);
			EXPECT_EQ(to == OFF, info.group_off);

			/* Leave, so that only B can answer. */
			ASSERT_EQ(0, set_mode(self->a, OFF));
			c = DIAL();
			EXPECT_EQ(to == OFF ? -ECONNREFUSED : 0, c < 0 ? c : 0);
			if (c >= 0) {
				EXPECT_EQ(1, wait_queued(b, 1));
				EXPECT_EQ(1, empty_queue(b));
				close(c);
			}
			ASSERT_EQ(0, set_mode(self->a, ON));
		}
	}
}

TEST_F(tcp, mode_before_bind)
{
	const struct path *p = variant->path;
	int fd = new_member(p->bind, SOCK_STREAM), i;

	ASSERT_LE(0, fd);
	EXPECT_EQ(ON, get_mode(fd));
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(OFF, get_mode(fd));
	EXPECT_EQ(0, get_info(fd).group_off);
	ASSERT_EQ(0, join(fd, p->bind, self->port));
	EXPECT_EQ(OFF, get_mode(fd));
	EXPECT_EQ(1, get_info(fd).group_off);
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(16, wait_queued(self->a, 16));
	EXPECT_EQ(0, get_info(fd).queued);
}

TEST_F(tcp, mode_before_listen)
{
	const struct path *p = variant->path;
	int fd = new_member(p->bind, SOCK_STREAM), i;
	union addr addr;
	socklen_t len;

	ASSERT_LE(0, fd);
	len = make_addr(&addr, p->bind, self->port);
	ASSERT_EQ(0, bind(fd, &addr.sa, len));
	ASSERT_EQ(0, set_mode(fd, STANDBY));
	EXPECT_EQ(0, get_info(self->a).group_standby);
	ASSERT_EQ(0, listen(fd, 64));
	EXPECT_EQ(STANDBY, get_mode(fd));
	EXPECT_EQ(1, get_info(self->a).group_standby);
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(16, wait_queued(self->a, 16));
	EXPECT_EQ(0, get_info(fd).queued);
	close(self->a);
	ASSERT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(fd, 1));
}

TEST_F(tcp, shutdown_and_listen_keep_the_mode)
{
	int b = JOIN(ON), i;

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(b, OFF));
	ASSERT_EQ(0, shutdown(b, SHUT_RD));
	EXPECT_EQ(OFF, get_mode(b));
	EXPECT_EQ(0, get_info(self->a).group_off);
	ASSERT_EQ(0, listen(b, 64));
	EXPECT_EQ(OFF, get_mode(b));
	EXPECT_EQ(1, get_info(self->a).group_off);
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(0, get_info(b).queued);

	/* Set while closed. */
	ASSERT_EQ(0, shutdown(b, SHUT_RD));
	ASSERT_EQ(0, set_mode(b, STANDBY));
	EXPECT_EQ(STANDBY, get_mode(b));
	EXPECT_EQ(0, get_info(self->a).group_standby);
	ASSERT_EQ(0, listen(b, 64));
	EXPECT_EQ(STANDBY, get_mode(b));
	EXPECT_EQ(1, get_info(self->a).group_standby);
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(0, get_info(b).queued);
	close(self->a);
	ASSERT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(b, 1));
}

TEST_F(tcp, listen_again_keeps_the_mode)
{
	int b = JOIN(OFF), i;

	ASSERT_LE(0, b);
	ASSERT_EQ(0, listen(b, 7));
	EXPECT_EQ(OFF, get_mode(b));
	EXPECT_EQ(1, get_info(b).group_off);
	EXPECT_EQ(1, get_info(b).group_on);
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(0, get_info(b).queued);
}

/* A newcomer binds and listens whatever the modes of the others are. */
TEST_F(tcp, newcomer_joins_an_off_group)
{
	int b;

	ASSERT_EQ(0, set_mode(self->a, OFF));
	b = JOIN(ON);
	ASSERT_LE(0, b);
	EXPECT_EQ(ON, get_mode(b));
	EXPECT_EQ(get_info(self->a).group_id, get_info(b).group_id);
	ASSERT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(b, 1));
}

/* And a socket without SO_REUSEPORT still cannot. */
TEST_F(tcp, off_does_not_free_the_port)
{
	union addr addr;
	socklen_t len;
	int fd;

	ASSERT_EQ(0, set_mode(self->a, OFF));
	len = make_addr(&addr, variant->path->bind, self->port);
	fd = socket(addr.sa.sa_family, SOCK_STREAM, 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, bind(fd, &addr.sa, len));
	EXPECT_EQ(EADDRINUSE, errno);
}

TEST_F(tcp, dup_shares_the_mode)
{
	int fd = dup(self->a);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(OFF, get_mode(self->a));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	close(fd);
	EXPECT_EQ(OFF, get_mode(self->a));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
}

/* Run by a child with the listener it got, which finds it OFF and sets it
 * STANDBY; 0 is success.
 */
static int other_process(int fd)
{
	if (fd < 0)
		return 1;
	if (get_mode(fd) != OFF)
		return 2;
	return set_mode(fd, STANDBY) ? 3 : 0;
}

static int wait_exit(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

TEST_F(tcp, fork_shares_the_mode)
{
	pid_t pid;

	ASSERT_EQ(0, set_mode(self->a, OFF));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(other_process(self->a));
	EXPECT_EQ(0, wait_exit(pid));
	EXPECT_EQ(STANDBY, get_mode(self->a));
	EXPECT_LE(0, DIAL());
}

static int send_fd(int sk, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = "";
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(sk, &msg, 0) == 1 ? 0 : -errno;
}

static int receive_fd(int sk)
{
	char control[CMSG_SPACE(sizeof(int))] = "", c;
	struct iovec iov = { .iov_base = &c, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd;

	if (recvmsg(sk, &msg, 0) != 1)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -ENOENT;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

TEST_F(tcp, passed_listener_shares_the_mode)
{
	int sk[2];
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sk));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(self->a);
		_exit(other_process(receive_fd(sk[1])));
	}
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, send_fd(sk[0], self->a));
	EXPECT_EQ(0, wait_exit(pid));
	EXPECT_EQ(STANDBY, get_mode(self->a));

	/* Closed in the other process, it is still the one it was. */
	EXPECT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(self->a, 1));
}

TEST_F(tcp, fetched_listener_shares_the_mode)
{
	int pidfd, fd, target[2], done[2];
	pid_t pid;
	char c;

	/* The child keeps a listener of its own, which we fetch. */
	ASSERT_EQ(0, pipe(target));
	ASSERT_EQ(0, pipe(done));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		fd = JOIN(OFF);
		if (write(target[1], &fd, sizeof(fd)) != sizeof(fd) ||
		    read(done[0], &c, 1) != 1)
			_exit(1);
		_exit(get_mode(fd) == STANDBY ? 0 : 2);
	}
	ASSERT_EQ(sizeof(fd), read(target[0], &fd, sizeof(fd)));
	ASSERT_LE(0, fd);
	pidfd = syscall(__NR_pidfd_open, pid, 0);
	ASSERT_LE(0, pidfd);
	fd = syscall(__NR_pidfd_getfd, pidfd, fd, 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, other_process(fd));
	ASSERT_EQ(1, write(done[1], "x", 1));
	EXPECT_EQ(0, wait_exit(pid));
	EXPECT_EQ(STANDBY, get_mode(fd));
	EXPECT_EQ(1, get_info(self->a).group_standby);
}

TEST_F(tcp, accepted_child_is_on)
{
	struct reuseport_listen_info info;
	int b, child, mode;

	ASSERT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(self->a, 1));
	b = JOIN(OFF);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	child = take(self->a);
	ASSERT_LE(0, child);
	for (mode = ON; mode <= STANDBY; mode++)
		EXPECT_EQ(-EINVAL, set_mode(child, mode));
	info = get_info(child);
	EXPECT_EQ(ON, info.mode);
	EXPECT_EQ(0, info.group_on);
	EXPECT_EQ(0, info.group_standby);
	EXPECT_EQ(0, info.group_off);
	close(child);

	/* Of a STANDBY listener, too. */
	ASSERT_EQ(0, set_mode(self->a, STANDBY));
	ASSERT_LE(0, DIAL());
	child = take(self->a);
	ASSERT_LE(0, child);
	EXPECT_EQ(ON, get_mode(child));
}

/* A child that became a listener by disconnecting is one like any other. */
TEST_F(tcp, disconnected_child_starts_on)
{
	struct sockaddr unspec = { .sa_family = AF_UNSPEC };
	int child;

	ASSERT_EQ(0, set_mode(self->a, STANDBY));
	ASSERT_LE(0, DIAL());
	child = take(self->a);
	ASSERT_LE(0, child);
	ASSERT_EQ(0, connect(child, &unspec, sizeof(unspec)));
	EXPECT_EQ(ON, get_mode(child));
	EXPECT_EQ(0, set_mode(child, OFF));
	EXPECT_EQ(OFF, get_mode(child));
}

TEST_F(tcp, cleared_reuseport_is_still_off)
{
	int b = JOIN(ON), i;

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 0));
	EXPECT_EQ(OFF, get_mode(self->a));
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(16, wait_queued(b, 16));
	EXPECT_EQ(0, get_info(self->a).queued);
	close(b);
	EXPECT_EQ(-ECONNREFUSED, DIAL());
}

TEST_F(tcp, reuseport_cleared_before_listen)
{
	const struct path *p = variant->path;
	int fd, port, i;

	for (i = 0; i < 2; i++) {
		fd = open_cleared(p->bind, SOCK_STREAM, OFF, i);
		ASSERT_LE(0, fd);
		port = local_port(fd);
		EXPECT_EQ(OFF, get_mode(fd));
		ASSERT_EQ(-ECONNREFUSED, dial(p->dst, SOCK_STREAM, port));
		EXPECT_EQ(0, get_info(fd).queued);
		EXPECT_EQ(-EINVAL, set_mode(fd, ON));
		ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
		EXPECT_EQ(-ECONNREFUSED, dial(p->dst, SOCK_STREAM, port));
		ASSERT_EQ(0, set_mode(fd, ON));
		EXPECT_LE(0, dial(p->dst, SOCK_STREAM, port));
		EXPECT_EQ(1, wait_queued(fd, 1));
		close(fd);

		/* Without a group there is nobody to stand by for. */
		fd = open_cleared(p->bind, SOCK_STREAM, STANDBY, i);
		ASSERT_LE(0, fd);
		EXPECT_EQ(STANDBY, get_mode(fd));
		EXPECT_LE(0, dial(p->dst, SOCK_STREAM, local_port(fd)));
		EXPECT_EQ(1, wait_queued(fd, 1));
		EXPECT_FALSE(is_drained(fd));
		close(fd);
	}
}

/* A wildcard listener is found behind it. */
TEST_F(tcp, reuseport_cleared_beside_wildcard)
{
	const struct path *p = variant->path;
	int wild = open_member(p->any, SOCK_STREAM, 0), fd;

	ASSERT_LE(0, wild);
	fd = new_member(p->specific, SOCK_STREAM);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, set_mode(fd, OFF));
	ASSERT_EQ(0, join(fd, p->specific, local_port(wild)));
	ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 0));
	EXPECT_LE(0, dial(p->dst, SOCK_STREAM, local_port(wild)));
	EXPECT_EQ(1, wait_queued(wild, 1));
	EXPECT_EQ(0, get_info(fd).queued);
}

/* A listener can be made one that shares its port, and be switched off. */
TEST_F(tcp, reuseport_set_after_listen)
{
	const struct path *p = variant->path;
	int fd = socket(family_of(p->bind), SOCK_STREAM, 0), port;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, join(fd, p->bind, 0));
	port = local_port(fd);
	EXPECT_LE(0, dial(p->dst, SOCK_STREAM, port));
	ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(OFF, get_mode(fd));
	EXPECT_EQ(-ECONNREFUSED, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(1, wait_queued(fd, 1));
	EXPECT_TRUE(wait_for(is_settled(fd)));
	EXPECT_LE(0, take(fd));
	EXPECT_TRUE(is_drained(fd));
	ASSERT_EQ(0, set_mode(fd, ON));
	EXPECT_LE(0, dial(p->dst, SOCK_STREAM, port));
	EXPECT_EQ(1, wait_queued(fd, 1));
}

TEST_F(tcp, info_counts)
{
	struct reuseport_listen_info info;
	int s = JOIN(STANDBY), o = JOIN(OFF), p = JOIN(OFF), other, c[3], i;

	ASSERT_LE(0, s);
	ASSERT_LE(0, o);
	ASSERT_LE(0, p);
	for (i = 0; i < 3; i++) {
		c[i] = DIAL();
		ASSERT_LE(0, c[i]);
	}
	EXPECT_EQ(3, wait_queued(self->a, 3));

	info = get_info(self->a);
	EXPECT_EQ(ON, info.mode);
	EXPECT_EQ(0, info.handshakes);
	EXPECT_EQ(3, info.queued);
	EXPECT_EQ(1, info.group_on);
	EXPECT_EQ(1, info.group_standby);
	EXPECT_EQ(2, info.group_off);
	EXPECT_EQ(0, info.flags & ~REUSEPORT_LISTEN_F_SETTLED);

	/* Every member tells the same of its group, ... */
	EXPECT_EQ(info.group_id, get_info(s).group_id);
	EXPECT_EQ(info.group_id, get_info(p).group_id);
	EXPECT_EQ(info.group_on, get_info(o).group_on);
	EXPECT_EQ(info.group_standby, get_info(o).group_standby);
	EXPECT_EQ(info.group_off, get_info(o).group_off);
	EXPECT_EQ(STANDBY, get_mode(s));
	EXPECT_EQ(OFF, get_mode(o));

	/* ... and another group is another. */
	other = open_member(variant->path->bind, SOCK_STREAM, 0);
	ASSERT_LE(0, other);
	EXPECT_NE(info.group_id, get_info(other).group_id);
	EXPECT_EQ(0, get_info(other).group_off);

	close(o);
	close(take(self->a));
	info = get_info(self->a);
	EXPECT_EQ(2, info.queued);
	EXPECT_EQ(1, info.group_off);
}

TEST_F(tcp, partial_getsockopt)
{
	struct reuseport_listen_info info;
	unsigned char buf[64];
	socklen_t len, want;
	int i;

	ASSERT_LE(0, JOIN(OFF));
	ASSERT_EQ(0, set_mode(self->a, STANDBY));
	EXPECT_TRUE(wait_for(is_settled(self->a)));
	info = get_info(self->a);
	for (len = 0; len <= sizeof(buf); len++) {
		socklen_t got = len;

		memset(buf, 0xa5, sizeof(buf));
		ASSERT_EQ(0, getsockopt(self->a, SOL_SOCKET,
					SO_REUSEPORT_LISTEN_OFF, buf, &got));
		want = len < sizeof(info) ? len : sizeof(info);
		EXPECT_EQ(want, got);
		EXPECT_EQ(0, memcmp(buf, &info, want));
		for (i = want; i < (int)sizeof(buf); i++)
			ASSERT_EQ(0xa5, buf[i]);
	}
	len = -1;
	EXPECT_EQ(-1, getsockopt(self->a, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF,
				 buf, &len));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(tcp, bad_values)
{
	static const int bad[] = { -1, STANDBY + 1, 4, 255, 256, INT_MAX,
				   INT_MIN };
	int val = OFF, b = JOIN(STANDBY);
	int wide[2] = { OFF, 0 };
	socklen_t len;
	size_t i;

	ASSERT_LE(0, b);
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(-EINVAL, set_mode(b, bad[i]));
	for (len = 0; len < sizeof(int); len++) {
		EXPECT_EQ(-1, setsockopt(b, SOL_SOCKET,
					 SO_REUSEPORT_LISTEN_OFF, &val, len));
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(-1, setsockopt(b, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, NULL,
				 sizeof(val)));
	EXPECT_EQ(EFAULT, errno);
	len = sizeof(val);
	EXPECT_EQ(-1, getsockopt(b, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, NULL,
				 &len));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, getsockopt(b, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &val,
				 NULL));
	EXPECT_EQ(EFAULT, errno);

	/* None of it changed a thing. */
	EXPECT_EQ(STANDBY, get_mode(b));
	EXPECT_EQ(1, get_info(b).group_standby);
	EXPECT_EQ(1, get_info(b).group_on);

	/* More than an int is an int, as for the other options. */
	EXPECT_EQ(0, setsockopt(b, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, wide,
				sizeof(wide)));
	EXPECT_EQ(OFF, get_mode(b));
}

TEST_F(tcp, without_reuseport)
{
	int fd = socket(family_of(variant->path->bind), SOCK_STREAM, 0), mode;

	ASSERT_LE(0, fd);
	for (mode = ON; mode <= STANDBY; mode++)
		EXPECT_EQ(-EINVAL, set_mode(fd, mode));
	EXPECT_EQ(ON, get_mode(fd));
	ASSERT_EQ(0, join(fd, variant->path->bind, 0));
	EXPECT_EQ(-EINVAL, set_mode(fd, OFF));
	EXPECT_EQ(ON, get_mode(fd));
	EXPECT_EQ(0, get_info(fd).group_on);
}

TEST_F(tcp, connected_socket)
{
	const struct path *p = variant->path;
	int fd = new_member(p->dst, SOCK_STREAM), mode;
	union addr addr;
	socklen_t len;

	ASSERT_LE(0, fd);
	EXPECT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(0, set_mode(fd, ON));
	len = make_addr(&addr, p->dst, self->port);
	if (connect(fd, &addr.sa, len))
		ASSERT_EQ(EINPROGRESS, errno);
	ASSERT_LE(0, take(self->a));
	for (mode = ON; mode <= STANDBY; mode++)
		EXPECT_EQ(-EINVAL, set_mode(fd, mode));
	EXPECT_EQ(ON, get_mode(fd));
}

TEST(other_sockets_eopnotsupp)
{
	static const struct {
		int family, type, protocol;
	} other[] = {
		{ AF_UNIX, SOCK_STREAM, 0 },
		{ AF_UNIX, SOCK_DGRAM, 0 },
		{ AF_NETLINK, SOCK_RAW, 0 },
		{ AF_INET, SOCK_RAW, IPPROTO_UDP },
		{ AF_INET6, SOCK_RAW, IPPROTO_TCP },
		{ AF_PACKET, SOCK_RAW, 0 },
	};
	size_t i;
	int fd;

	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < ARRAY_SIZE(other); i++) {
		fd = socket(other[i].family, other[i].type, other[i].protocol);
		if (fd < 0 && errno == EAFNOSUPPORT)
			continue;
		ASSERT_LE(0, fd);
		/* AF_UNIX refuses SO_REUSEPORT itself on newer kernels */
		set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
		EXPECT_EQ(-EOPNOTSUPP, set_mode(fd, ON))
			TH_LOG("socket %zu", i);
		EXPECT_EQ(-EOPNOTSUPP, set_mode(fd, OFF))
			TH_LOG("socket %zu", i);
		EXPECT_EQ(-EOPNOTSUPP, get_mode(fd))
			TH_LOG("socket %zu", i);
		close(fd);
	}
}

TEST_HARNESS_MAIN
