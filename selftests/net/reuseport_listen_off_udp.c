// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF on UDP sockets.
 *
 * What holds for the connections of a TCP listener holds for the datagrams of
 * an unconnected UDP socket. A connected one is a flow and is left alone, and
 * so are multicast and broadcast, for which nobody is chosen.
 */
#include "reuseport_listen_off_udp.h"

#include <limits.h>
#include <pthread.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(udp)
{
	int port;
	int a;			/* the first member */
};

FIXTURE_VARIANT(udp)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(udp, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(udp, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(udp, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_SETUP(udp)
{
	ASSERT_EQ(0, enter_netns());
	self->a = open_member(variant->path->bind, SOCK_DGRAM, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	ASSERT_LT(0, self->port);
}

FIXTURE_TEARDOWN(udp)
{
}

static int disconnect(int fd)
{
	struct sockaddr unspec = { .sa_family = AF_UNSPEC };

	return connect(fd, &unspec, sizeof(unspec));
}

/* Another member of the group. */
#define JOIN(mode)							\
	open_member_mode(variant->path->bind, SOCK_DGRAM, self->port, mode)

#define SEND()		send_one(variant->path->dst, self->port)
#define REFUSED()	is_refused(variant->path->dst, self->port)

#define SEND_ALL_TO(port)						\
({									\
	int __i;							\
									\
	for (__i = 0; __i < NR_CLIENTS; __i++)				\
		ASSERT_EQ(0, send_one(variant->path->dst, port));	\
})

#define SEND_ALL()	SEND_ALL_TO(self->port)

TEST_F(udp, on_members_share)
{
	int b = JOIN(ON), n = 0, m = 0;

	ASSERT_LE(0, b);
	SEND_ALL();
	EXPECT_TRUE(wait_for((n += receive_all(self->a)) +
			     (m += receive_all(b)) == NR_CLIENTS));
	EXPECT_LT(0, n);
	EXPECT_LT(0, m);
}

TEST_F(udp, off_member_gets_nothing)
{
	int b = JOIN(ON), c = JOIN(ON), n = 0, m = 0;

	ASSERT_LE(0, b);
	ASSERT_LE(0, c);
	ASSERT_EQ(0, set_mode(b, OFF));
	SEND_ALL();
	EXPECT_TRUE(wait_for((n += receive_all(self->a)) +
			     (m += receive_all(c)) == NR_CLIENTS));
	EXPECT_LT(0, n);
	EXPECT_LT(0, m);
	EXPECT_EQ(0, receive_all(b));
	EXPECT_EQ(0, get_info(b).queued);
}

TEST_F(udp, receive_queue_survives)
{
	int b, i;

	for (i = 0; i < 8; i++)
		ASSERT_EQ(0, SEND());
	EXPECT_TRUE(wait_for(get_info(self->a).queued >= 8 * 8));
	b = JOIN(ON);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_LE(8 * 8, get_info(self->a).queued);
	EXPECT_EQ(0, get_info(self->a).handshakes);
	EXPECT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_FALSE(is_drained(self->a));
	EXPECT_EQ(8, receive_all(self->a));
	EXPECT_EQ(0, get_info(self->a).queued);
	EXPECT_TRUE(is_drained(self->a));
	EXPECT_EQ(0, receive_all(b));
}

TEST_F(udp, all_off_refuses)
{
	int b = JOIN(ON);

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, set_mode(b, OFF));
	EXPECT_TRUE(REFUSED());
	EXPECT_EQ(0, receive_all(self->a));
	EXPECT_EQ(0, receive_all(b));
	EXPECT_EQ(2, get_info(b).group_off);
	ASSERT_EQ(0, set_mode(b, ON));
	ASSERT_EQ(0, SEND());
	EXPECT_EQ(1, receive(b, 1));
}

TEST_F(udp, lone_socket_off_refuses)
{
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(REFUSED());
	ASSERT_EQ(0, set_mode(self->a, ON));
	ASSERT_EQ(0, SEND());
	EXPECT_EQ(1, receive(self->a, 1));
}

/* The group on the specific address is passed over for the wildcard one. */
TEST_F(udp, all_off_falls_back_to_wildcard)
{
	const struct path *p = variant->path;
	int group[2], wild, port, i;

	wild = open_member(p->any, SOCK_DGRAM, 0);
	ASSERT_LE(0, wild);
	port = local_port(wild);
	for (i = 0; i < 2; i++) {
		group[i] = open_member(p->specific, SOCK_DGRAM, port);
		ASSERT_LE(0, group[i]);
	}

	ASSERT_EQ(0, set_mode(group[0], OFF));
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(group[1], 1));
	ASSERT_EQ(0, set_mode(group[1], OFF));
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(wild, 1));
	ASSERT_EQ(0, set_mode(wild, OFF));
	EXPECT_TRUE(is_refused(p->dst, port));
	ASSERT_EQ(0, set_mode(group[0], ON));
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(group[0], 1));
	EXPECT_EQ(0, receive_all(group[1]));
	EXPECT_EQ(0, receive_all(wild));
}

/* An OFF wildcard group leaves alone what was found before it. */
TEST_F(udp, wildcard_off_leaves_specific)
{
	const struct path *p = variant->path;
	int wild, specific, port, i;

	wild = open_member_mode(p->any, SOCK_DGRAM, 0, OFF);
	ASSERT_LE(0, wild);
	port = local_port(wild);
	EXPECT_TRUE(is_refused(p->dst, port));
	specific = open_member(p->specific, SOCK_DGRAM, port);
	ASSERT_LE(0, specific);
	for (i = 0; i < 8; i++)
		ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(8, receive(specific, 8));
	EXPECT_EQ(0, receive_all(wild));
}

TEST_F(udp, standby_only_without_on)
{
	int s1 = JOIN(STANDBY), s2 = JOIN(STANDBY), b = JOIN(ON);
	int n = 0, m = 0;

	ASSERT_LE(0, s1);
	ASSERT_LE(0, s2);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(s1) + receive_all(s2));

	close(b);
	SEND_ALL();
	EXPECT_TRUE(wait_for((n += receive_all(s1)) +
			     (m += receive_all(s2)) == NR_CLIENTS));
	EXPECT_LT(0, n);
	EXPECT_LT(0, m);
	EXPECT_EQ(0, receive_all(self->a));

	b = JOIN(ON);
	ASSERT_LE(0, b);
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(s1) + receive_all(s2));
}

/* Every change of mode, from every mode. */
TEST_F(udp, mode_transitions)
{
	struct reuseport_listen_info info;
	int b = JOIN(ON), from, to;

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

			ASSERT_EQ(0, set_mode(self->a, OFF));
			if (to == OFF) {
				EXPECT_TRUE(REFUSED());
			} else {
				ASSERT_EQ(0, SEND());
				EXPECT_EQ(1, receive(b, 1));
			}
			ASSERT_EQ(0, set_mode(self->a, ON));
		}
	}
}

TEST_F(udp, mode_before_bind)
{
	const struct path *p = variant->path;
	int fd = new_member(p->bind, SOCK_DGRAM);

	ASSERT_LE(0, fd);
	EXPECT_EQ(ON, get_mode(fd));
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_EQ(OFF, get_mode(fd));
	ASSERT_EQ(0, join(fd, p->bind, self->port));
	EXPECT_EQ(OFF, get_mode(fd));
	EXPECT_EQ(1, get_info(self->a).group_off);
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(self->a, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(fd));
}

TEST_F(udp, newcomer_joins_an_off_group)
{
	int b;

	ASSERT_EQ(0, set_mode(self->a, OFF));
	b = JOIN(ON);
	ASSERT_LE(0, b);
	EXPECT_EQ(ON, get_mode(b));
	EXPECT_EQ(get_info(self->a).group_id, get_info(b).group_id);
	ASSERT_EQ(0, SEND());
	EXPECT_EQ(1, receive(b, 1));
}

TEST_F(udp, cleared_reuseport_is_still_off)
{
	int b = JOIN(ON);

	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 0));
	EXPECT_EQ(OFF, get_mode(self->a));
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(self->a));
	close(b);
	EXPECT_TRUE(REFUSED());
}

TEST_F(udp, reuseport_cleared_before_bind)
{
	const struct path *p = variant->path;
	int fd = open_cleared(p->bind, SOCK_DGRAM, OFF, false);

	ASSERT_LE(0, fd);
	EXPECT_TRUE(is_refused(p->dst, local_port(fd)));
	EXPECT_EQ(0, receive_all(fd));
	ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
	EXPECT_TRUE(is_refused(p->dst, local_port(fd)));
	ASSERT_EQ(0, set_mode(fd, ON));
	ASSERT_EQ(0, send_one(p->dst, local_port(fd)));
	EXPECT_EQ(1, receive(fd, 1));
	close(fd);

	/* Without a group there is nobody to stand by for. */
	fd = open_cleared(p->bind, SOCK_DGRAM, STANDBY, false);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, send_one(p->dst, local_port(fd)));
	EXPECT_EQ(1, receive(fd, 1));
}

/* Nor is there for one that was in a group until it was disconnected. */
TEST_F(udp, reuseport_cleared_when_disconnected)
{
	static const int modes[] = { STANDBY, OFF, ON };
	const struct path *p = variant->path;
	unsigned int i;
	int b, fd;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		fd = new_member(p->bind, SOCK_DGRAM);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, set_mode(fd, modes[i]));
		ASSERT_EQ(0, join(fd, p->bind, 0));
		b = open_member_mode(p->bind, SOCK_DGRAM, local_port(fd),
				     STANDBY);
		ASSERT_LE(0, b);
		ASSERT_EQ(0, disconnect(fd));
		ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 0));
		ASSERT_EQ(0, join(fd, p->bind, 0));

		if (modes[i] == OFF) {
			EXPECT_TRUE(is_refused(p->dst, local_port(fd)));
			ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
			ASSERT_EQ(0, set_mode(fd, ON));
		}
		ASSERT_EQ(0, send_one(p->dst, local_port(fd)));
		EXPECT_EQ(1, receive(fd, 1));
		close(fd);
		close(b);
	}
}

TEST_F(udp, reuseport_set_after_bind)
{
	const struct path *p = variant->path;
	int fd = socket(family_of(p->bind), SOCK_DGRAM, 0), port;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, join(fd, p->bind, 0));
	port = local_port(fd);
	ASSERT_EQ(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1));
	ASSERT_EQ(0, set_mode(fd, OFF));
	EXPECT_TRUE(is_refused(p->dst, port));
	ASSERT_EQ(0, set_mode(fd, ON));
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(fd, 1));
}

/* A client of @port, and the address that it sends from. */
static int dial_from(const struct path *p, int port, union addr *addr,
		     socklen_t *len)
{
	int client = dial(p->dst, SOCK_DGRAM, port);

	*len = make_addr(addr, p == &paths[IPV4_ON_IPV6] ? p->specific : p->dst,
			 local_port(client));
	return client;
}

/* A client of @port that @fd is connected to. */
static int connect_to_client(const struct path *p, int port, int fd)
{
	union addr addr;
	socklen_t len;
	int client;

	client = dial_from(p, port, &addr, &len);
	if (client >= 0 && connect(fd, &addr.sa, len))
		return -errno;
	return client;
}

/* Connected to a client, the member keeps what that one sends; only that. */
TEST_F(udp, connected_socket_keeps_its_datagrams)
{
	const struct path *p = variant->path;
	int b = JOIN(ON), client, i;

	ASSERT_LE(0, b);
	client = connect_to_client(p, self->port, self->a);
	ASSERT_LE(0, client);
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(self->a, 1));

	EXPECT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(OFF, get_mode(self->a));
	for (i = 0; i < 8; i++)
		ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(8, receive(self->a, 8));
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(self->a));

	/* Even if there is no one else. */
	ASSERT_EQ(0, set_mode(b, OFF));
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(self->a, 1));
	close(b);
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(self->a, 1));
	EXPECT_TRUE(REFUSED());
}

static int free_port(const struct path *p)
{
	int fd = open_member(p->specific, SOCK_DGRAM, 0), port;

	if (fd < 0)
		return fd;
	port = local_port(fd);
	close(fd);
	return port;
}

/* A flow is no member that can be chosen, for lookups and for those who ask. */
TEST_F(udp, connected_socket_is_no_member)
{
	const struct path *p = variant->path;
	int port, a, b, c, client, i;
	union addr addr;
	socklen_t len;

	/* With address and port of its own, it keeps them when it connects and
	 * disconnects.
	 */
	port = free_port(p);
	a = open_member(p->specific, SOCK_DGRAM, port);
	ASSERT_LE(0, a);
	b = open_member_mode(p->specific, SOCK_DGRAM, port, STANDBY);
	ASSERT_LE(0, b);
	c = open_member_mode(p->specific, SOCK_DGRAM, port, OFF);
	ASSERT_LE(0, c);
	client = dial_from(p, port, &addr, &len);
	ASSERT_LE(0, client);
	EXPECT_EQ(1, get_info(b).group_on);
	EXPECT_TRUE(wait_for(is_drained(b)));

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, connect(a, &addr.sa, len));
		EXPECT_EQ(0, get_info(b).group_on);
		EXPECT_EQ(1, get_info(b).group_standby);
		EXPECT_EQ(1, get_info(b).group_off);
		EXPECT_FALSE(is_drained(b));
		ASSERT_EQ(0, send_one(p->dst, port));
		EXPECT_EQ(1, receive(b, 1));
		ASSERT_EQ(8, send(client, "datagram", 8, 0));
		EXPECT_EQ(1, receive(a, 1));

		/* Its mode may change meanwhile, and changes nothing. */
		ASSERT_EQ(0, set_mode(a, (i + 1) % 3));
		EXPECT_EQ(1, get_info(b).group_standby);
		EXPECT_EQ(1, get_info(b).group_off);
		ASSERT_EQ(0, set_mode(a, ON));
		EXPECT_EQ(0, get_info(b).group_on);

		ASSERT_EQ(0, disconnect(a));
		/* A kernel may take who connects out of the group for good. */
		if (get_info(a).group_id != get_info(b).group_id) {
			EXPECT_EQ(0, get_info(b).group_on);
			close(a);
			a = open_member(p->specific, SOCK_DGRAM, port);
			ASSERT_LE(0, a);
		}
		EXPECT_EQ(1, get_info(b).group_on);
		EXPECT_TRUE(wait_for(is_drained(b)));
		ASSERT_EQ(0, send_one(p->dst, port));
		EXPECT_EQ(1, receive(a, 1));
		EXPECT_EQ(0, receive_all(b));
	}

	/* A connected one that goes takes nothing with it that others need. */
	ASSERT_EQ(0, connect(a, &addr.sa, len));
	close(a);
	EXPECT_EQ(0, get_info(b).group_on);
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(b, 1));
	ASSERT_EQ(0, set_mode(c, ON));
	EXPECT_EQ(1, get_info(b).group_on);
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(c, 1));
}

/* Whether its SO_INCOMING_CPU counts goes by what it is: not that of a flow,
 * but that of the member which it is again when it disconnects.
 */
TEST_F(udp, connected_socket_with_a_cpu)
{
	const struct path *p = variant->path;
	int port, a, b, c, client, i, n, m;
	union addr addr;
	cpu_set_t cpus;
	socklen_t len;

	/* Datagrams over lo are looked up on the CPU that sends them. */
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpus), &cpus));
	for (i = 0; i < 2; i++) {
		port = free_port(p);
		a = open_member(p->specific, SOCK_DGRAM, port);
		ASSERT_LE(0, a);
		b = open_member(p->specific, SOCK_DGRAM, port);
		ASSERT_LE(0, b);
		/* In the second round beside an OFF one */
		c = open_member_mode(p->specific, SOCK_DGRAM, port,
				     i ? OFF : ON);
		ASSERT_LE(0, c);
		if (!i)
			close(c);
		client = dial_from(p, port, &addr, &len);
		ASSERT_LE(0, client);
		ASSERT_EQ(0, connect(b, &addr.sa, len));
		ASSERT_EQ(0, set_int(b, SOL_SOCKET, SO_INCOMING_CPU, 0));
		SEND_ALL_TO(port);
		EXPECT_EQ(NR_CLIENTS, receive(a, NR_CLIENTS));
		EXPECT_EQ(0, receive_all(b));

		ASSERT_EQ(0, disconnect(b));
		/* A kernel may take who connects out of the group for good. */
		if (get_info(a).group_id == get_info(b).group_id) {
			SEND_ALL_TO(port);
			EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
			EXPECT_EQ(0, receive_all(a));
		}

		/* It is gone, and with it what it counted. */
		ASSERT_EQ(0, connect(b, &addr.sa, len));
		close(b);
		b = open_member(p->specific, SOCK_DGRAM, port);
		ASSERT_LE(0, b);
		SEND_ALL_TO(port);
		n = 0;
		m = 0;
		EXPECT_TRUE(wait_for((n += receive_all(a)) +
				     (m += receive_all(b)) == NR_CLIENTS));
		EXPECT_LT(0, n);
		EXPECT_LT(0, m);
		ASSERT_EQ(0, set_int(b, SOL_SOCKET, SO_INCOMING_CPU, 0));
		SEND_ALL_TO(port);
		EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
		EXPECT_EQ(0, receive_all(a));
		close(a);
		close(b);
		if (i)
			close(c);
	}
}

/* The CPU that the kernel notes in a socket while it is connected says nothing
 * of what the user wants.
 */
TEST_F(udp, disconnected_socket_has_no_cpu)
{
	const struct path *p = variant->path;
	int port, a, b, c, client, n = 0, m = 0;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpus), &cpus));
	port = free_port(p);
	a = open_member(p->specific, SOCK_DGRAM, port);
	ASSERT_LE(0, a);
	b = open_member(p->specific, SOCK_DGRAM, port);
	ASSERT_LE(0, b);
	c = open_member_mode(p->specific, SOCK_DGRAM, port, OFF);
	ASSERT_LE(0, c);
	client = connect_to_client(p, port, b);
	ASSERT_LE(0, client);
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	ASSERT_EQ(1, receive(b, 1));
	ASSERT_EQ(0, disconnect(b));
	/* A kernel may take who connects out of the group for good. */
	if (get_info(a).group_id != get_info(b).group_id)
		return;

	SEND_ALL_TO(port);
	EXPECT_TRUE(wait_for((n += receive_all(a)) + (m += receive_all(b)) ==
			     NR_CLIENTS));
	EXPECT_LT(0, n);
	EXPECT_LT(0, m);
}

/* Cleared, it is in no group any more once its address changes: alone then,
 * and found.
 */
TEST_F(udp, reuseport_cleared_before_it_connects)
{
	const struct path *p = variant->path;
	int port, a, b, client;

	port = free_port(p);
	a = open_member(p->any, SOCK_DGRAM, port);
	ASSERT_LE(0, a);
	b = open_member_mode(p->any, SOCK_DGRAM, port, STANDBY);
	ASSERT_LE(0, b);
	ASSERT_EQ(0, set_int(b, SOL_SOCKET, SO_REUSEPORT, 0));
	client = connect_to_client(p, port, b);
	ASSERT_LE(0, client);
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(b, 1));
	ASSERT_EQ(0, disconnect(b));
	EXPECT_EQ(STANDBY, get_mode(b));
	EXPECT_EQ(0, get_info(b).group_id);
	EXPECT_EQ(1, get_info(a).group_on);
	EXPECT_EQ(0, get_info(a).group_standby);
	close(a);
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(b, 1));
}

/* Where connect() changes the address, it changes the group, too: that of the
 * wildcard address gets the socket back when it is disconnected.
 */
TEST_F(udp, connecting_changes_the_group)
{
	const struct path *p = variant->path;
	int a, b, port, client, mode;
	union addr addr;
	socklen_t len;

	/* With a port of its own it keeps that when it is disconnected. */
	port = free_port(p);
	for (mode = OFF; mode <= STANDBY; mode++) {
		a = open_member_mode(p->any, SOCK_DGRAM, port, mode);
		ASSERT_LE(0, a);
		client = dial_from(p, port, &addr, &len);
		ASSERT_LE(0, client);
		ASSERT_EQ(0, connect(a, &addr.sa, len));
		ASSERT_EQ(8, send(client, "datagram", 8, 0));
		EXPECT_EQ(1, receive(a, 1));
		ASSERT_EQ(0, disconnect(a));
		EXPECT_EQ(mode, get_mode(a));

		/* Alone, STANDBY is to be found. */
		if (mode == STANDBY) {
			ASSERT_EQ(0, send_one(p->dst, port));
			EXPECT_EQ(1, receive(a, 1));
		} else {
			EXPECT_TRUE(is_refused(p->dst, port));
		}

		/* Beside one that is ON it is not, and is in its group. */
		b = open_member(p->any, SOCK_DGRAM, port);
		ASSERT_LE(0, b);
		ASSERT_EQ(0, connect(a, &addr.sa, len));
		EXPECT_EQ(1, get_info(b).group_on);
		EXPECT_EQ(0, get_info(b).group_off + get_info(b).group_standby);
		ASSERT_EQ(0, disconnect(a));
		EXPECT_EQ(get_info(b).group_id, get_info(a).group_id);
		EXPECT_EQ(1, get_info(b).group_off + get_info(b).group_standby);
		SEND_ALL_TO(port);
		EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
		EXPECT_EQ(0, receive_all(a));
		EXPECT_TRUE(wait_for(is_drained(a)));
		close(b);
		close(a);
		close(client);
	}
}

/* One that is ON leaves its group for good when it connects. A mode brings it
 * back, and into no second group at the same address.
 */
TEST_F(udp, mode_of_one_that_was_connected)
{
	const struct path *p = variant->path;
	int a, b, port, client;

	port = free_port(p);
	a = open_member(p->any, SOCK_DGRAM, port);
	ASSERT_LE(0, a);
	b = open_member(p->any, SOCK_DGRAM, port);
	ASSERT_LE(0, b);
	client = connect_to_client(p, port, a);
	ASSERT_LE(0, client);
	ASSERT_EQ(0, disconnect(a));
	ASSERT_EQ(0, set_mode(a, STANDBY));
	EXPECT_EQ(get_info(b).group_id, get_info(a).group_id);
	EXPECT_EQ(1, get_info(b).group_on);
	EXPECT_EQ(1, get_info(b).group_standby);
	SEND_ALL_TO(port);
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(a));
	EXPECT_TRUE(wait_for(is_drained(a)));
	ASSERT_EQ(0, set_mode(b, OFF));
	ASSERT_EQ(0, send_one(p->dst, port));
	EXPECT_EQ(1, receive(a, 1));
}

/* A flow that was there before its group was keeps its datagrams. */
TEST_F(udp, connected_before_the_group)
{
	const struct path *p = variant->path;
	int a, b, port, client, i;

	a = socket(family_of(p->bind), SOCK_DGRAM | SOCK_NONBLOCK, 0);
	ASSERT_LE(0, a);
	ASSERT_EQ(0, join(a, p->specific, 0));
	port = local_port(a);
	client = connect_to_client(p, port, a);
	ASSERT_LE(0, client);
	ASSERT_EQ(0, set_int(a, SOL_SOCKET, SO_REUSEPORT, 1));
	ASSERT_EQ(0, set_mode(a, OFF));
	b = open_member(p->specific, SOCK_DGRAM, port);
	ASSERT_LE(0, b);
	EXPECT_EQ(get_info(a).group_id, get_info(b).group_id);
	for (i = 0; i < 8; i++)
		ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(8, receive(a, 8));
	EXPECT_EQ(0, receive_all(b));
	SEND_ALL_TO(port);
	EXPECT_EQ(NR_CLIENTS, receive(b, NR_CLIENTS));
	EXPECT_EQ(0, receive_all(a));
}

/* What was chosen while all that were ON were connected is under way. */
TEST_F(udp, disconnecting_unsettles_standby)
{
	const struct path *p = variant->path;
	int a, b, client, i;
	bool seen = false;
	union addr addr;
	socklen_t len;

	a = open_member(p->specific, SOCK_DGRAM, free_port(p));
	ASSERT_LE(0, a);
	b = open_member_mode(p->specific, SOCK_DGRAM, local_port(a), STANDBY);
	ASSERT_LE(0, b);
	client = dial_from(p, local_port(a), &addr, &len);
	ASSERT_LE(0, client);
	for (i = 0; i < 20 && !seen; i++) {
		ASSERT_EQ(0, connect(a, &addr.sa, len));
		ASSERT_TRUE(wait_for(is_settled(b)));
		/* A kernel may take who connects out of the group for good. */
		if (get_info(a).group_id != get_info(b).group_id)
			return;
		ASSERT_EQ(0, disconnect(a));
		seen = !is_settled(b);
		EXPECT_EQ(1, get_info(b).group_on);
	}
	EXPECT_TRUE(seen);
}

/* ---- bytes that are queued ---------------------------------------------- */

struct reader {
	pthread_t thread;
	int fd, tx;
	bool *stop;
	long datagrams;
};

#define BURST	32

static bool pass_on(struct reader *r, int n)
{
	char buf[16];
	int i;

	for (i = 0; i < n; i++)
		if (send(r->tx, "datagram", 8, 0) != 8)
			return false;
	/* A busy CPU may not have delivered them yet: wait for the last, which
	 * has n before it.
	 */
	if (set_int(r->fd, SOL_SOCKET, SO_PEEK_OFF, 8 * n) ||
	    recv(r->fd, buf, sizeof(buf), MSG_PEEK) != 8)
		return false;
	for (i = 0; i < n; i++)
		if (recv(r->fd, buf, sizeof(buf), 0) != 8)
			return false;
	r->datagrams += n;
	return true;
}

/* Keep one datagram in the queue at all times, and now and then more: then what
 * was charged for those that are read is given back late. One alone makes the
 * kernel give it all back, so that less is charged for than will be owed.
 */
static void *keep_reading(void *arg)
{
	struct reader *r = arg;

	while (!__atomic_load_n(r->stop, __ATOMIC_ACQUIRE) &&
	       pass_on(r, BURST) && pass_on(r, 1))
		;
	return NULL;
}

TEST_F(udp, queued_is_never_0_with_a_datagram)
{
	struct reader r = { .fd = self->a };
	long long end = now_ms() + 4000;
	bool stop = false;
	long looks = 0;
	int empty = 0;

	ASSERT_EQ(0, fcntl(self->a, F_SETFL, 0));
	r.tx = dial(variant->path->dst, SOCK_DGRAM, self->port);
	ASSERT_LE(0, r.tx);
	ASSERT_EQ(8, send(r.tx, "datagram", 8, 0));
	ASSERT_TRUE(wait_for(get_info(self->a).queued > 0));
	r.stop = &stop;
	ASSERT_EQ(0, pthread_create(&r.thread, NULL, keep_reading, &r));
	while (now_ms() < end) {
		empty += !get_info(self->a).queued;
		looks++;
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	pthread_join(r.thread, NULL);
	TH_LOG("%ld looks, %ld datagrams", looks, r.datagrams);
	EXPECT_LT(100, r.datagrams);
	EXPECT_EQ(0, empty);
	EXPECT_EQ(1, receive_all(self->a));
	EXPECT_EQ(0, get_info(self->a).queued);
}

TEST_F(udp, connected_while_off)
{
	const struct path *p = variant->path;
	int b = JOIN(OFF), client;

	ASSERT_LE(0, b);
	client = connect_to_client(p, self->port, b);
	ASSERT_LE(0, client);
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(b, 1));

	/* Disconnected it is OFF again, in a group or not. */
	ASSERT_EQ(0, disconnect(b));
	EXPECT_EQ(self->port, local_port(b));
	EXPECT_EQ(OFF, get_mode(b));
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(self->a, 1));
	SEND_ALL();
	EXPECT_EQ(NR_CLIENTS, receive(self->a, NR_CLIENTS));
	close(self->a);
	EXPECT_TRUE(REFUSED());
	EXPECT_EQ(0, receive_all(b));
}

TEST_F(udp, errors)
{
	int fd = socket(family_of(variant->path->bind), SOCK_DGRAM, 0);
	int b = JOIN(STANDBY), val = OFF;
	socklen_t len;

	ASSERT_LE(0, fd);
	ASSERT_LE(0, b);
	EXPECT_EQ(-EINVAL, set_mode(fd, OFF));
	EXPECT_EQ(ON, get_mode(fd));
	EXPECT_EQ(-EINVAL, set_mode(b, -1));
	EXPECT_EQ(-EINVAL, set_mode(b, STANDBY + 1));
	EXPECT_EQ(-EINVAL, set_mode(b, INT_MAX));
	for (len = 0; len < sizeof(int); len++) {
		EXPECT_EQ(-1, setsockopt(b, SOL_SOCKET,
					 SO_REUSEPORT_LISTEN_OFF, &val, len));
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(STANDBY, get_mode(b));
}

/* An IPv4 datagram may find a group of either family, the own one first. */
TEST(dual_stack_groups)
{
	int v4, v6;
	int port;

	ASSERT_EQ(0, enter_netns());
	v6 = open_member("::", SOCK_DGRAM, 0);
	ASSERT_LE(0, v6);
	port = local_port(v6);
	v4 = open_member("0.0.0.0", SOCK_DGRAM, port);
	ASSERT_LE(0, v4);
	ASSERT_EQ(0, set_mode(v4, OFF));
	ASSERT_EQ(0, send_one("127.0.0.1", port));
	EXPECT_EQ(1, receive(v6, 1));
	ASSERT_EQ(0, set_mode(v4, ON));
	ASSERT_EQ(0, set_mode(v6, OFF));
	ASSERT_EQ(0, send_one("127.0.0.1", port));
	EXPECT_EQ(1, receive(v4, 1));
	EXPECT_TRUE(is_refused("::1", port));
	ASSERT_EQ(0, set_mode(v4, OFF));
	EXPECT_TRUE(is_refused("127.0.0.1", port));
	EXPECT_EQ(0, receive_all(v4));
	EXPECT_EQ(0, receive_all(v6));
}

/* Nobody is chosen for these: every socket gets one. */
TEST(multicast_and_broadcast_are_not_governed)
{
	struct ip_mreqn mreq = { .imr_ifindex = 1 };
	union addr multicast, broadcast;
	int fd[2], tx, port, i;
	socklen_t len;

	ASSERT_EQ(0, enter_netns());
	fd[0] = open_member("0.0.0.0", SOCK_DGRAM, 0);
	ASSERT_LE(0, fd[0]);
	port = local_port(fd[0]);
	fd[1] = open_member_mode("0.0.0.0", SOCK_DGRAM, port, OFF);
	ASSERT_LE(0, fd[1]);
	make_addr(&multicast, "224.0.0.251", port);
	len = make_addr(&broadcast, "127.255.255.255", port);
	mreq.imr_multiaddr = multicast.in.sin_addr;
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, setsockopt(fd[i], IPPROTO_IP, IP_ADD_MEMBERSHIP,
					&mreq, sizeof(mreq)));
	tx = socket(AF_INET, SOCK_DGRAM, 0);
	ASSERT_LE(0, tx);
	ASSERT_EQ(0, set_int(tx, SOL_SOCKET, SO_BROADCAST, 1));
	ASSERT_EQ(0, setsockopt(tx, IPPROTO_IP, IP_MULTICAST_IF, &mreq,
				sizeof(mreq)));

	ASSERT_EQ(8, sendto(tx, "datagram", 8, 0, &multicast.sa, len));
	for (i = 0; i < 2; i++)
		EXPECT_LE(1, receive(fd[i], 1));
	ASSERT_EQ(8, sendto(tx, "datagram", 8, 0, &broadcast.sa, len));
	for (i = 0; i < 2; i++)
		EXPECT_LE(1, receive(fd[i], 1));
}

TEST_HARNESS_MAIN
