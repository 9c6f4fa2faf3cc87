// SPDX-License-Identifier: GPL-2.0
/*
 * INET_DIAG_REUSEPORT: sock_diag shows what getsockopt() tells the owner of
 * a TCP listener or an unconnected UDP socket, to who has not the socket.
 */
#include "reuseport_listen_off.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stddef.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP	262
#endif
#define TCPF_LISTEN	0x400	/* of the states a dump is asked for */
#define ALL_STATES	(~0U)

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

struct request {
	struct nlmsghdr nlh;
	struct inet_diag_req_v2 req;
	struct nlattr attr;	/* a protocol beyond what req has room for */
	uint32_t proto;
};

/* What the kernel answered for one socket. */
struct answer {
	struct inet_diag_msg msg;
	int nr_attrs;		/* how many of INET_DIAG_REUSEPORT */
	int len;		/* the payload of the last of them */
	struct reuseport_listen_info info;
};

static void parse(const struct nlmsghdr *nlh, struct answer *answer)
{
	const struct inet_diag_msg *msg = NLMSG_DATA(nlh);
	const struct nlattr *attr;
	int left = nlh->nlmsg_len - NLMSG_LENGTH(sizeof(*msg));

	memset(answer, 0, sizeof(*answer));
	answer->msg = *msg;
	attr = (const void *)(msg + 1);
	while (left >= (int)NLA_HDRLEN && attr->nla_len >= NLA_HDRLEN &&
	       attr->nla_len <= left) {
		if ((attr->nla_type & NLA_TYPE_MASK) == INET_DIAG_REUSEPORT) {
			answer->nr_attrs++;
			answer->len = attr->nla_len - NLA_HDRLEN;
			if (answer->len >= (int)sizeof(answer->info))
				memcpy(&answer->info,
				       (const char *)attr + NLA_HDRLEN,
				       sizeof(answer->info));
		}
		left -= NLA_ALIGN(attr->nla_len);
		attr = (const void *)((const char *)attr +
				      NLA_ALIGN(attr->nla_len));
	}
}

static unsigned int inode_of(int fd)
{
	char path[32], target[64] = "";
	unsigned int inode = 0;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof(target) - 1) < 0 ||
	    sscanf(target, "socket:[%u]", &inode) != 1)
		return 0;
	return inode;
}

/* Ask for all sockets of a protocol, take the answer about @fd. */
static int dump(int family, int proto, unsigned int states, int fd,
		struct answer *answer)
{
	struct request request = {
		.nlh.nlmsg_len = sizeof(request),
		.nlh.nlmsg_type = SOCK_DIAG_BY_FAMILY,
		.nlh.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		.req.sdiag_family = family,
		.req.sdiag_protocol = proto,
		.req.idiag_states = states,
		.attr.nla_len = NLA_HDRLEN + sizeof(request.proto),
		.attr.nla_type = INET_DIAG_REQ_PROTOCOL,
		.proto = proto,
	};
	unsigned int inode = inode_of(fd);
	static union {
		struct nlmsghdr nlh;
		char data[65536];
	} buf;
	struct nlmsghdr *nlh;
	int nl, len, ret = -ENOENT;

	nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (nl < 0)
		return -errno;
	if (send(nl, &request, sizeof(request), 0) != sizeof(request)) {
		ret = -errno;
		goto out;
	}
	for (;;) {
		len = recv(nl, &buf, sizeof(buf), 0);
		if (len < 0) {
			ret = -errno;
			goto out;
		}
		for (nlh = &buf.nlh; NLMSG_OK(nlh, len);
		     nlh = NLMSG_NEXT(nlh, len)) {
			struct inet_diag_msg *msg = NLMSG_DATA(nlh);

			if (nlh->nlmsg_type == NLMSG_DONE)
				goto out;
			if (nlh->nlmsg_type == NLMSG_ERROR) {
				ret = *(int *)NLMSG_DATA(nlh);
				goto out;
			}
			if (inode && msg->idiag_inode == inode) {
				parse(nlh, answer);
				ret = 0;
			}
		}
	}
out:
	close(nl);
	return ret;
}

/* Ask for the one socket that was found before. UDP wants to be told of a
 * datagram, which goes from source to destination.
 */
static int look_up(int proto, const struct answer *found,
		   struct answer *answer)
{
	struct request request = {
		.nlh.nlmsg_len = offsetof(struct request, attr),
		.nlh.nlmsg_type = SOCK_DIAG_BY_FAMILY,
		.nlh.nlmsg_flags = NLM_F_REQUEST,
		.req.sdiag_family = found->msg.idiag_family,
		.req.sdiag_protocol = proto,
		.req.idiag_states = ALL_STATES,
		.req.id = found->msg.id,
	};
	static union {
		struct nlmsghdr nlh;
		char data[8192];
	} buf;
	struct nlmsghdr *nlh = &buf.nlh;
	int nl, len, ret = 0;

	if (proto == IPPROTO_UDP) {
		memcpy(request.req.id.idiag_src, found->msg.id.idiag_dst, 16);
		memcpy(request.req.id.idiag_dst, found->msg.id.idiag_src, 16);
		request.req.id.idiag_sport = found->msg.id.idiag_dport;
		request.req.id.idiag_dport = found->msg.id.idiag_sport;
	}
	nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (nl < 0)
		return -errno;
	if (send(nl, &request, request.nlh.nlmsg_len, 0) < 0)
		ret = -errno;
	len = ret ? ret : recv(nl, &buf, sizeof(buf), 0);
	if (len < 0)
		ret = len;
	else if (!NLMSG_OK(nlh, len))
		ret = -EBADMSG;
	else if (nlh->nlmsg_type == NLMSG_ERROR)
		ret = *(int *)NLMSG_DATA(nlh);
	else
		parse(nlh, answer);
	close(nl);
	return ret;
}

FIXTURE(diag)
{
	int port;
	int proto;
	int family;
	int member[3];		/* ON, STANDBY, OFF */
};

FIXTURE_VARIANT(diag)
{
	const struct path *path;
	int type;
};

FIXTURE_VARIANT_ADD(diag, tcp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(diag, tcp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(diag, udp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_DGRAM,
};

FIXTURE_VARIANT_ADD(diag, udp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_DGRAM,
};

FIXTURE_SETUP(diag)
{
	static const int mode[] = { ON, STANDBY, OFF };
	int i;

	self->proto = variant->type == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP;
	self->family = family_of(variant->path->bind);
	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < 3; i++) {
		self->member[i] = open_member_mode(variant->path->bind,
						   variant->type, self->port,
						   mode[i]);
		ASSERT_LE(0, self->member[i]);
		self->port = local_port(self->member[0]);
		ASSERT_NE(0, inode_of(self->member[i]));
	}
}

FIXTURE_TEARDOWN(diag)
{
}

#define DUMP(states, fd, answer)					\
	dump(self->family, self->proto, states, fd, answer)

TEST_F(diag, shows_what_getsockopt_tells)
{
	struct reuseport_listen_info info;
	struct answer answer;
	int i;

	for (i = 0; i < 3; i++)
		EXPECT_TRUE(wait_for(is_settled(self->member[i])));
	ASSERT_LE(0, dial(variant->path->dst, variant->type, self->port));
	if (variant->type == SOCK_STREAM)
		EXPECT_EQ(1, wait_queued(self->member[0], 1));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, DUMP(ALL_STATES, self->member[i], &answer));
		EXPECT_EQ(1, answer.nr_attrs);
		EXPECT_EQ(sizeof(info), answer.len);
		info = get_info(self->member[i]);
		EXPECT_EQ(0, memcmp(&info, &answer.info, sizeof(info)))
			TH_LOG("mode %u, of getsockopt() %u",
			       answer.info.mode, info.mode);
	}
	EXPECT_EQ(1, answer.info.group_on);
	EXPECT_EQ(1, answer.info.group_standby);
	EXPECT_EQ(1, answer.info.group_off);
	EXPECT_EQ(OFF, answer.info.mode);

	ASSERT_EQ(0, set_mode(self->member[2], ON));
	ASSERT_EQ(0, DUMP(ALL_STATES, self->member[2], &answer));
	EXPECT_EQ(ON, answer.info.mode);
	EXPECT_EQ(2, answer.info.group_on);
	EXPECT_EQ(0, answer.info.group_off);
}

/* To one without any privilege, too. */
TEST_F(diag, without_privilege)
{
	struct answer answer;

	ASSERT_EQ(0, seteuid(65534));
	ASSERT_EQ(0, DUMP(ALL_STATES, self->member[2], &answer));
	EXPECT_EQ(1, answer.nr_attrs);
	EXPECT_EQ(OFF, answer.info.mode);
}

/* An exact lookup asks for a socket by name, and OFF ones have a name. */
TEST_F(diag, exact_lookup)
{
	struct answer found, answer;
	int i;

	for (i = 1; i < 3; i++)
		close(self->member[i]);
	ASSERT_EQ(0, DUMP(ALL_STATES, self->member[0], &found));
	ASSERT_EQ(0, look_up(self->proto, &found, &answer));
	EXPECT_EQ(found.msg.idiag_inode, answer.msg.idiag_inode);
	EXPECT_EQ(1, answer.nr_attrs);
	EXPECT_EQ(ON, answer.info.mode);
}

TEST_F(diag, connected_sockets_have_none)
{
	int client = dial(variant->path->dst, variant->type, self->port);
	struct answer answer;
	int child;

	ASSERT_LE(0, client);
	ASSERT_EQ(0, DUMP(ALL_STATES, client, &answer));
	EXPECT_EQ(0, answer.nr_attrs);
	if (variant->type != SOCK_STREAM)
		return;
	child = take(self->member[0]);
	ASSERT_LE(0, child);
	ASSERT_EQ(0, DUMP(ALL_STATES, child, &answer));
	EXPECT_EQ(0, answer.nr_attrs);
}

/* What an MPTCP listener has is reported of the subflow. */
TEST_F(diag, mptcp_listener_has_none)
{
	struct answer answer;
	int fd;

	/* By BPF no socket has it. */
	if (variant->type != SOCK_STREAM || enable_command())
		return;
	fd = new_member_proto(variant->path->bind, SOCK_STREAM, IPPROTO_MPTCP);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, join(fd, variant->path->bind, 0));
	ASSERT_EQ(0, dump(self->family, IPPROTO_MPTCP, TCPF_LISTEN, fd,
			  &answer));
	EXPECT_EQ(0, answer.nr_attrs);
}

TEST_F(diag, handshakes)
{
	struct answer answer;

	if (variant->type != SOCK_STREAM)
		return;
	ASSERT_EQ(0, set_int(self->member[0], IPPROTO_TCP,
			     9 /* TCP_DEFER_ACCEPT */, 30));
	ASSERT_LE(0, dial(variant->path->dst, variant->type, self->port));
	EXPECT_TRUE(wait_for(get_info(self->member[0]).handshakes == 1));
	ASSERT_EQ(0, set_mode(self->member[0], OFF));
	ASSERT_EQ(0, DUMP(TCPF_LISTEN, self->member[0], &answer));
	EXPECT_EQ(1, answer.info.handshakes);
	EXPECT_EQ(0, answer.info.queued);
	EXPECT_EQ(OFF, answer.info.mode);
	EXPECT_EQ(2, answer.info.group_off);
}

TEST_HARNESS_MAIN
