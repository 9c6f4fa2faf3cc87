// SPDX-License-Identifier: GPL-2.0
/*
 * What must not cost more in a large group than in a small one.
 *
 * Two costs are measured in one run and compared, by factors that no noise
 * makes: where something walks over the members, it takes many times as long.
 */
#include "reuseport_listen_off_udp.h"

#include <sys/resource.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define LARGE	4000
#define BATCH	25
#define BATCHES	20
#define ALONE	(BATCH * BATCHES)
#define PARTS	(LARGE / ALONE)
#define ROUNDS	4	/* of cases that cannot take turns by batches */

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* How long @n of @call take, which may say nr for its number. */
#define time_of(n, call)						\
({									\
	long long __start = now_ns();					\
	int __i;							\
									\
	for (__i = 0; __i < (n); __i++, nr++)				\
		ASSERT_EQ(0, call);					\
	now_ns() - __start;						\
})

#define batch_of(call)	time_of(BATCH, call)

/* The shortest of some batches: the machine may have other work to do, but
 * nothing makes a batch shorter.
 */
#define cost_of(call)							\
({									\
	long long __min = -1;						\
	int nr = 0;							\
									\
	while (nr < ALONE)						\
		__min = shorter(__min, batch_of(call));			\
	__min / BATCH;							\
})

/* Of two calls, turn by turn: other work, such as freeing the sockets of the
 * case before, takes from both.
 */
#define costs_of(call, cost, other_call, other_cost)			\
do {									\
	long long __min = -1, __other = -1;				\
	int __batch, nr;						\
									\
	for (__batch = 0; __batch < BATCHES; __batch++) {		\
		nr = BATCH * __batch;					\
		__min = shorter(__min, batch_of(call));			\
		nr = BATCH * __batch;					\
		__other = shorter(__other, batch_of(other_call));	\
	}								\
	cost = __min / BATCH;						\
	other_cost = __other / BATCH;					\
} while (0)

static long long shorter(long long a, long long b)
{
	return a < 0 || b < a ? b : a;
}

FIXTURE(cost)
{
	int port;
	int *member;	/* of one group */
	int *alone;	/* each of a group of its own */
};

FIXTURE_SETUP(cost)
{
	struct rlimit lim = { .rlim_cur = 8192, .rlim_max = 8192 };
	cpu_set_t set;
	int cpu;

	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lim));
	cpu = sched_getcpu();
	ASSERT_LE(0, cpu);
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(set), &set));
	self->member = calloc(LARGE, sizeof(int));
	ASSERT_NE(NULL, self->member);
	self->alone = calloc(ALONE, sizeof(int));
	ASSERT_NE(NULL, self->alone);
}

FIXTURE_TEARDOWN(cost)
{
	free(self->member);
	free(self->alone);
}

static int open_group(const char *ip, int type, int mode, int *member, int n)
{
	int i, port = 0;

	for (i = 0; i < n; i++) {
		member[i] = open_member_mode(ip, type, port, mode);
		if (member[i] < 0)
			return member[i];
		if (!port)
			port = local_port(member[i]);
	}
	return port;
}

static int open_alone(const char *ip, int type, int mode, int *member, int n)
{
	int i, port;

	for (i = 0; i < n; i++) {
		port = open_group(ip, type, mode, &member[i], 1);
		if (port < 0)
			return port;
	}
	return 0;
}

static void close_all(int *fd, int n)
{
	while (n--)
		close(fd[n]);
}

/* From the far end, which is where a walk would come to last. */
#define FAR(i)	(LARGE - 1 - (i))

TEST_F_TIMEOUT(cost, changes_do_not_walk, 180)
{
	long long large, alone;

	ASSERT_LT(0, open_group("127.0.0.1", SOCK_STREAM, ON, self->member,
				LARGE));
	ASSERT_EQ(0, open_alone("127.0.0.1", SOCK_STREAM, ON, self->alone,
				ALONE));

	costs_of(set_mode(self->member[FAR(nr)], OFF), large,
		 set_mode(self->alone[nr], OFF), alone);
	TH_LOG("to OFF: one of %d %lld ns, one of 1 %lld ns", LARGE, large,
	       alone);
	EXPECT_LT(large, 3 * alone);

	costs_of(set_mode(self->member[FAR(nr)], STANDBY), large,
		 set_mode(self->alone[nr], STANDBY), alone);
	TH_LOG("to STANDBY: one of %d %lld ns, one of 1 %lld ns", LARGE, large,
	       alone);
	EXPECT_LT(large, 3 * alone);

	costs_of(set_mode(self->member[FAR(nr)], ON), large,
		 set_mode(self->alone[nr], ON), alone);
	TH_LOG("to ON: one of %d %lld ns, one of 1 %lld ns", LARGE, large,
	       alone);
	EXPECT_LT(large, 3 * alone);
}

/* shutdown() is close() but for what has nothing to do with the group.  Those
 * at the near end were always found at once.
 */
TEST_F_TIMEOUT(cost, closing_does_not_walk, 180)
{
	int mode, modes[] = { ON, OFF };
	long long far, near;
	size_t m;

	for (m = 0; m < ARRAY_SIZE(modes); m++) {
		mode = modes[m];
		ASSERT_LT(0, open_group("127.0.0.1", SOCK_STREAM, mode,
					self->member, LARGE));
		costs_of(shutdown(self->member[FAR(nr)], SHUT_RD), far,
			 shutdown(self->member[nr], SHUT_RD), near);
		TH_LOG("shutdown() of one of %d, %s: far %lld ns, near %lld ns",
		       LARGE, mode == OFF ? "OFF" : "ON", far, near);
		EXPECT_LT(2 * far, 5 * near);
		close_all(self->member, LARGE);
	}
}

struct whole {
	const char *what;
	long long part[PARTS], alone;
};

/* ns for each member of the group; for each that is alone */
static long long each_of(const struct whole *w)
{
	long long sum = 0;
	int i;

	for (i = 0; i < PARTS; i++)
		sum += w->part[i];
	return sum / LARGE;
}

static long long alone_of(const struct whole *w)
{
	return w->alone / ALONE;
}

static bool walks(const struct whole *w)
{
	return 2 * each_of(w) >= 5 * alone_of(w);
}

/* To the last one, for a walk may be short for the first ones: the sum of
 * parts, each as short as in the round that was disturbed least, and as long as
 * what it is compared with.  More rounds end a disturbance, not a walk.
 */
TEST_F_TIMEOUT(cost, all_of_a_group, 300)
{
	struct whole cost[] = {
		{ .what = "to OFF" },
		{ .what = "to ON" },
		{ .what = "shutdown() of OFF ones" },
	};
	size_t k;
	int i;

	for (k = 0; k < ARRAY_SIZE(cost); k++) {
		for (i = 0; i < PARTS; i++)
			cost[k].part[i] = -1;
		cost[k].alone = -1;
	}

#define TAKE(k, call, alone_call)					\
do {									\
	struct whole *__c = &cost[k];					\
	int __part, nr = 0;						\
									\
	for (__part = 0; __part < PARTS; __part++)			\
		__c->part[__part] = shorter(__c->part[__part],		\
					    time_of(ALONE, call));	\
	nr = 0;								\
	__c->alone = shorter(__c->alone, time_of(ALONE, alone_call));	\
} while (0)

	for (i = 0; i < ROUNDS ||
	     (i < 3 * ROUNDS && (walks(&cost[0]) || walks(&cost[1]) ||
				 walks(&cost[2]))); i++) {
		ASSERT_LT(0, open_group("127.0.0.1", SOCK_STREAM, ON,
					self->member, LARGE));
		ASSERT_EQ(0, open_alone("127.0.0.1", SOCK_STREAM, ON,
					self->alone, ALONE));
		TAKE(0, set_mode(self->member[nr], OFF),
		     set_mode(self->alone[nr], OFF));
		TAKE(1, set_mode(self->member[nr], ON),
		     set_mode(self->alone[nr], ON));
		TAKE(0, set_mode(self->member[nr], OFF),
		     set_mode(self->alone[nr], OFF));
		TAKE(2, shutdown(self->member[nr], SHUT_RD),
		     shutdown(self->alone[nr], SHUT_RD));
		close_all(self->member, LARGE);
		close_all(self->alone, ALONE);
	}
	for (k = 0; k < ARRAY_SIZE(cost); k++) {
		TH_LOG("%s: each of %d %lld ns, one of 1 %lld ns, %d rounds",
		       cost[k].what, LARGE, each_of(&cost[k]),
		       alone_of(&cost[k]), i);
		EXPECT_FALSE(walks(&cost[k]));
	}
}

static int refused(int fd, const union addr *a, socklen_t len)
{
	if (!connect(fd, &a->sa, len))
		return -EISCONN;
	return errno == ECONNREFUSED ? 0 : -errno;
}

/* A SYN that nobody may get costs what one to a closed port does, and a choice.
 */
TEST_F_TIMEOUT(cost, refusing_does_not_walk, 180)
{
	long long off, closed;
	const struct path *p;
	int i, fd, unused;
	socklen_t len;
	union addr a, b;

	for (i = 0; i < NR_PATHS; i++) {
		p = &paths[i];
		self->port = open_group(p->bind, SOCK_STREAM, OFF, self->member,
					LARGE);
		ASSERT_LT(0, self->port);
		/* Nobody else gets that port. */
		unused = new_member(p->bind, SOCK_STREAM);
		len = make_addr(&a, p->bind, 0);
		ASSERT_EQ(0, bind(unused, &a.sa, len));
		fd = socket(family_of(p->dst), SOCK_STREAM | SOCK_CLOEXEC, 0);
		ASSERT_LE(0, fd);

		make_addr(&a, p->dst, self->port);
		len = make_addr(&b, p->dst, local_port(unused));
		costs_of(refused(fd, &a, len), off, refused(fd, &b, len),
			 closed);
		TH_LOG("refused by %d OFF at %s: %lld ns, by nobody: %lld ns",
		       LARGE, p->bind, off, closed);
		EXPECT_LT(off, 5 * closed);

		close(fd);
		close(unused);
		close_all(self->member, LARGE);
	}
}

/* A datagram goes there and is received by @to: a softirq that is put off is
 * waited for.
 */
static int deliver(int fd, const union addr *a, socklen_t len, int to)
{
	struct pollfd pfd = { .fd = to, .events = POLLIN };
	char buf[16];

	if (sendto(fd, "datagram", 8, 0, &a->sa, len) != 8)
		return -errno;
	if (poll(&pfd, 1, WAIT_MS) != 1)
		return -ETIMEDOUT;
	return recv(to, buf, sizeof(buf), MSG_DONTWAIT) == 8 ? 0 : -errno;
}

/* Which of the @n the datagrams of @fd go to, as long as nothing changes. */
static int receiver(int fd, const union addr *a, socklen_t len, const int *fds,
		    int n)
{
	struct pollfd pfd[n];
	int i;

	if (sendto(fd, "datagram", 8, 0, &a->sa, len) != 8)
		return -errno;
	for (i = 0; i < n; i++)
		pfd[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	if (poll(pfd, n, WAIT_MS) != 1)
		return -ETIMEDOUT;
	for (i = 0; !(pfd[i].revents & POLLIN); i++)
		;
	return receive_all(fds[i]) == 1 ? fds[i] : -EBUSY;
}

/* A member that asks for a CPU makes choices walk, while it may be chosen. */
TEST_F_TIMEOUT(cost, incoming_cpu_of_off_members, 180)
{
	long long none = -1, off = -1, on = -1, back = -1, gone = -1;
	int n = LARGE / 2, fd, *asks, cpu, i;
	socklen_t len;
	union addr a;

#define COST()								\
({									\
	int to = receiver(fd, &a, len, self->member, n + 1);		\
									\
	ASSERT_LE(0, to);						\
	cost_of(deliver(fd, &a, len, to));				\
})
	self->port = open_group("127.0.0.1", SOCK_DGRAM, ON, self->member, n);
	ASSERT_LT(0, self->port);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ASSERT_LE(0, fd);
	len = make_addr(&a, "127.0.0.1", self->port);
	/* Any but ours, for choices to walk to the end. */
	cpu = sched_getcpu() + 1;

	asks = &self->member[n];
	for (i = 0; i < ROUNDS; i++) {
		*asks = new_member("127.0.0.1", SOCK_DGRAM);
		ASSERT_LE(0, *asks);
		ASSERT_EQ(0, set_mode(*asks, OFF));
		ASSERT_EQ(0, join(*asks, "127.0.0.1", self->port));
		none = shorter(none, COST());
		ASSERT_EQ(0, set_int(*asks, SOL_SOCKET, SO_INCOMING_CPU, cpu));
		off = shorter(off, COST());
		ASSERT_EQ(0, set_mode(*asks, ON));
		on = shorter(on, COST());
		ASSERT_EQ(0, set_mode(*asks, OFF));
		back = shorter(back, COST());
		close(*asks);

		/* With a CPU from its birth, as one that leaves has. */
		*asks = new_member("127.0.0.1", SOCK_DGRAM);
		ASSERT_LE(0, *asks);
		ASSERT_EQ(0, set_int(*asks, SOL_SOCKET, SO_INCOMING_CPU, cpu));
		ASSERT_EQ(0, set_mode(*asks, OFF));
		ASSERT_EQ(0, join(*asks, "127.0.0.1", self->port));
		ASSERT_EQ(0, set_int(*asks, SOL_SOCKET, SO_INCOMING_CPU, -1));
		ASSERT_EQ(0, set_int(*asks, SOL_SOCKET, SO_INCOMING_CPU, cpu));
		close(*asks);
		*asks = -1;
		gone = shorter(gone, COST());
	}

	TH_LOG("a datagram to one of %d, nobody asks for a CPU: %lld ns", n,
	       none);
	TH_LOG("an OFF one does: %lld ns, ON: %lld, OFF: %lld, gone: %lld", off,
	       on, back, gone);
	/* That it walks then is what the others can be told from. */
	EXPECT_LT(2 * none, on);
	EXPECT_LT(2 * off, none + on);
	EXPECT_LT(2 * back, none + on);
	EXPECT_LT(2 * gone, none + on);
}

TEST_HARNESS_MAIN
