// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF and the programs that choose a socket.
 *
 * A program which returns an index chooses among the members that can be
 * chosen; one which names an OFF member fails as for a closed one; one which
 * hands over a socket outright, with no lookup, is obeyed.
 */
#include "reuseport_listen_off_bpf.h"

#include <pthread.h>

#include "../kselftest_harness.h"

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NR_MEMBERS	5

static void __attribute__((constructor)) check_kernel(void)
{
	require_option();
}

/* Assign the socket in @sockets to every new flow. */
static int load_assign(int sockets, int flags)
{
	struct bpf_insn insns[] = {
		MOV_REG(BPF_REG_6, BPF_REG_1),
		STORE_W(BPF_REG_10, -4, 0),
		MOV_MAP(BPF_REG_1, sockets), MOV_MAP_END,
		MOV_REG(BPF_REG_2, BPF_REG_10),
		ADD_IMM(BPF_REG_2, -4),
		CALL(BPF_FUNC_map_lookup_elem),
		JUMP_NULL(BPF_REG_0, 7),
		MOV_REG(BPF_REG_7, BPF_REG_0),
		MOV_REG(BPF_REG_1, BPF_REG_6),
		MOV_REG(BPF_REG_2, BPF_REG_7),
		MOV_IMM(BPF_REG_3, flags),
		CALL(BPF_FUNC_sk_assign),
		MOV_REG(BPF_REG_1, BPF_REG_7),
		CALL(BPF_FUNC_sk_release),
		MOV_IMM(BPF_REG_0, SK_PASS),
		EXIT(),
	};

	return load(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, insns,
		    ARRAY_SIZE(insns));
}

static int attach_to_netns(int prog)
{
	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), ret;
	union bpf_attr attr;

	if (netns < 0)
		return -errno;
	memset(&attr, 0, sizeof(attr));
	attr.link_create.prog_fd = prog;
	attr.link_create.target_fd = netns;
	attr.link_create.attach_type = BPF_SK_LOOKUP;
	ret = sys_bpf(BPF_LINK_CREATE, &attr);
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

TEST_F(bpf, index_counts_those_which_can_be_chosen)
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
	int sockets, result, prog, i, who;

	sockets = new_map(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, sizeof(__u64));
	ASSERT_LE(0, sockets);
	result = new_map(BPF_MAP_TYPE_ARRAY, sizeof(__u64));
	ASSERT_LE(0, result);
	prog = load_select(sockets, result, BPF_SK_REUSEPORT_SELECT);
	ASSERT_LE(0, prog);
	ASSERT_EQ(0, set_elem(sockets, self->member[2]));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF, prog));

	for (i = 0; i < 8; i++) {
		EXPECT_EQ(2, WHO());
		EXPECT_EQ(0, get_elem(result));
	}

	/* Named or not, it gets nothing; by hash then, as without a choice. */
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO();
		EXPECT_LE(0, who);
		ASSERT_NE(2, who);
		ASSERT_EQ(-ENOENT, get_elem(result));
	}

	ASSERT_EQ(0, set_mode(self->member[2], ON));
	EXPECT_EQ(2, WHO());
	EXPECT_EQ(0, get_elem(result));

	/* A STANDBY member without an ON one can be named, too. */
	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], STANDBY));
	EXPECT_EQ(2, WHO());
	EXPECT_EQ(0, get_elem(result));

	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	EXPECT_EQ(-ECONNREFUSED, WHO());
}

/* ---- a lookup does not wait for changes --------------------------------- */

#define NR_DATAGRAMS	1000
#define NR_CALLS	200

/* A program that returns no index, takes long, and counts in @runs. */
static int load_count(int runs)
{
	struct bpf_insn insns[NR_CALLS + 16];
	const struct bpf_insn count[] = {
		STORE_W(BPF_REG_10, -4, 0),
		MOV_MAP(BPF_REG_1, runs), MOV_MAP_END,
		MOV_REG(BPF_REG_2, BPF_REG_10),
		ADD_IMM(BPF_REG_2, -4),
		CALL(BPF_FUNC_map_lookup_elem),
		JUMP_NULL(BPF_REG_0, 2),
		MOV_IMM(BPF_REG_1, 1),
		ADD_ATOMIC(BPF_REG_0, 0, BPF_REG_1),
		MOV_IMM(BPF_REG_0, -1),
		EXIT(),
	};
	int i;

	for (i = 0; i < NR_CALLS; i++)
		insns[i] = CALL(BPF_FUNC_get_prandom_u32);
	memcpy(insns + i, count, sizeof(count));
	return load(BPF_PROG_TYPE_SOCKET_FILTER, 0, insns,
		    i + ARRAY_SIZE(count));
}

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
TEST_F(bpf, program_runs_once)
{
	struct flipper f = { .fd = self->member[1] };
	int runs, prog, i, n = 0;
	bool stop = false;

	if (variant->type != SOCK_DGRAM)
		return;
	runs = new_map(BPF_MAP_TYPE_ARRAY, sizeof(__u64));
	ASSERT_LE(0, runs);
	prog = load_count(runs);
	ASSERT_LE(0, prog);
	for (i = 1; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	ASSERT_EQ(0, set_int(self->member[0], SOL_SOCKET,
			     SO_ATTACH_REUSEPORT_EBPF, prog));
	f.stop = &stop;
	ASSERT_EQ(0, pthread_create(&f.thread, NULL, flip, &f));
	wait_for(__atomic_load_n(&f.flips, __ATOMIC_RELAXED) > 2);
	for (i = 0; i < NR_DATAGRAMS; i++) {
		if (send_one(variant->path->dst, self->port))
			break;
		n += receive_all(self->member[0]);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	pthread_join(f.thread, NULL);
	n += receive_all(self->member[0]);
	TH_LOG("%ld changes, %lld runs", f.flips, get_elem(runs));
	EXPECT_EQ(NR_DATAGRAMS, n);
	EXPECT_EQ(NR_DATAGRAMS, get_elem(runs));
}

TEST_F(bpf, sk_lookup_naming_an_off_member_is_obeyed)
{
	int sockets, prog, link, i;

	sockets = new_map(BPF_MAP_TYPE_SOCKMAP, sizeof(__u64));
	ASSERT_LE(0, sockets);
	ASSERT_EQ(0, set_elem(sockets, self->member[2]));
	prog = load_assign(sockets, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	ASSERT_LE(0, prog);
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	EXPECT_NE(2, WHO());
	link = attach_to_netns(prog);
	ASSERT_LE(0, link);
	for (i = 0; i < 8; i++)
		EXPECT_EQ(2, WHO());
	close(link);
	EXPECT_NE(2, WHO());
}

/* Naming it and asking for its group: the group chooses, if it can. */
TEST_F(bpf, sk_lookup_naming_the_group)
{
	int sockets, prog, link, i, who;

	sockets = new_map(BPF_MAP_TYPE_SOCKMAP, sizeof(__u64));
	ASSERT_LE(0, sockets);
	ASSERT_EQ(0, set_elem(sockets, self->member[2]));
	prog = load_assign(sockets, 0);
	ASSERT_LE(0, prog);
	link = attach_to_netns(prog);
	ASSERT_LE(0, link);
	ASSERT_EQ(0, set_mode(self->member[2], OFF));
	for (i = 0; i < NR_CLIENTS; i++) {
		who = WHO();
		EXPECT_LE(0, who);
		EXPECT_NE(2, who);
	}
	for (i = 0; i < NR_MEMBERS; i++)
		ASSERT_EQ(0, set_mode(self->member[i], OFF));
	EXPECT_EQ(2, WHO());
}

TEST_HARNESS_MAIN
