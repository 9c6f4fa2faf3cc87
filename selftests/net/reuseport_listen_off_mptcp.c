// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF on MPTCP listeners: the first subflow, which is the
 * listener that lookups find, gets and tells the mode.
 */
#include "reuseport_listen_off.h"

#include "../kselftest_harness.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP	262
#endif

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

static int open_mptcp(const char *ip, int port, int mode)
{
	int fd = new_member_proto(ip, SOCK_STREAM, IPPROTO_MPTCP), err;

	if (fd < 0)
		return fd;
	err = mode == ON ? 0 : set_mode(fd, mode);
	if (!err)
		err = join(fd, ip, port);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

static int dial_mptcp(const char *ip, int port)
{
	int fd = socket(family_of(ip), SOCK_STREAM | SOCK_CLOEXEC,
			IPPROTO_MPTCP), err;
	union addr a;
	socklen_t len = make_addr(&a, ip, port);

	if (fd < 0)
		return -errno;
	if (connect(fd, &a.sa, len)) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

FIXTURE(mptcp)
{
	int port;
	int fd[2];
};

FIXTURE_VARIANT(mptcp)
{
	const struct path *path;
	bool plain;		/* the clients speak TCP */
};

FIXTURE_VARIANT_ADD(mptcp, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(mptcp, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(mptcp, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_VARIANT_ADD(mptcp, plain_tcp_client)
{
	.path = &paths[IPV4],
	.plain = true,
};

FIXTURE_SETUP(mptcp)
{
	int i;

	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < 2; i++) {
		self->fd[i] = open_mptcp(variant->path->bind, self->port, ON);
		if (self->fd[i] == -EPROTONOSUPPORT)
			SKIP(return, "no MPTCP");
		ASSERT_LE(0, self->fd[i]);
		self->port = local_port(self->fd[0]);
	}
}

FIXTURE_TEARDOWN(mptcp)
{
}

#define DIAL()								\
	(variant->plain ?						\
	 dial(variant->path->dst, SOCK_STREAM, self->port) :		\
	 dial_mptcp(variant->path->dst, self->port))

TEST_F(mptcp, off_member_gets_nothing)
{
	int i, n;

	EXPECT_EQ(ON, get_mode(self->fd[0]));
	ASSERT_EQ(0, set_mode(self->fd[0], OFF));
	EXPECT_EQ(OFF, get_mode(self->fd[0]));
	EXPECT_EQ(ON, get_mode(self->fd[1]));
	for (i = 0; i < NR_CLIENTS; i++)
		ASSERT_LE(0, DIAL());
	n = 0;
	EXPECT_TRUE(wait_for((n += empty_queue(self->fd[1])) >= NR_CLIENTS));
	EXPECT_EQ(0, empty_queue(self->fd[0]));

	ASSERT_EQ(0, set_mode(self->fd[0], ON));
	ASSERT_EQ(0, set_mode(self->fd[1], OFF));
	ASSERT_LE(0, DIAL());
	EXPECT_LE(0, take(self->fd[0]));
	ASSERT_EQ(0, set_mode(self->fd[0], OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
}

TEST_F(mptcp, info)
{
	struct reuseport_listen_info info;

	ASSERT_EQ(0, set_mode(self->fd[0], STANDBY));
	ASSERT_LE(0, DIAL());
	EXPECT_EQ(1, wait_queued(self->fd[1], 1));
	info = get_info(self->fd[1]);
	EXPECT_EQ(ON, info.mode);
	EXPECT_EQ(1, info.group_on);
	EXPECT_EQ(1, info.group_standby);
	EXPECT_EQ(0, info.group_off);
	EXPECT_EQ(info.group_id, get_info(self->fd[0]).group_id);
}

TEST_F(mptcp, accept_queue_survives)
{
	int i, child;

	ASSERT_EQ(0, set_mode(self->fd[1], OFF));
	for (i = 0; i < 8; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(8, wait_queued(self->fd[0], 8));
	ASSERT_EQ(0, set_mode(self->fd[1], ON));
	ASSERT_EQ(0, set_mode(self->fd[0], OFF));
	for (i = 0; i < 8; i++) {
		child = take(self->fd[0]);
		ASSERT_LE(0, child);
		EXPECT_EQ(1, send(child, "x", 1, 0));
	}
	EXPECT_TRUE(wait_for(is_drained(self->fd[0])));
}

TEST_F(mptcp, mode_before_bind)
{
	int fd = open_mptcp(variant->path->bind, self->port, OFF), i;

	ASSERT_LE(0, fd);
	EXPECT_EQ(OFF, get_mode(fd));
	EXPECT_EQ(1, get_info(self->fd[0]).group_off);
	ASSERT_EQ(0, listen(fd, 64));
	EXPECT_EQ(OFF, get_mode(fd));
	for (i = 0; i < 16; i++)
		ASSERT_LE(0, DIAL());
	EXPECT_EQ(0, get_info(fd).queued);
	EXPECT_EQ(0, empty_queue(fd));
}

TEST_F(mptcp, accepted_child_and_errors)
{
	int child, fd;

	ASSERT_EQ(0, set_mode(self->fd[1], OFF));
	ASSERT_LE(0, DIAL());
	child = take(self->fd[0]);
	ASSERT_LE(0, child);
	EXPECT_EQ(-EINVAL, set_mode(child, OFF));
	EXPECT_EQ(ON, get_mode(child));

	EXPECT_EQ(-EINVAL, set_mode(self->fd[0], STANDBY + 1));
	EXPECT_EQ(-EINVAL, set_mode(self->fd[0], -1));
	fd = socket(family_of(variant->path->bind), SOCK_STREAM,
		    IPPROTO_MPTCP);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EINVAL, set_mode(fd, OFF));
}

TEST_HARNESS_MAIN
