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

/* A SYN cookie may come back, to which an ON member must be there. */
TEST_F(tcp, cookies_hold_up_the_drain)
{
	int b;

	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_syncookies", "2"));
	ASSERT_LE(0, DIAL());
	close(take(self->a));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_TRUE(get_info(self->a).flags & REUSEPORT_LISTEN_F_COOKIES);
	EXPECT_FALSE(is_drained(self->a));

	b = JOIN(ON);
	ASSERT_LE(0, b);
	EXPECT_FALSE(get_info(self->a).flags & REUSEPORT_LISTEN_F_COOKIES);
	EXPECT_TRUE(is_drained(self->a));
}

/* What is left at close() moves, and never to an OFF member. */
TEST_F(tcp, migrates_to_an_on_member)
{
	int b, c;

	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1"));
	DIAL_ALL();
	EXPECT_EQ(NR_CLIENTS, wait_queued(self->a, NR_CLIENTS));
	b = JOIN(OFF);
	ASSERT_LE(0, b);
	c = JOIN(ON);
	ASSERT_LE(0, c);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	close(self->a);
	EXPECT_EQ(NR_CLIENTS, wait_queued(c, NR_CLIENTS));
	EXPECT_EQ(0, get_info(b).queued);
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
