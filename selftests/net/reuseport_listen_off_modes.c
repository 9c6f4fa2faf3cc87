// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF on TCP listeners: when the mode is set, who shares
 * it, what it is in the life of a socket, what getsockopt() tells.
 */
#include "reuseport_listen_off.h"

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

FIXTURE(modes)
{
	int port;
	int a;			/* the first member */
};

FIXTURE_VARIANT(modes)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(modes, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(modes, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(modes, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

FIXTURE_SETUP(modes)
{
	ASSERT_EQ(0, enter_netns());
	self->a = open_member(variant->path->bind, SOCK_STREAM, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	ASSERT_LT(0, self->port);
}

FIXTURE_TEARDOWN(modes)
{
}

/* Another member of the group. */
#define JOIN(mode)							\
	open_member_mode(variant->path->bind, SOCK_STREAM, self->port, mode)

#define DIAL()	dial(variant->path->dst, SOCK_STREAM, self->port)

TEST_F(modes, lone_listener_off_refuses)
{
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(-ECONNREFUSED, DIAL());
	ASSERT_EQ(0, set_mode(self->a, ON));
	EXPECT_LE(0, DIAL());
}

TEST_F(modes, mode_before_bind)
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

TEST_F(modes, mode_before_listen)
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

TEST_F(modes, listen_again_keeps_the_mode)
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
TEST_F(modes, newcomer_joins_an_off_group)
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
TEST_F(modes, off_does_not_free_the_port)
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

TEST_F(modes, dup_shares_the_mode)
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

TEST_F(modes, fork_shares_the_mode)
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

TEST_F(modes, passed_listener_shares_the_mode)
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

TEST_F(modes, fetched_listener_shares_the_mode)
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

/* A child that became a listener by disconnecting is one like any other. */
TEST_F(modes, disconnected_child_starts_on)
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

TEST_F(modes, reuseport_cleared_before_listen)
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
TEST_F(modes, reuseport_cleared_beside_wildcard)
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
TEST_F(modes, reuseport_set_after_listen)
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

TEST_F(modes, info_counts)
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

TEST_F(modes, partial_getsockopt)
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

TEST_F(modes, without_reuseport)
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

TEST_F(modes, connected_socket)
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

TEST_HARNESS_MAIN
