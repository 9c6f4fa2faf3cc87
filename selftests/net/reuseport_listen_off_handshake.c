// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF in the middle of a TCP handshake.
 *
 * The client is played by hand, so that a listener is switched off between
 * one segment and the next: between SYN and final ACK, with and without SYN
 * cookies, and with data in the SYN (Fast Open).
 */
#include "reuseport_listen_off_tun.h"

#include <sys/resource.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

FIXTURE(handshake)
{
	int tun;
	int port;
	int a, b;
};

FIXTURE_VARIANT(handshake)
{
	const struct path *path;
};

FIXTURE_VARIANT_ADD(handshake, ipv4)
{
	.path = &paths[IPV4],
};

FIXTURE_VARIANT_ADD(handshake, ipv6)
{
	.path = &paths[IPV6],
};

FIXTURE_VARIANT_ADD(handshake, ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
};

#define JOIN(mode)							\
	open_member_mode(variant->path->any, SOCK_STREAM, self->port, mode)

FIXTURE_SETUP(handshake)
{
	ASSERT_EQ(0, enter_netns());
	self->tun = open_tun();
	ASSERT_LE(0, self->tun);
	self->a = open_member(variant->path->any, SOCK_STREAM, 0);
	ASSERT_LE(0, self->a);
	self->port = local_port(self->a);
	self->b = JOIN(OFF);
	ASSERT_LE(0, self->b);
}

FIXTURE_TEARDOWN(handshake)
{
}

#define FLOW()	new_flow(self->tun, variant->path, self->port)

/* A goes OFF, and B takes over. */
#define HAND_OVER()							\
({									\
	ASSERT_EQ(0, set_mode(self->b, ON));				\
	ASSERT_EQ(0, set_mode(self->a, OFF));				\
})

/* Whether @listener has the flow's connection and it works both ways. */
static bool is_taken_by(int listener, struct flow *f)
{
	char c = 0;
	int child;
	bool ok;

	child = take(listener);
	if (child < 0)
		return false;
	ok = send_byte(f) == 0 && wait_for(recv(child, &c, 1, 0) == 1) &&
	     c == 'x' && wait_answer(f) == 0 && send(child, "y", 1, 0) == 1 &&
	     wait_answer(f) == 0;
	close(child);
	return ok;
}

TEST_F(handshake, final_ack_after_off)
{
	struct flow f = FLOW();

	ASSERT_EQ(0, send_syn(&f, "", 0));
	EXPECT_EQ(1, get_info(self->a).handshakes);
	HAND_OVER();
	EXPECT_EQ(1, get_info(self->a).handshakes);
	EXPECT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_FALSE(is_drained(self->a));
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_EQ(1, wait_queued(self->a, 1));
	EXPECT_EQ(0, get_info(self->a).handshakes);
	EXPECT_FALSE(is_drained(self->a));
	EXPECT_TRUE(is_taken_by(self->a, &f));
	/* by BPF one more grace period later */
	EXPECT_TRUE(enable_command() ? wait_for(is_drained(self->a)) :
				       is_drained(self->a));
	EXPECT_EQ(0, empty_queue(self->b));
}

TEST_F(handshake, final_ack_with_all_off)
{
	struct flow f = FLOW();

	ASSERT_EQ(0, send_syn(&f, "", 0));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_TRUE(is_taken_by(self->a, &f));
}

/* The same client asks again: it is on its way to A already. */
TEST_F(handshake, retransmitted_syn_after_off)
{
	struct flow f = FLOW(), again;

	again = f;
	ASSERT_EQ(0, send_syn(&f, "", 0));
	HAND_OVER();
	ASSERT_EQ(0, send_syn(&again, "", 0));
	EXPECT_EQ(f.ack, again.ack);
	EXPECT_EQ(1, get_info(self->a).handshakes);
	EXPECT_EQ(0, get_info(self->b).handshakes);
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_TRUE(is_taken_by(self->a, &f));
}

/* An OFF listener goes on asking for the final ACK. */
TEST_F(handshake, syn_ack_retransmitted_after_off)
{
	struct flow f = FLOW();
	__u32 seq, ack;

	ASSERT_EQ(0, send_syn(&f, "", 0));
	HAND_OVER();
	EXPECT_EQ(SYN | ACK, receive_segment(&f, WAIT_MS, &seq, &ack));
	EXPECT_EQ(f.ack, seq + 1);
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_TRUE(is_taken_by(self->a, &f));
}

TEST_F(handshake, reset_by_the_client_drains)
{
	struct flow f = FLOW();

	ASSERT_EQ(0, send_syn(&f, "", 0));
	HAND_OVER();
	EXPECT_EQ(1, get_info(self->a).handshakes);
	ASSERT_EQ(0, send_segment(&f, RST, "", 0));
	EXPECT_TRUE(wait_for(is_drained(self->a)));
}

TEST_F(handshake, syn_after_off)
{
	struct flow f = FLOW(), g = FLOW();

	HAND_OVER();
	ASSERT_EQ(0, send_syn(&f, "", 0));
	EXPECT_EQ(0, get_info(self->a).handshakes);
	EXPECT_EQ(1, get_info(self->b).handshakes);
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_TRUE(is_taken_by(self->b, &f));
	ASSERT_EQ(0, set_mode(self->b, OFF));
	EXPECT_EQ(-ECONNREFUSED, send_syn(&g, "", 0));
}

/* Where there is a choice, as many as make a lucky one unlikely. */
#define NR_FLOWS	8

/* Make the kernel forget each SYN, and have it answer that many. */
static int start_with_cookies(struct flow *f, int tun, const struct path *path,
			      int port)
{
	int i, ret;

	ret = write_file("/proc/sys/net/ipv4/tcp_syncookies", "2");
	for (i = 0; i < NR_FLOWS && !ret; i++) {
		f[i] = new_flow(tun, path, port);
		ret = send_syn(&f[i], "", 0);
	}
	return ret;
}

#define START_WITH_COOKIES(f)						\
	ASSERT_EQ(0, start_with_cookies(f, self->tun, variant->path,	\
					self->port))

/* Final ACKs, until @listener does not take one: how many it has taken. */
static int finish(struct flow *f, int listener)
{
	int n = 0;

	while (n < NR_FLOWS && send_ack(&f[n]) == 0 &&
	       is_taken_by(listener, &f[n]))
		n++;
	return n;
}

/* No listener holds the request: whoever is ON takes the ACK. */
TEST_F(handshake, cookie_of_a_taken_by_b)
{
	struct flow f[NR_FLOWS];

	START_WITH_COOKIES(f);
	EXPECT_EQ(0, get_info(self->a).handshakes);
	HAND_OVER();
	EXPECT_EQ(NR_FLOWS, finish(f, self->b));
	EXPECT_EQ(0, empty_queue(self->a));
}

TEST_F(handshake, cookie_of_a_taken_by_standby)
{
	struct flow f[NR_FLOWS];

	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_mode(self->b, STANDBY));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(NR_FLOWS, finish(f, self->b));
	EXPECT_EQ(0, empty_queue(self->a));
}

/* A restart: the one who takes it was not there when the cookie was sent. */
TEST_F(handshake, cookie_of_a_taken_by_newcomer)
{
	struct flow f[NR_FLOWS];
	int c;

	close(self->b);
	START_WITH_COOKIES(f);
	c = JOIN(ON);
	ASSERT_LE(0, c);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_EQ(NR_FLOWS, finish(f, c));
	EXPECT_EQ(0, empty_queue(self->a));
}

/* That cookies were sent is known to the group, to its larger copy, too. */
TEST_F(handshake, cookie_survives_growth)
{
	struct rlimit lim = { .rlim_cur = 1024, .rlim_max = 1024 };
	struct flow f[NR_FLOWS];
	int i;

	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lim));
	START_WITH_COOKIES(f);
	for (i = 0; i < 200; i++)
		ASSERT_LE(0, JOIN(OFF));
	HAND_OVER();
	EXPECT_EQ(NR_FLOWS, finish(f, self->b));
}

TEST_F(handshake, cookie_with_all_off_is_refused)
{
	struct flow f[NR_FLOWS];

	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_EQ(0, send_ack(&f[0]));
	EXPECT_EQ(-ECONNREFUSED, wait_answer(&f[0]));
	EXPECT_EQ(0, empty_queue(self->a));
	EXPECT_EQ(0, empty_queue(self->b));
}

/* ---- drained, with a cookie out ------------------------------------------ */

static bool has_cookies(int fd)
{
	struct reuseport_listen_info info = get_info(fd);

	return info.mode <= STANDBY && info.flags & REUSEPORT_LISTEN_F_COOKIES;
}

/* The ACK of a cookie is lost where nobody is ON who could take it, so long is
 * the listener that sent it not drained.
 */
TEST_F(handshake, cookie_out_with_all_off)
{
	struct flow f[NR_FLOWS];

	START_WITH_COOKIES(f);
	EXPECT_FALSE(has_cookies(self->a));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_EQ(0, get_info(self->a).handshakes);
	EXPECT_EQ(0, get_info(self->a).queued);
	EXPECT_TRUE(has_cookies(self->a));
	EXPECT_FALSE(is_drained(self->a));

	/* The stamp is the group's, and so is the flag. */
	EXPECT_TRUE(has_cookies(self->b));
	ASSERT_EQ(0, set_mode(self->a, STANDBY));
	EXPECT_TRUE(has_cookies(self->a));
	ASSERT_EQ(0, send_ack(&f[0]));
	EXPECT_TRUE(is_taken_by(self->a, &f[0]));
}

TEST_F(handshake, cookie_out_with_one_on)
{
	struct flow f[NR_FLOWS];

	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(has_cookies(self->a));
	ASSERT_EQ(0, set_mode(self->b, ON));
	EXPECT_FALSE(has_cookies(self->a));
	EXPECT_TRUE(wait_for(is_drained(self->a)));
	EXPECT_EQ(NR_FLOWS, finish(f, self->b));
	ASSERT_EQ(0, set_mode(self->b, OFF));
	EXPECT_TRUE(has_cookies(self->a));
}

/* A newcomer that is ON in another group knows nothing of the cookie. */
TEST_F(handshake, cookie_out_with_one_on_in_another_group)
{
	bool v6 = family_of(variant->path->dst) == AF_INET6;
	const char *specific = v6 ? SERVER_IPV6 : SERVER_IPV4;
	struct flow f[NR_FLOWS];
	__u32 seq, ack;
	int c;

	/* IPv4 on an IPv6 socket: a specific address of IPv4 is found first. */
	START_WITH_COOKIES(f);
	c = open_member(specific, SOCK_STREAM, self->port);
	ASSERT_LE(0, c);
	ASSERT_EQ(0, set_mode(self->a, OFF));
	ASSERT_TRUE(wait_for(is_settled(self->a)));
	EXPECT_TRUE(has_cookies(self->a));
	EXPECT_FALSE(is_drained(self->a));
	ASSERT_EQ(0, send_ack(&f[0]));
	/* As jiffies begins shortly before it wraps, a group that never sent a
	 * cookie believes in them for two minutes, five after boot.
	 */
	EXPECT_TRUE(wait_for(get_info(c).queued == 1 ||
			     receive_segment(&f[0], 1, &seq, &ack) == RST));
	EXPECT_EQ(0, get_info(self->a).queued);
}

/* A listener without a group sends cookies too, and then gets one. */
TEST_F(handshake, cookie_out_when_the_group_is_made)
{
	struct flow f[NR_FLOWS];

	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 0));
	close(self->a);
	close(self->b);
	self->a = socket(family_of(variant->path->any),
			 SOCK_STREAM | SOCK_NONBLOCK, 0);
	ASSERT_LE(0, self->a);
	ASSERT_EQ(0, join(self->a, variant->path->any, self->port));
	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 1));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(has_cookies(self->a));
	ASSERT_EQ(0, set_mode(self->a, ON));
	EXPECT_EQ(NR_FLOWS, finish(f, self->a));
}

/* A member without SO_REUSEPORT is still one, and so are its cookies. */
TEST_F(handshake, cookie_out_with_reuseport_cleared)
{
	struct flow f[NR_FLOWS];

	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 0));
	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 1));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_TRUE(has_cookies(self->a));
	EXPECT_TRUE(has_cookies(self->b));
	ASSERT_EQ(0, set_mode(self->b, ON));
	EXPECT_EQ(NR_FLOWS, finish(f, self->b));
}

/* Whether a listener that never sent a cookie believes in them. */
static bool never_is_recent(void)
{
	return now_ms() >= 298 * 1000 && now_ms() <= 421 * 1000;
}

TEST_F_TIMEOUT(handshake, cookie_out_when_reuseport_is_cleared, 160)
{
	struct flow f[NR_FLOWS];

	/* With BPF, the listener does not know of its group's cookies. */
	if (get_info(self->a).flags & REUSEPORT_LISTEN_F_BPF)
		while (never_is_recent())
			poll(NULL, 0, 100);
	START_WITH_COOKIES(f);
	ASSERT_EQ(0, set_int(self->a, SOL_SOCKET, SO_REUSEPORT, 0));
	EXPECT_EQ(NR_FLOWS, finish(f, self->a));
}

/* No cookie was sent, so there is none, whatever the time is. */
TEST_F(handshake, no_cookie_out)
{
	struct flow f = FLOW();

	ASSERT_EQ(0, send_syn(&f, "", 0));
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_TRUE(is_taken_by(self->a, &f));
	ASSERT_EQ(0, set_mode(self->a, OFF));
	EXPECT_FALSE(has_cookies(self->a));
	EXPECT_TRUE(wait_for(is_drained(self->a)));
}

/* Fast Open for all listeners, with data in the SYN and no cookie. */
static int fast_open(int fd)
{
	int ret = write_file("/proc/sys/net/ipv4/tcp_fastopen", "514");

	return ret ? ret : set_int(fd, IPPROTO_TCP, 23 /* TCP_FASTOPEN */, 16);
}

TEST_F(handshake, fast_open_goes_to_on)
{
	struct flow f = FLOW(), g = FLOW();
	char buf[8];
	int child;

	ASSERT_EQ(0, fast_open(self->a));
	ASSERT_EQ(0, fast_open(self->b));
	HAND_OVER();
	ASSERT_EQ(0, send_syn(&f, "data", 4));

	/* It is there before the handshake is over. */
	EXPECT_EQ(1, wait_queued(self->b, 1));
	child = take(self->b);
	ASSERT_LE(0, child);
	EXPECT_EQ(4, recv(child, buf, sizeof(buf), 0));
	ASSERT_EQ(0, send_ack(&f));
	EXPECT_EQ(0, empty_queue(self->a));
	EXPECT_EQ(0, get_info(self->a).handshakes);

	ASSERT_EQ(0, set_mode(self->b, OFF));
	EXPECT_EQ(-ECONNREFUSED, send_syn(&g, "data", 4));
}

TEST_F(handshake, fast_open_child_survives_off)
{
	struct flow f = FLOW();
	char buf[8];
	int child;

	ASSERT_EQ(0, fast_open(self->a));
	ASSERT_EQ(0, fast_open(self->b));
	ASSERT_EQ(0, send_syn(&f, "data", 4));
	EXPECT_EQ(1, wait_queued(self->a, 1));
	HAND_OVER();
	EXPECT_EQ(1, get_info(self->a).queued);
	EXPECT_FALSE(is_drained(self->a));
	child = take(self->a);
	ASSERT_LE(0, child);
	EXPECT_EQ(4, recv(child, buf, sizeof(buf), 0));
	ASSERT_EQ(0, send_ack(&f));
	ASSERT_EQ(0, send_byte(&f));
	EXPECT_TRUE(wait_for(recv(child, buf, sizeof(buf), 0) == 1));
	EXPECT_TRUE(wait_for(is_drained(self->a)));
	EXPECT_EQ(0, empty_queue(self->b));
}

TEST_HARNESS_MAIN
