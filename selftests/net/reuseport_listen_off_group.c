// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF in large groups and with SO_INCOMING_CPU.
 *
 * A group starts with room for 128 members and is copied when it grows; its
 * sections must come out in order, and so must they when members leave.
 */
#include "reuseport_listen_off.h"

#include <linux/filter.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define MANY	1000

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(group)
{
	int port;
	int *member;
};

FIXTURE_VARIANT(group)
{
	const struct path *path;
	int type;
};

FIXTURE_VARIANT_ADD(group, tcp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(group, tcp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(group, tcp_ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(group, udp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_DGRAM,
};

FIXTURE_VARIANT_ADD(group, udp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_DGRAM,
};

FIXTURE_SETUP(group)
{
	struct rlimit lim = { .rlim_cur = 4096, .rlim_max = 4096 };

	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lim));
	self->member = malloc(MANY * sizeof(int));
	ASSERT_NE(NULL, self->member);
	self->member[0] = open_member(variant->path->bind, variant->type, 0);
	ASSERT_LE(0, self->member[0]);
	self->port = local_port(self->member[0]);
}

FIXTURE_TEARDOWN(group)
{
	free(self->member);
}

#define JOIN(mode)							\
	open_member_mode(variant->path->bind, variant->type, self->port, mode)

#define WHO(n)								\
	who_gets(variant->path, variant->type, self->port, self->member, n)

/* How the counts of the group differ from those given; 0 if they do not. */
static int counts_differ(int fd, unsigned int on, unsigned int standby,
			 unsigned int off)
{
	struct reuseport_listen_info info = get_info(fd);

	return (info.group_on != on) + 2 * (info.group_standby != standby) +
	       4 * (info.group_off != off);
}

/* Past 128 and 256, with members of each mode on either side of the step. */
TEST_F(group, growth_keeps_the_sections)
{
	unsigned int nr[3] = { 1 };
	int i, who;

	for (i = 1; i < 300; i++) {
		self->member[i] = JOIN(i % 3);
		ASSERT_LE(0, self->member[i]);
		nr[i % 3]++;
		ASSERT_EQ(0, counts_differ(self->member[i / 2], nr[ON],
					   nr[STANDBY], nr[OFF]));
		if (i % 50 && (i < 125 || i > 130) && (i < 253 || i > 258))
			continue;
		who = WHO(i + 1);
		ASSERT_LE(0, who);
		EXPECT_EQ(ON, get_mode(self->member[who]));
	}
	for (i = 0; i < 300; i++)
		ASSERT_EQ(i % 3, get_mode(self->member[i]));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO(300);
		ASSERT_LE(0, who);
		ASSERT_EQ(ON, get_mode(self->member[who]));
	}
}

TEST_F_TIMEOUT(group, a_thousand_members, 120)
{
	int i, who, on[] = { 0, 127, 128, 500, 999 };

	for (i = 1; i < MANY; i++) {
		self->member[i] = JOIN(ON);
		ASSERT_LE(0, self->member[i]);
	}
	ASSERT_EQ(0, counts_differ(self->member[0], MANY, 0, 0));
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	ASSERT_EQ(0, counts_differ(self->member[0], 0, 0, MANY));
	ASSERT_EQ(-ECONNREFUSED, WHO(MANY));

	/* One ON: it gets everything, wherever it stands. */
	for (i = 0; i < (int)ARRAY_SIZE(on); i++) {
		ASSERT_EQ(0, set_mode(self->member[on[i]], ON));
		EXPECT_EQ(on[i], WHO(MANY));
		ASSERT_EQ(0, set_mode(self->member[on[i]], STANDBY));
		EXPECT_EQ(on[i], WHO(MANY));
		ASSERT_EQ(0, set_mode(self->member[on[i]], OFF));
	}

	/* Members of each section leave. */
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, set_mode(self->member[i], i % 3));
	for (i = 0; i < 990; i++) {
		close(self->member[i]);
		self->member[i] = -1;
		if (i % 99)
			continue;
		who = WHO(MANY);
		ASSERT_LE(0, who);
		ASSERT_EQ(ON, get_mode(self->member[who]));
	}
	EXPECT_EQ(0, counts_differ(self->member[999], 4, 3, 3));
}

/* Closed members stay in the group, apart from all the others, for as long as
 * they have requests: with tcp_migrate_req, always.
 */
TEST_F(group, growth_with_closed_members)
{
	unsigned int nr[3] = { 1 };
	int i, who;

	if (variant->type != SOCK_STREAM)
		return;
	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
	for (i = 1; i < 200; i++) {
		self->member[i] = JOIN(i % 3);
		ASSERT_LE(0, self->member[i]);
		if (i % 5)
			nr[i % 3]++;
		else
			ASSERT_EQ(0, shutdown(self->member[i], SHUT_RD));
		ASSERT_EQ(0, counts_differ(self->member[0], nr[ON],
					   nr[STANDBY], nr[OFF]));
	}
	for (i = 5; i < 200; i += 5) {
		ASSERT_EQ(i % 3, get_mode(self->member[i]));
		ASSERT_EQ(0, listen(self->member[i], 64));
		ASSERT_EQ(i % 3, get_mode(self->member[i]));
		nr[i % 3]++;
		ASSERT_EQ(0, counts_differ(self->member[0], nr[ON],
					   nr[STANDBY], nr[OFF]));
	}
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO(200);
		ASSERT_LE(0, who);
		ASSERT_EQ(ON, get_mode(self->member[who]));
	}
}

/* The member of the CPU a flow comes in on is preferred, if it is not OFF. */
/* Some 250 connections, on one CPU, which a debug kernel makes slow. */
TEST_F_TIMEOUT(group, incoming_cpu, 180)
{
	cpu_set_t set;
	int cpu, i, who;

	cpu = sched_getcpu();
	ASSERT_LE(0, cpu);
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(set), &set));
	for (i = 1; i < 6; i++) {
		self->member[i] = JOIN(ON);
		ASSERT_LE(0, self->member[i]);
	}
	ASSERT_EQ(0, set_int(self->member[3], SOL_SOCKET, SO_INCOMING_CPU,
			     cpu));
	for (i = 0; i < 16; i++)
		EXPECT_EQ(3, WHO(6));

	ASSERT_EQ(0, set_mode(self->member[3], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO(6);
		EXPECT_LE(0, who);
		EXPECT_NE(3, who);
	}

	/* Two of that CPU, one of them STANDBY: not preferred to an ON one. */
	ASSERT_EQ(0, set_int(self->member[4], SOL_SOCKET, SO_INCOMING_CPU,
			     cpu));
	ASSERT_EQ(0, set_mode(self->member[4], STANDBY));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO(6);
		EXPECT_LE(0, who);
		EXPECT_NE(3, who);
		EXPECT_NE(4, who);
	}
	for (i = 0; i < 6; i++)
		if (i != 3)
			ASSERT_EQ(0, set_mode(self->member[i], STANDBY));
	for (i = 0; i < 16; i++)
		EXPECT_EQ(4, WHO(6));

	/* The count of such members survives the changes and the leaving. */
	ASSERT_EQ(0, set_mode(self->member[3], ON));
	for (i = 0; i < 16; i++)
		EXPECT_EQ(3, WHO(6));
	close(self->member[3]);
	self->member[3] = -1;
	for (i = 0; i < 16; i++)
		EXPECT_EQ(4, WHO(6));
	ASSERT_EQ(0, set_int(self->member[4], SOL_SOCKET, SO_INCOMING_CPU,
			     -1));
	ASSERT_EQ(0, set_mode(self->member[4], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO(6);
		EXPECT_LE(0, who);
		EXPECT_NE(4, who);
	}
}

struct joiner {
	const char *ip;
	int fd, type, port, err;
	bool go;
};

static void *join_when_told(void *arg)
{
	struct joiner *j = arg;
	union addr a;
	socklen_t len = make_addr(&a, j->ip, j->port);

	while (!__atomic_load_n(&j->go, __ATOMIC_ACQUIRE))
		;
	if (j->type == SOCK_STREAM)
		j->err = listen(j->fd, 16);
	else
		j->err = bind(j->fd, &a.sa, len);
	return NULL;
}

/* One without a group gets one from a newcomer while its mode is set. */
TEST_F_TIMEOUT(group, joined_meanwhile, 180)
{
	struct joiner j = { .ip = variant->path->bind, .type = variant->type };
	int alone, i, k, len, err;
	pthread_t thread;
	union addr a;

	if (enable_command())
		return;	/* sockets without a group are not in its table */
	for (i = 0; i < 300; i++) {
		alone = open_cleared(j.ip, j.type, ON, false);
		ASSERT_LE(0, alone);
		ASSERT_EQ(0, set_int(alone, SOL_SOCKET, SO_REUSEPORT, 1));
		j.port = local_port(alone);
		j.fd = new_member(j.ip, j.type);
		ASSERT_LE(0, j.fd);
		len = make_addr(&a, j.ip, j.port);
		if (j.type == SOCK_STREAM)
			ASSERT_EQ(0, bind(j.fd, &a.sa, len));
		j.go = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, join_when_told, &j));
		poll(NULL, 0, 1);	/* until it runs */
		__atomic_store_n(&j.go, true, __ATOMIC_RELEASE);
		for (k = i % 60 * 20; k; k--)
			__asm__ volatile ("" ::: "memory");
		err = set_mode(alone, i % 2 ? OFF : STANDBY);
		pthread_join(thread, NULL);
		ASSERT_EQ(0, err);
		ASSERT_EQ(0, j.err);
		ASSERT_EQ(0, counts_differ(alone, 1, !(i % 2), i % 2));
		close(j.fd);
		close(alone);
	}
}

/* How many wait in the queue of @fd when a client has come; or why none has. */
static int queue_client(const struct path *p, int fd)
{
	int client = dial(p->dst, SOCK_STREAM, local_port(fd));

	return client < 0 ? client : wait_queued(fd, 1);
}

/* It leaves its group when it is closed, and listens again outside of one. */
TEST(reuseport_cleared_while_closed)
{
	const struct path *p;
	const char *migrate;
	int fd, i;

	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < 2 * NR_PATHS; i++) {
		p = &paths[i / 2];
		migrate = i % 2 ? "1" : "0";
		ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req",
					migrate));
		fd = open_member_mode(p->bind, SOCK_STREAM, 0, STANDBY);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, shutdown(fd, SHUT_RD));
		ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 0));
		ASSERT_EQ(0, listen(fd, 16));
		EXPECT_EQ(STANDBY, get_mode(fd));
		EXPECT_EQ(1, queue_client(p, fd));
		EXPECT_FALSE(is_drained(fd));
		EXPECT_EQ(1, empty_queue(fd));

		/* Back in a group, it stands by again. */
		ASSERT_EQ(0, shutdown(fd, SHUT_RD));
		ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
		ASSERT_EQ(0, listen(fd, 16));
		EXPECT_EQ(1, get_info(fd).group_standby);
		EXPECT_EQ(1, queue_client(p, fd));
		close(fd);
	}
}

/* The same of an ON one, which is found without its group.  It is bound by
 * listen(), so that it listens again on another port, while its group goes on.
 */
TEST(reuseport_cleared_while_closed_and_on)
{
	const struct path *p;
	int a, b, i, mode;

	if (enable_command())
		return;	/* the base keeps a pointer to what is closed twice */
	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
	for (i = 0; i < 3 * NR_PATHS; i++) {
		p = &paths[i / 3];
		mode = i % 3;
		a = new_member(p->bind, SOCK_STREAM);
		ASSERT_LE(0, a);
		ASSERT_EQ(ON, get_mode(a));
		ASSERT_EQ(0, listen(a, 16));
		b = open_member(p->any, SOCK_STREAM, local_port(a));
		ASSERT_LE(0, b);
		ASSERT_EQ(2, get_info(b).group_on);

		ASSERT_EQ(0, shutdown(a, SHUT_RD));
		ASSERT_EQ(0, set_int(a, SOL_SOCKET, SO_REUSEPORT, 0));
		ASSERT_EQ(0, listen(a, 16));
		EXPECT_NE(local_port(b), local_port(a));
		EXPECT_EQ(1, queue_client(p, a));
		EXPECT_EQ(1, empty_queue(a));

		/* Its mode goes by the group at its new address. */
		ASSERT_EQ(0, set_int(a, SOL_SOCKET, SO_REUSEPORT, 1));
		ASSERT_EQ(0, set_mode(a, mode));
		EXPECT_EQ(mode == OFF ? -ECONNREFUSED : 1, queue_client(p, a));
		close(a);

		/* The group that it has left still serves. */
		EXPECT_EQ(1, get_info(b).group_on);
		EXPECT_EQ(1, queue_client(p, b));
		close(b);
	}
}

/* It keeps SO_REUSEPORT, and listens again where nobody else does: in a new
 * group, and in its old mode.
 */
TEST(listens_again_on_another_port)
{
	const struct path *p;
	int a, b, i, mode;

	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
	for (i = 0; i < 3 * NR_PATHS; i++) {
		p = &paths[i / 3];
		mode = i % 3;
		a = new_member(p->bind, SOCK_STREAM);
		ASSERT_LE(0, a);
		ASSERT_EQ(0, listen(a, 16));
		ASSERT_EQ(0, set_mode(a, mode));
		b = open_member(p->any, SOCK_STREAM, local_port(a));
		ASSERT_LE(0, b);

		ASSERT_EQ(0, shutdown(a, SHUT_RD));
		ASSERT_EQ(0, listen(a, 16));
		EXPECT_NE(local_port(b), local_port(a));
		EXPECT_NE(get_info(b).group_id, get_info(a).group_id);
		EXPECT_EQ(mode, get_mode(a));
		EXPECT_EQ(0, counts_differ(a, mode == ON, mode == STANDBY,
					   mode == OFF));
		EXPECT_EQ(0, counts_differ(b, 1, 0, 0));
		EXPECT_EQ(mode == OFF ? -ECONNREFUSED : 1, queue_client(p, a));
		close(a);
		close(b);
	}
}

#define OPTMEM	"/proc/sys/net/core/optmem_max"

/* A child that cannot be charged for the filter of its listener is freed as a
 * copy of it, and must not take it out of its group.  The limit is global
 * before 6.8, so nothing returns while it is 0.
 */
TEST(child_without_room_for_its_filter)
{
	struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, 0xffffffff);
	struct sock_fprog filter = { .len = 1, .filter = &all };
	int fd[NR_PATHS][2], client[NR_PATHS], on[NR_PATHS];
	int limit = open(OPTMEM, O_RDWR | O_CLOEXEC);
	char old[32] = "";
	int i, j, none;

	ASSERT_EQ(0, enter_netns());
	if (!access(OPTMEM, F_OK)) {
		close(limit);
		limit = open(OPTMEM, O_RDWR | O_CLOEXEC);
	}
	ASSERT_LE(0, limit);
	ASSERT_LT(0, pread(limit, old, sizeof(old) - 1, 0));
	for (i = 0; i < NR_PATHS; i++) {
		for (j = 0; j < 2; j++) {
			fd[i][j] = open_member(paths[i].bind, SOCK_STREAM,
					       j ? local_port(fd[i][0]) : 0);
			ASSERT_LE(0, fd[i][j]);
			ASSERT_EQ(0, setsockopt(fd[i][j], SOL_SOCKET,
						SO_ATTACH_FILTER, &filter,
						sizeof(filter)));
		}
	}

	none = pwrite(limit, "0", 1, 0);
	for (i = 0; i < NR_PATHS; i++) {
		client[i] = dial(paths[i].dst, SOCK_STREAM,
				 local_port(fd[i][0]));
		wait_for(get_info(fd[i][0]).group_on != 2 ||
			 get_info(fd[i][0]).handshakes ||
			 get_info(fd[i][1]).handshakes);
		on[i] = get_info(fd[i][0]).group_on;
	}
	j = pwrite(limit, old, strlen(old), 0);
	ASSERT_EQ(1, none);
	ASSERT_LT(0, j);

	for (i = 0; i < NR_PATHS; i++) {
		EXPECT_LE(0, client[i]);
		ASSERT_EQ(2, on[i]);
		ASSERT_EQ(0, counts_differ(fd[i][1], 2, 0, 0));
		/* The client tries again, and now there is room. */
		EXPECT_EQ(1, write(client[i], "x", 1));
		wait_for(get_info(fd[i][0]).queued + get_info(fd[i][1]).queued);
		EXPECT_EQ(1, get_info(fd[i][0]).queued +
			     get_info(fd[i][1]).queued);
		close(fd[i][0]);
		EXPECT_EQ(0, counts_differ(fd[i][1], 1, 0, 0));
		EXPECT_LE(0, dial(paths[i].dst, SOCK_STREAM,
				  local_port(fd[i][1])));
	}
}

TEST_HARNESS_MAIN
