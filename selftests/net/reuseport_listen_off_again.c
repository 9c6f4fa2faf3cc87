// SPDX-License-Identifier: GPL-2.0
/*
 * Listeners that are shut down and listen again do not hide others.
 *
 * They leave their hash bucket and come back to it, while a lookup may be
 * positioned at one of them.  The more CPUs of a virtual machine share a real
 * one, the more often a lookup is held up for long enough.
 *
 * beside_other_devices needs no option: REUSEPORT_ENABLE=true runs it on any
 * kernel, where the others are skipped.
 */
#include "reuseport_listen_off_tun.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"

#define NR_MOVERS	200
#define RUN_MS		2000

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(again)
{
	int tun;
	int port;
	int listener;
	int movers[NR_MOVERS];
	long *moves;	/* shared with the child that moves them */
};

FIXTURE_VARIANT(again)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(again, ipv4) { .path = &paths[IPV4] };
FIXTURE_VARIANT_ADD(again, ipv6) { .path = &paths[IPV6] };
FIXTURE_VARIANT_ADD(again, ipv4_on_ipv6) { .path = &paths[IPV4_ON_IPV6] };

FIXTURE_SETUP(again)
{
	int i;

	ASSERT_EQ(0, enter_netns());
	self->tun = open_tun();
	if (self->tun == -ENOENT || self->tun == -ENODEV)
		SKIP(return, "no TUN");
	ASSERT_LE(0, self->tun);
	self->moves = mmap(NULL, sizeof(*self->moves), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->moves);
	self->listener = open_member(variant->path->any, SOCK_STREAM, 0);
	ASSERT_LE(0, self->listener);
	self->port = local_port(self->listener);
	for (i = 0; i < NR_MOVERS; i++)
		self->movers[i] = -1;
}

FIXTURE_TEARDOWN(again)
{
	int i;

	for (i = 0; i < NR_MOVERS; i++)
		close(self->movers[i]);
	close(self->listener);
	close(self->tun);
	munmap(self->moves, sizeof(*self->moves));
}

/* One after the other, until it is killed. */
static pid_t move_all(const int *movers, long *moves, int listener)
{
	pid_t parent = getpid(), pid = fork();
	int i;

	if (pid)
		return pid;
	close(listener);	/* else it stays in front of them */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; getppid() == parent; i = (i + 1) % NR_MOVERS) {
		if (shutdown(movers[i], SHUT_RD) || listen(movers[i], 16))
			_exit(1);
		__atomic_add_fetch(moves, 1, __ATOMIC_RELAXED);
	}
	_exit(2);
}

/* Connect for a while; the listener is replaced all the time, so that it is
 * behind those that move.  How many connections were refused, or a negative
 * errno.
 */
static long count_refused(const struct path *path, int port, int *listener,
			  long *connected)
{
	struct linger reset = { .l_onoff = 1 };
	long long end = now_ms() + RUN_MS;
	long refused = 0;
	int fd, i;

	*connected = 0;
	for (i = 0; now_ms() < end; i++) {
		fd = dial(path->dst, SOCK_STREAM, port);
		if (fd >= 0) {
			/* no FIN, no TIME_WAIT: more lookups a second */
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset,
				   sizeof(reset));
			close(fd);
			++*connected;
		} else if (fd == -ECONNREFUSED) {
			refused++;
		} else {
			return fd;
		}
		if (i % 8)
			continue;
		fd = open_member(path->any, SOCK_STREAM, port);
		if (fd < 0)
			return fd;
		close(*listener);
		*listener = fd;
	}
	return refused;
}

#define nobody_is_refused()						\
do {									\
	pid_t __mover = move_all(self->movers, self->moves,		\
				 self->listener);			\
	long __connected;						\
									\
	ASSERT_LT(0, __mover);						\
	/* Then it has closed its copy of the listener, too. */		\
	ASSERT_TRUE(wait_for(__atomic_load_n(self->moves,		\
					     __ATOMIC_RELAXED)));	\
	EXPECT_EQ(0, count_refused(variant->path, self->port,		\
				   &self->listener, &__connected));	\
	ASSERT_EQ(0, waitpid(__mover, NULL, WNOHANG)) {			\
		TH_LOG("they stopped listening again");			\
	}								\
	kill(__mover, SIGKILL);						\
	waitpid(__mover, NULL, 0);					\
	EXPECT_LT(NR_MOVERS, *self->moves);				\
	EXPECT_LT(0, __connected);					\
	TH_LOG("%ld connected, %ld listened again", __connected,	\
	       *self->moves);						\
} while (0)

/* Lookups pass over them on any kernel. */
TEST_F(again, beside_other_devices)
{
	int i, fd;

	for (i = 0; i < NR_MOVERS; i++) {
		fd = new_member(variant->path->any, SOCK_STREAM);
		ASSERT_LE(0, fd);
		self->movers[i] = fd;
		ASSERT_EQ(0, setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE,
					"tun0", 5));
		ASSERT_EQ(0, join(fd, variant->path->any, self->port));
	}
	nobody_is_refused();
}

TEST_F(again, beside_off_members)
{
	int i;

	if (get_mode(self->listener) == -ENOPROTOOPT)
		SKIP(return, "no SO_REUSEPORT_LISTEN_OFF");
	for (i = 0; i < NR_MOVERS; i++) {
		self->movers[i] = open_member_mode(variant->path->any,
						   SOCK_STREAM, self->port,
						   REUSEPORT_LISTEN_OFF);
		ASSERT_LE(0, self->movers[i]);
	}
	nobody_is_refused();
}

TEST_HARNESS_MAIN
