// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF and the programs that choose a socket.
 *
 * A program which returns an index chooses among the members that can be
 * chosen; one which names an OFF member fails as for a closed one; one which
 * hands over a socket outright, with no lookup, is obeyed.
 */
#include "reuseport_listen_off_bpf.h"
#include "reuseport_listen_off_udp.h"

#include <pthread.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NR_MEMBERS	5

/* BPF_SK_REUSEPORT_F_FLOW, which is an enum of the header where it is known */
#define F_FLOW		1
#define F_UNKNOWN	2

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

static int attach_to_netns(const struct bpf_prog_desc *prog)
{
	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), ret;

	if (netns < 0)
		return -errno;
	ret = skel_link_create(prog->prog_fd, netns, BPF_SK_LOOKUP);
	if (ret < 0)
		ret = -errno;
	close(netns);
	return ret;
}

/* How many of the indexes below @n reach a member that no other one reaches,
 * which has mode @mode, and no other member ever.
 */
static int reach_by_index(const struct path *path, int type, int port,
			  const int *member, int n, int mode)
{
	unsigned int reached = 0;
	int i, j, who, ret = 0;

	for (i = 0; i < n; i++) {
		if (attach_index(member[0], i))
			continue;
		who = who_gets(path, type, port, member, NR_MEMBERS);
		if (who < 0 || reached & 1U << who ||
		    get_mode(member[who]) != mode)
			continue;
		reached |= 1U << who;
		for (j = 0; j < 8; j++)
			if (who_gets(path, type, port, member, NR_MEMBERS) !=
			    who)
				break;
		ret += j == 8;
	}
	return ret;
}

FIXTURE(bpf)
{
	int port;
	int member[NR_MEMBERS];
};

FIXTURE_VARIANT(bpf)
{
	const struct path *path;
	int type;
};

FIXTURE_VARIANT_ADD(bpf, tcp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(bpf, tcp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(bpf, tcp_ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
	.type = SOCK_STREAM,
};

FIXTURE_VARIANT_ADD(bpf, udp_ipv4)
{
	.path = &paths[IPV4],
	.type = SOCK_DGRAM,
};

FIXTURE_VARIANT_ADD(bpf, udp_ipv6)
{
	.path = &paths[IPV6],
	.type = SOCK_DGRAM,
};

FIXTURE_VARIANT_ADD(bpf, udp_ipv4_on_ipv6)
{
	.path = &paths[IPV4_ON_IPV6],
	.type = SOCK_DGRAM,
};

FIXTURE_SETUP(bpf)
{
	int i;

	ASSERT_EQ(0, enter_netns());
	for (i = 0; i < NR_MEMBERS; i++) {
		self->member[i] = open_member(variant->path->bind,
					      variant->type, self->port);
		ASSERT_LE(0, self->member[i]);
		if (i == 0)
			self->port = local_port(self->member[0]);
	}
}

FIXTURE_TEARDOWN(bpf)
{
}

#define WHO()								\
	who_gets(variant->path, variant->type, self->port, self->member,\
		 NR_MEMBERS)

#define REACHED(n, mode)						\
	reach_by_index(variant->path, variant->type, self->port,	\
		       self->member, n, mode)

TEST_F_TIMEOUT(bpf, index_counts_those_which_can_be_chosen, 120)
{
	int i, who;

	EXPECT_EQ(NR_MEMBERS, REACHED(NR_MEMBERS, ON));
	ASSERT_EQ(0, set_mode(self->member[1], OFF));
	EXPECT_EQ(NR_MEMBERS - 1, REACHED(NR_MEMBERS - 1, ON));
	ASSERT_EQ(0, set_mode(self->member[0], OFF));
	EXPECT_EQ(NR_MEMBERS - 2, REACHED(NR_MEMBERS - 2, ON));
	ASSERT_EQ(0, set_mode(self->member[3], STANDBY));
	EXPECT_EQ(NR_MEMBERS - 3, REACHED(NR_MEMBERS - 3, ON));

	/* Beyond the end: by hash, as without a program. */
	ASSERT_EQ(0, attach_index(self->member[0], NR_MEMBERS - 3));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO();
		EXPECT_TRUE(who == 2 || who == 4);
	}

	ASSERT_EQ(0, set_mode(self->member[1], ON));
	EXPECT_EQ(NR_MEMBERS - 2, REACHED(NR_MEMBERS - 2, ON));
}

TEST_F(bpf, index_counts_standby_without_on)
{
	ASSERT_EQ(0, set_mode(self->member[0], OFF));
	ASSERT_EQ(0, set_mode(self->member[1], STANDBY));
	ASSERT_EQ(0, set_mode(self->member[2], STANDBY));
	ASSERT_EQ(0, set_mode(self->member[3], OFF));
	EXPECT_EQ(1, REACHED(1, ON));
	ASSERT_EQ(0, set_mode(self->member[4], STANDBY));
	EXPECT_EQ(3, REACHED(3, STANDBY));
}

/* A flow cannot be chosen, by an index neither. */
TEST_F(bpf, index_passes_over_flows)
{
	const struct path *p = variant->path;
	int i, client;
	union addr addr;
	socklen_t len;

	/* A socket that is bound to any address leaves its group. */
	if (variant->type != SOCK_DGRAM || p == &paths[IPV4_ON_IPV6])
		return;
	client = dial(p->dst, SOCK_DGRAM, self->port);
	ASSERT_LE(0, client);
	len = make_addr(&addr, p->dst, local_port(client));
	for (i = 1; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], STANDBY));
	ASSERT_EQ(0, connect(self->member[0], &addr.sa, len));
	EXPECT_EQ(get_info(self->member[1]).group_id,
		  get_info(self->member[0]).group_id);
	EXPECT_EQ(NR_MEMBERS - 1, REACHED(NR_MEMBERS - 1, STANDBY));
	ASSERT_EQ(0, set_mode(self->member[1], ON));
	EXPECT_EQ(1, REACHED(1, ON));
	ASSERT_EQ(8, send(client, "datagram", 8, 0));
	EXPECT_EQ(1, receive(self->member[0], 1));
}

TEST_F(bpf, index_with_all_off)
{
	int i;

	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	for (i = 0; i <= NR_MEMBERS; i++) {
		ASSERT_EQ(0, attach_index(self->member[0], i));
		EXPECT_EQ(-ECONNREFUSED, WHO());
	}
}

/* The program stays with the group whatever the modes are. */
TEST_F(bpf, mode_changes_keep_the_program)
{
	int i, j, who;

	ASSERT_EQ(0, attach_index(self->member[0], 0));
	for (i = 0; i < NR_MEMBERS; i++) {
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
		ASSERT_EQ(0, set_mode(self->member[i], STANDBY));
		ASSERT_EQ(0, set_mode(self->member[i], ON));
		who = WHO();
		ASSERT_LE(0, who);
		for (j = 0; j < 8; j++)
			EXPECT_EQ(who, WHO());
	}
}

TEST_F(bpf, selecting_an_off_member_is_enoent)
{
	struct programs *skel = programs__open_and_load();
	int i, who;

	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, self->member[2]));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_one.prog_fd));

	for (i = 0; i < 8; i++) {
		EXPECT_EQ(2, WHO());
		EXPECT_EQ(0, skel->bss->answer);
	}

	/* Named or not, it gets nothing; by hash then, as without a choice. */
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO();
		EXPECT_LE(0, who);
		ASSERT_NE(2, who);
		ASSERT_EQ(-ENOENT, skel->bss->answer);
	}

	ASSERT_EQ(0, set_mode(self->member[2], ON));
	EXPECT_EQ(2, WHO());
	EXPECT_EQ(0, skel->bss->answer);

	/* A STANDBY member without an ON one can be named, too. */
	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], STANDBY));
	EXPECT_EQ(2, WHO());
	EXPECT_EQ(0, skel->bss->answer);

	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	EXPECT_EQ(-ECONNREFUSED, WHO());
}

/* A program may know what belongs to a flow of a UDP socket, whose mode is
 * about new ones.  A TCP connection that begins is always new.
 */
TEST_F_TIMEOUT(bpf, selecting_for_a_flow, 120)
{
	const bool udp = variant->type == SOCK_DGRAM;
	static const int modes[] = { OFF, STANDBY };
	struct programs *skel;
	int i, j, who;

	skel = programs__open_and_load();
	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, self->member[2]));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_one.prog_fd));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, set_mode(self->member[2], modes[i]));
		skel->bss->select_flags = F_UNKNOWN;
		for (j = 0; j < NR_CLIENTS; j++) {
			who = WHO();
			EXPECT_LE(0, who);
			ASSERT_NE(2, who);
			ASSERT_EQ(-ENOENT, skel->bss->answer);
		}
		skel->bss->select_flags = F_FLOW;
		for (j = 0; j < NR_CLIENTS; j++) {
			who = WHO();
			EXPECT_LE(0, who);
			ASSERT_EQ(udp, who == 2);
			ASSERT_EQ(udp ? 0 : -ENOENT, skel->bss->answer);
		}
	}

	/* Whom it names gets it even if there is nobody else. */
	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	EXPECT_EQ(udp ? 2 : -ECONNREFUSED, WHO());
	skel->bss->select_flags = 0;
	EXPECT_EQ(-ECONNREFUSED, WHO());
	EXPECT_EQ(-ENOENT, skel->bss->answer);
	skel->bss->select_flags = F_FLOW;
	EXPECT_EQ(udp ? 2 : -ECONNREFUSED, WHO());

	/* A closed one is no member, and has no flow. */
	close(self->member[2]);
	self->member[2] = -1;
	ASSERT_EQ(0, set_mode(self->member[4], ON));
	EXPECT_EQ(4, WHO());
	EXPECT_EQ(-ENOENT, skel->bss->answer);
}

/* A socket whose SO_REUSEPORT was cleared does not ask its group: that is not
 * to say that the group has nobody.
 */
TEST_F(bpf, selecting_beside_cleared_members)
{
	const bool udp = variant->type == SOCK_DGRAM;
	struct programs *skel;
	int i;

	skel = programs__open_and_load();
	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, self->member[2]));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_one.prog_fd));
	skel->bss->select_flags = F_FLOW;
	for (i = 0; i < NR_MEMBERS; i++) {
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
		if (i != 2)
			ASSERT_EQ(0, set_int(self->member[i], SOL_SOCKET,
					     SO_REUSEPORT, 0));
	}
	EXPECT_EQ(udp ? 2 : -ECONNREFUSED, WHO());
}

/* If no member can be chosen, a program is asked for flows alone.  What it
 * refuses then is not refused: a wildcard socket gets it.
 */
TEST_F(bpf, selecting_in_a_closed_group)
{
	const bool udp = variant->type == SOCK_DGRAM;
	const struct path *p = variant->path;
	struct programs *skel;
	int fds[3], port, i;

	skel = programs__open_and_load();
	ASSERT_NE(NULL, skel);
	fds[2] = open_member(p->any, variant->type, 0);
	ASSERT_LE(0, fds[2]);
	port = local_port(fds[2]);
	for (i = 0; i < 2; i++) {
		fds[i] = open_member(p->specific, variant->type, port);
		ASSERT_LE(0, fds[i]);
	}
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, fds[0]));
	ASSERT_EQ(0, set_int(fds[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_one.prog_fd));
	skel->bss->refuse = true;

	ASSERT_EQ(0, set_mode(fds[0], OFF));
	EXPECT_EQ(-ECONNREFUSED, who_gets(p, variant->type, port, fds, 3));
	skel->bss->select_flags = F_FLOW;
	EXPECT_EQ(udp ? 0 : -ECONNREFUSED,
		  who_gets(p, variant->type, port, fds, 3));

	ASSERT_EQ(0, set_mode(fds[1], OFF));
	EXPECT_EQ(udp ? 0 : 2, who_gets(p, variant->type, port, fds, 3));
	skel->bss->select_flags = 0;
	EXPECT_EQ(2, who_gets(p, variant->type, port, fds, 3));
}

/* What select_one is told when a datagram comes; 1 if none does.  One that was
 * sent need not have come: ksoftirqd may have to bring it.
 */
static long long answer_to_one(struct programs *skel, const struct path *path,
			       int port)
{
	long long *answer = (long long *)&skel->bss->answer;
	int err;

	*answer = 1;
	err = send_one(path->dst, port);
	if (err)
		return err;
	wait_for(__atomic_load_n(answer, __ATOMIC_RELAXED) != 1);
	return *answer;
}

/* A connected socket is a flow, which a mode does not govern: one can name it,
 * as on any kernel.
 */
TEST_F(bpf, selecting_a_connected_socket)
{
	struct programs *skel;
	union addr addr;
	socklen_t len;
	int client;

	/* An address that connect() changes would take it out of the map. */
	if (variant->type != SOCK_DGRAM ||
	    variant->path == &paths[IPV4_ON_IPV6])
		return;
	skel = programs__open_and_load();
	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_select, self->member[2]));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.select_one.prog_fd));
	client = dial(variant->path->dst, SOCK_DGRAM, self->port);
	ASSERT_LE(0, client);
	len = make_addr(&addr, variant->path->dst, local_port(client));
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	EXPECT_EQ(-ENOENT, answer_to_one(skel, variant->path, self->port));
	ASSERT_EQ(0, connect(self->member[2], &addr.sa, len));
	/* Some kernels have taken it out of the map by now. */
	name_socket(&skel->maps.to_select, self->member[2]);
	EXPECT_EQ(0, answer_to_one(skel, variant->path, self->port));
}

/* ---- a lookup does not wait for changes --------------------------------- */

#define NR_DATAGRAMS	1000

struct flipper {
	pthread_t thread;
	int fd;
	bool *stop;
	long flips;
};

static void *flip(void *arg)
{
	struct flipper *f = arg;

	while (!__atomic_load_n(f->stop, __ATOMIC_ACQUIRE)) {
		if (set_mode(f->fd, f->flips & 1 ? OFF : STANDBY))
			break;
		f->flips++;
	}
	return NULL;
}

/* However fast others flip, a program runs once for each choice. */
TEST_F_TIMEOUT(bpf, program_runs_once, 120)
{
	struct flipper f = { .fd = self->member[1] };
	struct programs *skel;
	bool stop = false;
	int i, n = 0;

	if (variant->type != SOCK_DGRAM)
		return;
	skel = programs__open_and_load();
	ASSERT_NE(NULL, skel);
	for (i = 1; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF,
			     skel->progs.count.prog_fd));
	f.stop = &stop;
	ASSERT_EQ(0, pthread_create(&f.thread, NULL, flip, &f));
	wait_for(__atomic_load_n(&f.flips, __ATOMIC_RELAXED) > 2);
	for (i = 0; i < NR_DATAGRAMS; i++) {
		if (send_one(variant->path->dst, self->port))
			break;
		n += receive_all(self->member[0]);
	}
	n += receive(self->member[0], i - n);
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	pthread_join(f.thread, NULL);
	TH_LOG("%ld changes, %llu runs", f.flips, skel->bss->runs);
	EXPECT_EQ(NR_DATAGRAMS, n);
	EXPECT_EQ(NR_DATAGRAMS, skel->bss->runs);
}

TEST_F(bpf, sk_lookup_naming_an_off_member_is_obeyed)
{
	struct programs *skel = programs__open_and_load();
	int link, i;

	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_assign, self->member[2]));
	skel->bss->assign_flags = BPF_SK_LOOKUP_F_NO_REUSEPORT;
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	EXPECT_NE(2, WHO());
	link = attach_to_netns(&skel->progs.assign);
	ASSERT_LE(0, link);
	for (i = 0; i < 8; i++)
		EXPECT_EQ(2, WHO());
	close(link);
	EXPECT_NE(2, WHO());
}

/* Naming it and asking for its group: the group chooses, if it can. */
TEST_F(bpf, sk_lookup_naming_the_group)
{
	struct programs *skel = programs__open_and_load();
	int link, i, who;

	ASSERT_NE(NULL, skel);
	ASSERT_EQ(0, name_socket(&skel->maps.to_assign, self->member[2]));
	link = attach_to_netns(&skel->progs.assign);
	ASSERT_LE(0, link);
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO();
		EXPECT_LE(0, who);
		EXPECT_NE(2, who);
	}
	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(2, WHO());
}

/* A program attached before bind() stays, although SO_REUSEPORT is cleared when
 * the socket begins to listen; others may join it once that is set again.
 */
TEST(program_stays_with_reuseport_cleared)
{
	const struct path *p;
	int a, b, i;

	ASSERT_EQ(0, enter_netns());
	for (p = paths; p < paths + NR_PATHS; p++) {
		a = new_member(p->bind, SOCK_STREAM);
		ASSERT_LE(0, a);
		ASSERT_EQ(0, attach_index(a, 1));
		ASSERT_EQ(0, set_int(a, SOL_SOCKET, SO_REUSEPORT, 0));
		ASSERT_EQ(0, join(a, p->bind, 0));
		ASSERT_EQ(0, set_int(a, SOL_SOCKET, SO_REUSEPORT, 1));
		b = open_member(p->bind, SOCK_STREAM, local_port(a));
		ASSERT_LE(0, b);
		for (i = 0; i < 8; i++)
			ASSERT_LE(0, dial(p->dst, SOCK_STREAM, local_port(a)));
		EXPECT_EQ(8, wait_queued(b, 8));
		close(a);
		close(b);
	}
}

TEST_HARNESS_MAIN
