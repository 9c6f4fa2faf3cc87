// SPDX-License-Identifier: GPL-2.0
/*
 * When a member of a SO_REUSEPORT group is settled, that is, when no choice
 * can be left from when it got new flows, and what it says of its group.
 *
 * Settled belongs to the socket: what others do does not delay it.
 */
#include "reuseport_listen_off.h"

#include <pthread.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

/* Grace periods take some 10 ms; on a busy or debug kernel ten times that. */
#define SETTLE_MS	3000
/* Members that others flip, each in a thread of its own. */
#define NR_FLIPPERS	4

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(settled)
{
	int port;
	int a;			/* ON */
	int b;			/* ON */
};

FIXTURE_VARIANT(settled)
{
	const struct path *path;
	int type;
};

FIXTURE_VARIANT_ADD(settled, tcp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(settled, tcp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(settled, udp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_DGRAM,
};

FIXTURE_VARIANT_ADD(settled, udp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_DGRAM,
};

#define JOIN(mode)							\
	open_member_mode(variant->path->bind, variant->type, self->port, mode)

FIXTURE_SETUP(settled)
{
	ASSERT_EQ(0, enter_netns());
	self->a = open_member(variant->path->bind, variant->type, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	self->b = JOIN(ON);
	ASSERT_LE(0, self->b);
}

FIXTURE_TEARDOWN(settled)
{
}

/* Whether @change leaves @fd unsettled. A grace period can end between two
 * system calls: once in a few times it must be seen.
 */
#define UNSETTLES(fd, change, undo)					\
({									\
	int __fd = (fd), __i;						\
	bool __seen = false;						\
									\
	for (__i = 0; __i < 20 && !__seen; __i++) {			\
		ASSERT_TRUE(wait_for(is_settled(__fd)));		\
		ASSERT_EQ(0, change);					\
		__seen = !is_settled(__fd);				\
		ASSERT_EQ(0, undo);					\
	}								\
	__seen;								\
})

/* How many milliseconds until @fd is settled; too many, if it was not. */
static int settle_ms(int fd)
{
	long long start = now_ms();

	return wait_for(is_settled(fd)) ? now_ms() - start : 10 * SETTLE_MS;
}

TEST_F(settled, own_changes)
{
	ASSERT_EQ(0, set_mode(self->b, ON));
	EXPECT_TRUE(UNSETTLES(self->b, set_mode(self->b, OFF),
			      set_mode(self->b, ON)));
	EXPECT_TRUE(UNSETTLES(self->b, set_mode(self->b, STANDBY),
			      set_mode(self->b, ON)));
	ASSERT_EQ(0, set_mode(self->b, STANDBY));
	EXPECT_TRUE(UNSETTLES(self->b, set_mode(self->b, OFF),
			      set_mode(self->b, STANDBY)));
	ASSERT_EQ(0, set_mode(self->b, OFF));
	EXPECT_TRUE(UNSETTLES(self->b, set_mode(self->b, STANDBY),
			      set_mode(self->b, OFF)));
	EXPECT_TRUE(wait_for(is_settled(self->b)));
}

/* What was chosen while nobody was ON is under way when somebody is. */
TEST_F(settled, standby_when_one_is_on_again)
{
	ASSERT_EQ(0, set_mode(self->b, STANDBY));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(UNSETTLES(self->b, set_mode(self->a, ON),
			      set_mode(self->a, OFF)));
	EXPECT_FALSE(is_drained(self->b));
	ASSERT_EQ(0, set_mode(self->a, ON));
	EXPECT_TRUE(wait_for(is_drained(self->b)));
}

TEST_F(settled, standby_when_one_joins)
{
	bool seen = false;
	int c, i;

	ASSERT_EQ(0, set_mode(self->b, STANDBY));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	for (i = 0; i < 20 && !seen; i++) {
		ASSERT_TRUE(wait_for(is_settled(self->b)));
		c = JOIN(ON);
		ASSERT_LE(0, c);
		seen = !is_settled(self->b);
		close(c);
	}
	EXPECT_TRUE(seen);
}

/* A lookup may hold it, from before it was closed. */
TEST_F(settled, closed_and_listening_again)
{
	bool seen = false;
	int i;

	if (variant->type != SOCK_STREAM)
		return;
	ASSERT_EQ(0, set_mode(self->b, OFF));
	for (i = 0; i < 20 && !seen; i++) {
		ASSERT_TRUE(wait_for(is_settled(self->b)));
		ASSERT_EQ(0, shutdown(self->b, SHUT_RD));
		ASSERT_EQ(0, listen(self->b, 16));
		seen = !is_settled(self->b);
	}
	EXPECT_TRUE(seen);
	EXPECT_TRUE(wait_for(is_settled(self->b)));
}

TEST_F(settled, changed_while_closed)
{
	bool seen = false;
	int i;

	if (variant->type != SOCK_STREAM)
		return;
	for (i = 0; i < 20 && !seen; i++) {
		ASSERT_EQ(0, shutdown(self->b, SHUT_RD));
		ASSERT_EQ(0, set_mode(self->b, OFF));
		seen = !is_settled(self->b);
		EXPECT_TRUE(wait_for(is_settled(self->b)));
		ASSERT_EQ(0, set_mode(self->b, ON));
		ASSERT_EQ(0, listen(self->b, 16));
	}
	EXPECT_TRUE(seen);
}

/* Nothing changed, so there is nothing to wait for. */
TEST_F(settled, same_mode_again)
{
	int i;

	ASSERT_EQ(0, set_mode(self->b, OFF));
	ASSERT_TRUE(wait_for(is_settled(self->b)));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, set_mode(self->b, OFF));
		ASSERT_TRUE(is_settled(self->b));
	}
}

/* Once settled, an OFF member stays so, whatever others do. */
TEST_F(settled, changes_of_others)
{
	int i, c, n = 0;

	ASSERT_EQ(0, set_mode(self->b, OFF));
	ASSERT_TRUE(wait_for(is_settled(self->b)));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, set_mode(self->a, i % 3));
		n += !is_settled(self->b);
		c = JOIN((i + 1) % 3);
		ASSERT_LE(0, c);
		n += !is_settled(self->b);
		close(c);
		n += !is_settled(self->b);
	}
	EXPECT_EQ(0, n);
}

/* ... and a STANDBY one, as long as somebody is ON. */
TEST_F(settled, changes_of_others_beside_one_that_is_on)
{
	int i, c, n = 0;

	ASSERT_EQ(0, set_mode(self->b, STANDBY));
	ASSERT_TRUE(wait_for(is_drained(self->b)));
	for (i = 0; i < 100; i++) {
		c = JOIN(i % 3);
		ASSERT_LE(0, c);
		n += !is_drained(self->b);
		ASSERT_EQ(0, set_mode(c, (i + 1) % 3));
		n += !is_drained(self->b);
		close(c);
		n += !is_drained(self->b);
	}
	EXPECT_EQ(0, n);
}

/* ---- members that others flip ----------------------------------------- */

struct flipper {
	pthread_t thread;
	int fd;
	int modes[2];
	int pause_us;
	bool *stop;
	bool ended;
	long flips;
};

static void *flip(void *arg)
{
	struct flipper *f = arg;

	while (!__atomic_load_n(f->stop, __ATOMIC_ACQUIRE)) {
		if (set_mode(f->fd, f->modes[f->flips & 1]))
			break;
		f->flips++;
		if (f->pause_us)
			usleep(f->pause_us);
	}
	__atomic_store_n(&f->ended, true, __ATOMIC_RELEASE);
	return NULL;
}

/* The longest that @fd took to settle after it was set to @mode, while @n
 * members flip between @modes. In milliseconds, or a negative errno.
 */
static int starve(struct flipper *f, int n, const int *modes, int pause_us,
		  int fd, int mode)
{
	int i, ms, rounds, max = 0, started;
	bool stop = false;

	for (i = 0; i < n; i++) {
		f[i].modes[0] = modes[0];
		f[i].modes[1] = modes[1];
		f[i].pause_us = pause_us;
		f[i].stop = &stop;
		f[i].ended = false;
		f[i].flips = 0;
		if (pthread_create(&f[i].thread, NULL, flip, &f[i]))
			break;
	}
	started = i;
	for (i = 0; i < started; i++)
		wait_for(__atomic_load_n(&f[i].flips, __ATOMIC_RELAXED) > 2 ||
			 __atomic_load_n(&f[i].ended, __ATOMIC_ACQUIRE));
	for (rounds = 0; rounds < 5 && max < SETTLE_MS; rounds++) {
		if (set_mode(fd, ON) || set_mode(fd, mode))
			break;
		ms = settle_ms(fd);
		max = ms > max ? ms : max;
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	for (i = 0; i < started; i++)
		pthread_join(f[i].thread, NULL);
	return started == n && (rounds == 5 || max >= SETTLE_MS) ? max :
								   -EAGAIN;
}

FIXTURE(starving)
{
	int port;
	int a;			/* stays ON */
	int b;			/* drains */
	struct flipper f[NR_FLIPPERS];
};

FIXTURE_VARIANT(starving)
{
	int type;
	int mode;		/* of what drains */
	int threads;
	int pause_us;
};

FIXTURE_VARIANT_ADD(starving, tcp_off)
{
	.type = SOCK_STREAM,
	.mode = OFF,
	.threads = 1,
};

FIXTURE_VARIANT_ADD(starving, tcp_off_pause)
{
	.type = SOCK_STREAM,
	.mode = OFF,
	.threads = 1,
	.pause_us = 500,
};

FIXTURE_VARIANT_ADD(starving, tcp_off_threads)
{
	.type = SOCK_STREAM,
	.mode = OFF,
	.threads = NR_FLIPPERS,
};

FIXTURE_VARIANT_ADD(starving, tcp_off_threads_pause)
{
	.type = SOCK_STREAM,
	.mode = OFF,
	.threads = NR_FLIPPERS,
	.pause_us = 500,
};

FIXTURE_VARIANT_ADD(starving, tcp_standby_threads)
{
	.type = SOCK_STREAM,
	.mode = STANDBY,
	.threads = NR_FLIPPERS,
};

FIXTURE_VARIANT_ADD(starving, udp_off_threads)
{
	.type = SOCK_DGRAM,
	.mode = OFF,
	.threads = NR_FLIPPERS,
};

FIXTURE_VARIANT_ADD(starving, udp_standby_pause)
{
	.type = SOCK_DGRAM,
	.mode = STANDBY,
	.threads = 1,
	.pause_us = 500,
};

FIXTURE_SETUP(starving)
{
	const char *ip = paths[IPV4].bind;
	int i;

	ASSERT_EQ(0, enter_netns());
	self->a = open_member(ip, variant->type, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	self->b = open_member(ip, variant->type, self->port);
	ASSERT_LE(0, self->b);
	for (i = 0; i < variant->threads; i++) {
		self->f[i].fd = open_member_mode(ip, variant->type, self->port,
						 OFF);
		ASSERT_LE(0, self->f[i].fd);
	}
}

FIXTURE_TEARDOWN(starving)
{
}

#define STARVE(...)							\
({									\
	const int __modes[] = { __VA_ARGS__ };				\
	int __ms = starve(self->f, variant->threads, __modes,		\
			  variant->pause_us, self->b, variant->mode);	\
									\
	TH_LOG("settled within %d ms", __ms);				\
	EXPECT_LE(0, __ms);						\
	EXPECT_GT(SETTLE_MS, __ms);					\
})

TEST_F(starving, by_members_never_on)
{
	STARVE(OFF, STANDBY);
}

/* There is one that stays ON, so a STANDBY one is never chosen. */
TEST_F(starving, by_members_now_and_then_on)
{
	STARVE(ON, OFF);
}

/* ---- one instant ------------------------------------------------------- */

/* All that is said of mode and group is of one instant: nothing in between,
 * where one member moves and another looks.
 */
TEST_F(starving, info_of_one_instant)
{
	int n = variant->threads, all = n + 2, torn = 0, own = 0, i;
	struct reuseport_listen_info info;
	struct flipper f = {
		.fd = self->b,
		.modes = { OFF, ON },
		.pause_us = variant->pause_us,
	};
	long long end = now_ms() + 1000;
	bool stop = false;
	long looks = 0;

	/* B flips, and says what it is; A is what else is ON. */
	for (i = 0; i < n; i++)
		ASSERT_EQ(0, set_mode(self->f[i].fd, STANDBY));
	f.stop = &stop;
	ASSERT_EQ(0, pthread_create(&f.thread, NULL, flip, &f));
	while (now_ms() < end) {
		info = get_info(self->b);
		torn += info.group_on + info.group_standby + info.group_off !=
			all;
		own += info.group_on != (info.mode == ON ? 2 : 1) ||
		       info.group_off != (info.mode == OFF);
		looks++;
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	pthread_join(f.thread, NULL);
	TH_LOG("%ld looks, %ld changes", looks, f.flips);
	EXPECT_EQ(0, torn);
	EXPECT_EQ(0, own);
}

TEST_HARNESS_MAIN
