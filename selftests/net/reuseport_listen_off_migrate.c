// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF and net.ipv4.tcp_migrate_req.
 *
 * What is left when a listener closes, requests and accept queue, moves to an
 * ON member of its group, to a STANDBY one if there is none, and never to an
 * OFF one.
 */
#include "reuseport_listen_off_bpf.h"
#include "reuseport_listen_off_tun.h"

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NR_FLOWS	16

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(migrate)
{
	int tun;
	int port;
	int a;			/* the one which closes */
	int b, c, d;		/* ON, STANDBY, OFF once it does */
	struct flow flow[NR_FLOWS];
};

FIXTURE_VARIANT(migrate)
{
	const struct path *path;
	bool shutdown;		/* not closed, but shut down */
	bool off;		/* A is OFF when it does either */
};

FIXTURE_VARIANT_ADD(migrate, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(migrate, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(migrate, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_VARIANT_ADD(migrate, ipv4_off)
{
	.path = &paths[IPV4],
	.off = true,
};

FIXTURE_VARIANT_ADD(migrate, ipv6_off)
{
	.path = &paths[IPV6],
	.off = true,
};

FIXTURE_VARIANT_ADD(migrate, ipv4_shutdown)
{
	.path = &paths[IPV4],
	.shutdown = true,
};

FIXTURE_VARIANT_ADD(migrate, ipv4_off_shutdown)
{
	.path = &paths[IPV4],
	.off = true,
	.shutdown = true,
};

#define JOIN(mode)							\
	open_member_mode(variant->path->any, SOCK_STREAM, self->port, mode)

FIXTURE_SETUP(migrate)
{
	int i;

	ASSERT_EQ(0, enter_netns());
	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
	self->tun = open_tun();
	ASSERT_LE(0, self->tun);
	self->a = open_member(variant->path->any, SOCK_STREAM, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	for (i = 0; i < NR_FLOWS; i++)
		self->flow[i] = new_flow(self->tun, variant->path, self->port);
}

FIXTURE_TEARDOWN(migrate)
{
}

/* The others come, once A has all that is to migrate. */
#define OTHERS_JOIN(mode_b, mode_c)					\
({									\
	self->b = JOIN(mode_b);						\
	ASSERT_LE(0, self->b);						\
	self->c = JOIN(mode_c);						\
	ASSERT_LE(0, self->c);						\
	self->d = JOIN(OFF);						\
	ASSERT_LE(0, self->d);						\
})

static int stop(int fd, bool off, bool by_shutdown)
{
	int ret = off ? set_mode(fd, OFF) : 0;

	if (ret)
		return ret;
	return (by_shutdown ? shutdown(fd, SHUT_RD) : close(fd)) ? -errno : 0;
}

#define STOP_A()							\
	ASSERT_EQ(0, stop(self->a, variant->off, variant->shutdown))

/* What came to @listener: all flows, each of which works. */
static int take_all(int listener, struct flow *flow)
{
	int child, i, n = 0;
	char c;

	for (i = 0; i < NR_FLOWS; i++)
		send_byte(&flow[i]);
	for (i = 0; i < NR_FLOWS; i++) {
		child = take(listener);
		if (child < 0)
			break;
		n += wait_for(recv(child, &c, 1, 0) == 1) && c == 'x';
		close(child);
	}
	return n;
}

/* How many of the flows are reset, up to the first that is not. */
static int count_resets(struct flow *flow)
{
	int n = 0;

	while (n < NR_FLOWS && wait_answer(&flow[n]) == -ECONNREFUSED)
		n++;
	return n;
}

/* Complete, in the accept queue. */
#define QUEUE_ALL()							\
({									\
	int __i;							\
									\
	for (__i = 0; __i < NR_FLOWS; __i++) {				\
		ASSERT_EQ(0, send_syn(&self->flow[__i], "", 0));	\
		ASSERT_EQ(0, send_ack(&self->flow[__i]));		\
	}								\
	EXPECT_EQ(NR_FLOWS, wait_queued(self->a, NR_FLOWS));		\
})

/* Half-open. */
#define REQUEST_ALL()							\
({									\
	int __i;							\
									\
	for (__i = 0; __i < NR_FLOWS; __i++)				\
		ASSERT_EQ(0, send_syn(&self->flow[__i], "", 0));	\
	EXPECT_EQ(NR_FLOWS, get_info(self->a).handshakes);		\
})

#define ACK_ALL()							\
({									\
	int __i;							\
									\
	for (__i = 0; __i < NR_FLOWS; __i++)				\
		ASSERT_EQ(0, send_ack(&self->flow[__i]));		\
})

TEST_F(migrate, queue_to_on)
{
	QUEUE_ALL();
	OTHERS_JOIN(ON, STANDBY);
	STOP_A();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->b, NR_FLOWS));
	EXPECT_EQ(0, get_info(self->c).queued);
	EXPECT_EQ(0, get_info(self->d).queued);
	EXPECT_EQ(NR_FLOWS, take_all(self->b, self->flow));
}

TEST_F(migrate, queue_to_standby)
{
	QUEUE_ALL();
	OTHERS_JOIN(OFF, STANDBY);
	STOP_A();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->c, NR_FLOWS));
	EXPECT_EQ(0, get_info(self->b).queued);
	EXPECT_EQ(0, get_info(self->d).queued);
	EXPECT_EQ(NR_FLOWS, take_all(self->c, self->flow));
}

TEST_F(migrate, queue_with_all_off)
{
	QUEUE_ALL();
	OTHERS_JOIN(OFF, OFF);
	STOP_A();
	EXPECT_EQ(NR_FLOWS, count_resets(self->flow));
	EXPECT_EQ(0, get_info(self->b).queued);
	EXPECT_EQ(0, get_info(self->c).queued);
	EXPECT_EQ(0, get_info(self->d).queued);
}

/* The final ACK finds a listener which is gone. */
TEST_F(migrate, request_to_on)
{
	REQUEST_ALL();
	OTHERS_JOIN(ON, STANDBY);
	STOP_A();
	ACK_ALL();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->b, NR_FLOWS));
	EXPECT_EQ(NR_FLOWS, take_all(self->b, self->flow));
	EXPECT_EQ(0, empty_queue(self->c));
	EXPECT_EQ(0, empty_queue(self->d));
}

TEST_F(migrate, request_to_standby)
{
	REQUEST_ALL();
	OTHERS_JOIN(OFF, STANDBY);
	STOP_A();
	ACK_ALL();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->c, NR_FLOWS));
	EXPECT_EQ(NR_FLOWS, take_all(self->c, self->flow));
	EXPECT_EQ(0, empty_queue(self->b));
	EXPECT_EQ(0, empty_queue(self->d));
}

TEST_F(migrate, request_with_all_off)
{
	REQUEST_ALL();
	OTHERS_JOIN(OFF, OFF);
	STOP_A();
	ACK_ALL();
	EXPECT_EQ(NR_FLOWS, count_resets(self->flow));
	EXPECT_EQ(0, empty_queue(self->b));
	EXPECT_EQ(0, empty_queue(self->c));
	EXPECT_EQ(0, empty_queue(self->d));
}

/* Modes count when it migrates, not when the listener closed. */
TEST_F(migrate, request_after_another_change)
{
	REQUEST_ALL();
	OTHERS_JOIN(ON, STANDBY);
	STOP_A();
	ASSERT_EQ(0, set_mode(self->b, OFF));
	ASSERT_EQ(0, set_mode(self->d, ON));
	ACK_ALL();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->d, NR_FLOWS));
	EXPECT_EQ(NR_FLOWS, take_all(self->d, self->flow));
	EXPECT_EQ(0, empty_queue(self->b));
	EXPECT_EQ(0, empty_queue(self->c));
}

/* The SYN-ACK timer finds it first. */
TEST_F(migrate, request_by_timer)
{
	REQUEST_ALL();
	OTHERS_JOIN(ON, STANDBY);
	STOP_A();
	EXPECT_TRUE(wait_for(get_info(self->b).handshakes == NR_FLOWS));
	EXPECT_EQ(0, get_info(self->c).handshakes);
	EXPECT_EQ(0, get_info(self->d).handshakes);

	/* There it waits as if B had begun it, though B goes OFF. */
	ASSERT_EQ(0, set_mode(self->b, OFF));
	ACK_ALL();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->b, NR_FLOWS));
	EXPECT_EQ(NR_FLOWS, take_all(self->b, self->flow));
	EXPECT_TRUE(wait_for(is_drained(self->b)));
}

/* Fast Open: in the accept queue, and half-open all the same. */
TEST_F(migrate, fast_open_child_to_on)
{
	int i;

	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_fastopen", "1538"));
	ASSERT_EQ(0, set_int(self->a, IPPROTO_TCP, 23 /* TCP_FASTOPEN */, 64));
	for (i = 0; i < NR_FLOWS; i++)
		ASSERT_EQ(0, send_syn(&self->flow[i], "x", 1));
	EXPECT_EQ(NR_FLOWS, wait_queued(self->a, NR_FLOWS));
	OTHERS_JOIN(ON, STANDBY);
	STOP_A();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->b, NR_FLOWS));
	ACK_ALL();
	EXPECT_EQ(NR_FLOWS, take_all(self->b, self->flow));
	EXPECT_EQ(0, empty_queue(self->c));
	EXPECT_EQ(0, empty_queue(self->d));
}

/* A program may say where to, but not to an OFF member. */
TEST_F(migrate, program_naming_an_off_member)
{
	struct programs *skel = programs__open_and_load();

	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "0"));

	REQUEST_ALL();
	OTHERS_JOIN(ON, STANDBY);
	ASSERT_EQ(0, set_mode(self->d, ON));
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, self->d));
	ASSERT_EQ(0, set_mode(self->d, OFF));
	ASSERT_EQ(0, set_int(self->b, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_or_migrate.prog_fd));
	STOP_A();
	ACK_ALL();
	ASSERT_EQ(NR_FLOWS, wait_queued(self->b, NR_FLOWS));
	EXPECT_EQ(-ENOENT, skel->bss->answer);
	EXPECT_EQ(NR_FLOWS, take_all(self->b, self->flow));
	EXPECT_EQ(0, empty_queue(self->c));
	EXPECT_EQ(0, empty_queue(self->d));
}

TEST_HARNESS_MAIN
