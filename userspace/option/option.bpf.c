// SPDX-License-Identifier: GPL-2.0-only
/*
 * SO_REUSEPORT_LISTEN_OFF for a kernel that does not have it.
 *
 *	choose		sk_lookup: which listener a new connection gets
 *	choose_datagram	which UDP socket a datagram gets; choose_flow: with flows,
 *			also beside the option of the kernel itself
 *	set_option	the option itself, for the processes of a cgroup; and
 *	get_option	see_bound, see_listening, see_closing: its listeners
 *	call_*		the same for a tool, by BPF_PROG_TEST_RUN
 *	find_*		what a tool needs at the start
 *
 * The invariant: no connection goes to a listener outside the reuseport group
 * of the one that the kernel itself would have found. Groups are the kernel's
 * own. choose() walks the kernel's table as the kernel does, and leaves
 * listeners that it does not know to the kernel.
 */
#include "flows.bpf.h"
#include "table.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* --- the state of a listener --- */

static __always_inline bool recent_overflow(const struct sock *sk)
{
	struct sock_reuseport *reuse = BPF_CORE_READ(sk, sk_reuseport_cb);
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;
	u32 now = bpf_jiffies64(), hz = settings.hz;
	u32 last;

	/* tcp_synq_no_recent_overflow(), include/net/tcp.h */
	if (reuse && has_reuseport(sk))
		last = BPF_CORE_READ(reuse, synq_overflow_ts);
	else
		last = BPF_CORE_READ(tp, rx_opt.ts_recent_stamp);
	return last && now - (last - hz) <= 2 * 60 * hz + hz;
}

static __always_inline void read_queues(const struct sock *sk, u8 protocol,
					struct reuseport_listen_info *info)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct udp_sock *up = (const void *)sk;
	int n;

	if (protocol == IPPROTO_UDP) {
		/* udp_rqueue_get(), include/net/udp.h */
		n = BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter) -
		    BPF_CORE_READ(up, forward_deficit);
		info->queued = n > 0 ? n : 0;
		/*
		 * These are two reads of changing values: report 0 only if the
		 * queues are empty too. Datagrams move from the first to the second.
		 */
		if (!info->queued)
			info->queued = BPF_CORE_READ(sk, sk_receive_queue.qlen) ?:
				       BPF_CORE_READ(up, reader_queue.qlen);
		return;
	}
	n = BPF_CORE_READ(icsk, icsk_accept_queue.qlen.counter);
	info->handshakes = n > 0 ? n : 0;
	info->queued = BPF_CORE_READ(sk, sk_ack_backlog);
}

/* Address of the program that chooses in the group of a socket, 0: none. */
static __always_inline u64 program_of(const struct sock *sk)
{
	struct sock_reuseport *reuse = BPF_CORE_READ(sk, sk_reuseport_cb);

	return reuse ? (u64)BPF_CORE_READ(reuse, prog) : 0;
}

/*
 * Fills info. Returns whether to start a grace period: the first time that
 * SETTLED is queried after a change.
 */
static __always_inline bool tell(const struct sock *sk, struct member *m,
				 struct group *g,
				 struct reuseport_listen_info *info)
{
	struct slot *s = slot_at(g, m->slot);
	bool settled, hurry = false;
	u64 counts, since, none_on;
	u8 section;

	sweep_if_some_are_gone(g, sk);
	bpf_spin_lock(&g->lock);
	section = s->section;
	counts = g->counts;
	since = s->settled;
	none_on = g->none_on;
	bpf_spin_unlock(&g->lock);

	info->flags = REUSEPORT_LISTEN_F_BPF;
	info->mode = mode_of(section);
	info->group_id = g->id;
	info->group_on = count_in(counts, ON);
	info->group_standby = count_in(counts, STANDBY);
	info->group_off = count_in(counts, OFF);
	if (g->protocol == IPPROTO_TCP && !info->group_on && recent_overflow(sk))
		info->flags |= REUSEPORT_LISTEN_F_COOKIES;
	if (section == ON) {
		/* of its last change to another mode, as the kernel's own */
		if (rcu_is_over(since))
			info->flags |= REUSEPORT_LISTEN_F_SETTLED;
		read_queues(sk, g->protocol, info);
		return false;
	}

	if (section == STANDBY && (long long)(none_on - since) > 0)
		since = none_on;
	if ((long long)(g->left_open - since) > 0)
		since = g->left_open;
	settled = num_socks_of(sk) <= count_all(counts) &&
		  program_of(sk) == g->program && rcu_is_over(since);
	if (m->asked != since) {
		m->asked = since;
		hurry = !settled;
	}

	read_queues(sk, g->protocol, info);
	/*
	 * A request stops being half-open a moment before it is queued. So
	 * with none half-open, wait for requests in that moment too.
	 */
	if (!settled || info->handshakes) {
		m->none_half_open = 0;
	} else if (!m->none_half_open) {
		m->none_half_open = rcu_snapshot() + 1;
		settled = false;
		hurry = true;
	} else {
		settled = rcu_is_over(m->none_half_open - 1);
	}

	if (settled)
		info->flags |= REUSEPORT_LISTEN_F_SETTLED;
	return hurry;
}

static __always_inline struct group *group_of(const struct member *m)
{
	return bpf_map_lookup_elem(&groups, &m->key);
}

/* --- the selection --- */

/* of its namespace; written by user space before it is attached */
struct look look SEC(".data.look");

static __always_inline u32 rol32(u32 word, int by)
{
	return word << by | word >> (32 - by);
}

/* include/linux/jhash.h: the kernel's hash of an address, for its table */
#define JHASH_INITVAL 0xdeadbeef

static __always_inline u32 jhash_final(u32 a, u32 b, u32 c)
{
	c ^= b; c -= rol32(b, 14);
	a ^= c; a -= rol32(c, 11);
	b ^= a; b -= rol32(a, 25);
	c ^= b; c -= rol32(b, 16);
	a ^= c; a -= rol32(c, 4);
	b ^= a; b -= rol32(a, 14);
	c ^= b; c -= rol32(b, 24);
	return c;
}

static __always_inline u32 jhash_1word(u32 word, u32 initval)
{
	initval += JHASH_INITVAL + 4;
	return jhash_final(word + initval, initval, initval);
}

static __always_inline u32 jhash_4words(const u32 *k, u32 initval)
{
	u32 a, b, c;

	a = b = c = initval + JHASH_INITVAL + 16;
	a += k[0]; b += k[1]; c += k[2];
	a -= c; a ^= rol32(c, 4);  c += b;
	b -= a; b ^= rol32(a, 6);  a += c;
	c -= b; c ^= rol32(b, 8);  b += a;
	a -= c; a ^= rol32(c, 16); c += b;
	b -= a; b ^= rol32(a, 19); a += c;
	c -= b; c ^= rol32(b, 4);  b += a;
	return jhash_final(a + k[3], b, c);
}

#define MAX_WALK	8192	/* listeners in one bucket, at most */

/* One lookup: what it looks for, and its progress. */
struct walk {
	u32 address[4];		/* 0: the wildcard's turn */
	u32 device;
	u16 port;
	u8 family;
	u8 vrf;			/* arrived through a VRF: what that matches */
	u8 unsure;		/* found one that may match */
	u64 node;		/* next in the bucket; odd or 0: its end */
	u64 sk;			/* found */
	u64 reuse;		/* ... and its group in the kernel */
	u64 lone;		/* found, but in no group */
	u64 passed_over;	/* sk_reuseport_cb that had nobody */
};

static __always_inline bool at_end(const struct walk *w)
{
	return !w->node || w->node & 1;
}

static __always_inline void begin_bucket(struct walk *w)
{
	struct inet_listen_hashbucket *bucket;
	u32 hash;

	/* inet_lhash2_bucket(), ipv4_portaddr_hash(), ipv6_portaddr_hash() */
	if (w->address[1] | w->address[2] | w->address[3])
		hash = jhash_4words(w->address, look.hash_mix);
	else
		hash = jhash_1word(w->address[0], look.hash_mix);
	hash = (hash ^ w->port) & look.lhash2_mask;
	bucket = (void *)(look.lhash2 +
			  hash * bpf_core_type_size(struct inet_listen_hashbucket));
	w->node = (u64)BPF_CORE_READ(bucket, nulls_head.first);
}

/* For a packet that arrived through a VRF: see inet_bound_dev_eq(). */
enum vrf {
	NO_VRF,
	VRF_ONLY,	/* only its sockets */
	VRF_ACCEPT,	/* tcp_l3mdev_accept: also those without a device */
};

struct device_walk {
	u64 node;
	u32 ifindex;
	u32 is_master;
};

static long look_at_device(u32 i, struct device_walk *w)
{
	const struct net_device *dev;

	if (!w->node)
		return 1;
	dev = (const struct net_device *)(w->node -
		bpf_core_field_offset(struct net_device, index_hlist));
	if ((u32)BPF_CORE_READ(dev, ifindex) == w->ifindex) {
		w->is_master = BPF_CORE_READ(dev, l3mdev_ops) != NULL;
		return 1;
	}
	w->node = (u64)BPF_CORE_READ(dev, index_hlist.next);
	return 0;
}

/* The packet's device is the VRF by now, not the one it arrived through. */
static __always_inline enum vrf vrf_of(u32 ifindex)
{
	const struct net *net = (const struct net *)look.net;
	struct device_walk w = { .ifindex = ifindex };
	const struct hlist_head *bucket;

	if (!bpf_core_field_exists(struct net_device, l3mdev_ops))
		return NO_VRF;
	/* dev_index_hash(), net/core/dev.h */
	bucket = BPF_CORE_READ(net, dev_index_head) + (ifindex & 255);
	w.node = (u64)BPF_CORE_READ(bucket, first);
	bpf_loop(1024, look_at_device, &w, 0);
	if (!w.is_master)
		return NO_VRF;
	return BPF_CORE_READ(net, ipv4.sysctl_tcp_l3mdev_accept) ? VRF_ACCEPT :
								   VRF_ONLY;
}

/* compute_score(), net/ipv4/inet_hashtables.c and net/ipv6/inet6_hashtables.c */
static __always_inline bool matches(const struct sock *sk, const struct walk *w)
{
	u32 address[4], device;

	if (BPF_CORE_READ(sk, __sk_common.skc_num) != w->port ||
	    (u64)BPF_CORE_READ(sk, __sk_common.skc_net.net) != look.net)
		return false;
	device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	if (device ? device != w->device && w->vrf == NO_VRF :
		     w->vrf == VRF_ONLY)
		return false;
	if (w->family == AF_INET)
		return !BPF_CORE_READ_BITFIELD_PROBED(
			       sk, __sk_common.skc_ipv6only) &&
		       BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr) ==
			       w->address[0];
	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_INET6)
		return false;
	bpf_core_read(address, sizeof(address),
		      &sk->__sk_common.skc_v6_rcv_saddr);
	return address[0] == w->address[0] && address[1] == w->address[1] &&
	       address[2] == w->address[2] && address[3] == w->address[3];
}

static long look_at_next(u32 i, struct walk *w)
{
	const struct sock *sk;
	u32 device;
	u64 reuse;

	if (at_end(w))
		return 1;
	sk = (const struct sock *)(w->node -
		bpf_core_field_offset(struct sock_common, skc_nulls_node));
	w->node = (u64)BPF_CORE_READ(sk, __sk_common.skc_nulls_node.next);
	if (!matches(sk, w))
		return 0;
	device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	if (device && device != w->device) {
		/* maybe the device in the VRF that it arrived through; unknown */
		w->unsure = true;
		return 1;
	}
	reuse = (u64)BPF_CORE_READ(sk, sk_reuseport_cb);
	if (reuse && reuse == w->passed_over)
		return 0;
	if (!reuse) {
		/*
		 * A listener without SO_REUSEPORT; or one that is just leaving
		 * its group and the table: then other members follow.
		 */
		if (!w->lone)
			w->lone = (u64)sk;
		return 0;
	}
	w->sk = (u64)sk;
	w->reuse = reuse;
	return 1;
}

enum verdict {
	CHOSEN,
	NOBODY,		/* no member may be chosen: the lookup continues */
	LEFT_OPEN,	/* left to the kernel: something is unknown */
};

/* One choice in one group. */
struct choice {
	struct bpf_sk_lookup *ctx;
	struct group *group;
	const struct sock *found;	/* by the walk, in this group */
	u64 reuse;			/* the kernel's group, when it was found */
	u32 hash;
	u32 verdict;
};

/* Assigns the connection to a member if it is in the kernel's group too. */
static __always_inline bool give(struct choice *c, u64 cookie)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&listeners, &cookie);
	const struct sock *member, *found = c->found;
	bool given = false;
	u64 reuse;

	if (!sk)
		return false;	/* it is closing */
	member = address_of(sk);
	reuse = (u64)BPF_CORE_READ(member, sk_reuseport_cb);
	/* the one found may have left it, and a group that grows moves */
	if (member == found ||
	    (reuse && (reuse == c->reuse ||
		       reuse == (u64)BPF_CORE_READ(found, sk_reuseport_cb))))
		given = !bpf_sk_assign(c->ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return given;
}

/* Takes no lock: skips a member that is just moving. */
static long try_one(u32 i, struct choice *c)
{
	struct group *g = c->group;
	u64 counts = *(volatile u64 *)&g->counts;
	int wanted = count_in(counts, ON) ? ON : STANDBY;
	u32 n = count_in(counts, wanted);
	struct slot *s;
	u64 cookie;

	if (!n) {
		c->verdict = NOBODY;
		return 1;
	}
	s = slot_at(g, slot_at(g, (u64)c->hash * n >> 32)->perm);
	/* in this order: a slot that is freed and reused is not ON at first */
	cookie = *(volatile u64 *)&s->cookie;
	if (*(volatile u8 *)&s->section == wanted && give(c, cookie)) {
		c->verdict = CHOSEN;
		return 1;
	}
	c->hash = c->hash * 0x9e3779b1 + i;
	return 0;
}

/* After too many misses, or if many are closing: try all, under the lock. */
static long try_next(u32 i, struct choice *c)
{
	struct group *g = c->group;
	u64 counts, cookie;
	u32 n;

	bpf_spin_lock(&g->lock);
	counts = g->counts;
	cookie = slot_at(g, slot_at(g, i)->perm)->cookie;
	bpf_spin_unlock(&g->lock);
	n = count_in(counts, ON) ?: count_in(counts, STANDBY);
	if (!n)
		c->verdict = NOBODY;
	else if (i < n && give(c, cookie))
		c->verdict = CHOSEN;
	else if (i < n)
		return 0;
	return 1;
}

/*
 * Whether the kernel's group has a member that ours lacks, or a program that
 * chooses. Both change concurrently; only a stable difference counts.
 */
static __always_inline bool has_unknown(struct group *g, const struct sock *sk)
{
	struct sock_reuseport *reuse;
	u64 changes, counts;
	u32 i, there;

	for (i = 0; i < 4; i++) {
		changes = *(volatile u64 *)&g->changes;
		counts = *(volatile u64 *)&g->counts;
		reuse = BPF_CORE_READ(sk, sk_reuseport_cb);
		if (!reuse)
			return false;
		if (BPF_CORE_READ(reuse, prog))
			return true;
		there = BPF_CORE_READ(reuse, num_socks);
		if (there <= count_all(counts))
			return false;
		if (changes == *(volatile u64 *)&g->changes)
			return true;
	}
	return true;
}

static __always_inline void count_left(enum left_reason why)
{
	struct common *all = common_to_all();

	if (all)
		__sync_fetch_and_add(&all->left[why], 1);
}

/*
 * Also if all are ON: one that is not may have joined by the time the kernel
 * would choose.
 */
static __always_inline void choose_in(struct choice *c)
{
	c->verdict = LEFT_OPEN;
	if (has_unknown(c->group, c->found)) {
		count_left(LEFT_UNKNOWN_MEMBER);
		return;
	}
	bpf_loop(8, try_one, c, 0);
	if (c->verdict == LEFT_OPEN)
		bpf_loop(64, try_next, c, 0);
	if (c->verdict == LEFT_OPEN)
		count_left(LEFT_NO_MEMBER);
}

/* A member that must not get the connection may get it now. */
static __always_inline void leave_open(struct group *g)
{
	if (g)
		g->left_open = rcu_snapshot();
}

/* A lookup: at an address, in one group after the other, then at the wildcard. */
struct lookup {
	struct walk walk;
	u64 passed_over;	/* cookie of a member of the group without a choice */
	u32 hash;
	u32 unused;
};

enum answer {
	GO_ON,
	PASS = 2,	/* other numbers than SK_PASS: clang would return it as it is */
	DROP,
	KERNEL,		/* left to the kernel: something is unknown */
};

/*
 * One group, or the step to the wildcard address. Not static, so that the
 * verifier checks it once, not along every path of its callers.
 */
int look_once(struct bpf_sk_lookup *ctx, struct lookup *l)
{
	struct choice c = { .ctx = ctx };
	const struct sock *found;
	struct walk w;
	struct member *m;
	u64 cookie;

	if (!l)
		return KERNEL;
	w = l->walk;	/* bpf_loop() takes only what is on this stack */
	w.sk = w.reuse = 0;
	bpf_loop(MAX_WALK, look_at_next, &w, 0);
	if (w.unsure) {
		count_left(LEFT_UNKNOWN_LISTENER);
		return KERNEL;
	}
	if (!w.sk && at_end(&w)) {
		w.sk = w.lone;
		w.lone = 0;
	}
	if (!w.sk && at_end(&w)) {
		/* none here: try the wildcard address */
		if (!(w.address[0] | w.address[1] | w.address[2] |
		      w.address[3]))
			return DROP;
		w.address[0] = w.address[1] = 0;
		w.address[2] = w.address[3] = 0;
		begin_bucket(&w);
		l->walk = w;
		return GO_ON;
	}
	c.hash = l->hash;
	c.reuse = w.reuse;
	c.found = found = (const struct sock *)w.sk;
	cookie = found ? cookie_of(found) : 0;
	m = bpf_map_lookup_elem(&members, &cookie);
	c.group = m ? group_of(m) : NULL;
	if (!c.group) {
		if (found && BPF_CORE_READ(found, __sk_common.skc_state) !=
				     TCP_LISTEN)
			goto go_on;	/* it has been closed */
		count_left(LEFT_UNKNOWN_LISTENER);
		return KERNEL;
	}
	choose_in(&c);
	if (c.verdict == CHOSEN)
		return PASS;
	if (c.verdict == LEFT_OPEN) {
		if (BPF_CORE_READ(found, __sk_common.skc_state) != TCP_LISTEN)
			goto go_on;
		leave_open(c.group);
		return KERNEL;
	}
	l->passed_over = cookie;
	w.passed_over = (u64)BPF_CORE_READ(found, sk_reuseport_cb);
go_on:
	l->walk = w;
	return GO_ON;
}

SEC("sk_lookup")
int choose(struct bpf_sk_lookup *ctx)
{
	u32 port = ctx->local_port, turn, answer = GO_ON;
	struct lookup l = {};
	struct walk *w = &l.walk;
	struct member *m;
	u64 cookie;

	if (!is_involved(port, salt_of(look.netns)))
		return SK_PASS;
	if (ctx->protocol != IPPROTO_TCP || ctx->sk)
		return SK_PASS;

	w->port = port;
	w->family = ctx->family;
	w->device = ctx->ingress_ifindex;
	w->vrf = vrf_of(w->device);
	if (w->family == AF_INET) {
		w->address[0] = ctx->local_ip4;
		l.hash = ctx->remote_ip4;
	} else {
		w->address[0] = ctx->local_ip6[0];
		w->address[1] = ctx->local_ip6[1];
		w->address[2] = ctx->local_ip6[2];
		w->address[3] = ctx->local_ip6[3];
		l.hash = jhash_1word(ctx->remote_ip6[0] ^ ctx->remote_ip6[1],
				     ctx->remote_ip6[2]) ^ ctx->remote_ip6[3];
	}
	l.hash = jhash_1word(l.hash ^ w->address[0] ^ w->address[3],
			     look.seed + ctx->remote_port + (port << 16));

	begin_bucket(w);
	for (turn = 0; turn < 32 && answer == GO_ON; turn++)
		answer = look_once(ctx, &l);
	if (answer == PASS)
		return SK_PASS;
	if (answer == DROP)
		return SK_DROP;
	if (answer == GO_ON)
		count_left(LEFT_TOO_LONG);
	/* the group without a choice is left to the kernel too */
	cookie = l.passed_over;
	m = bpf_map_lookup_elem(&members, &cookie);
	leave_open(m ? group_of(m) : NULL);
	return SK_PASS;
}

/* --- the selection for UDP --- */

struct datagram_choice {
	struct sk_reuseport_md *ctx;
	struct group *group;
	u32 hash;
	u32 verdict;
};

static long try_datagram(u32 i, struct datagram_choice *c)
{
	struct group *g = c->group;
	u64 counts = *(volatile u64 *)&g->counts;
	int wanted = count_in(counts, ON) ? ON : STANDBY;
	u32 n = count_in(counts, wanted), index;
	const struct sock *sk;
	struct slot *s;
	u64 cookie;

	if (!n) {
		c->verdict = NOBODY;
		return 1;
	}
	s = slot_at(g, slot_at(g, (u64)c->hash * n >> 32)->perm);
	cookie = *(volatile u64 *)&s->cookie;
	sk = (const struct sock *)s->sk;
	c->hash = c->hash * 0x9e3779b1 + i;
	if (*(volatile u8 *)&s->section != wanted ||
	    /* connected: a flow, not a listener */
	    BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED)
		return 0;
	if (!index_of(cookie, &index))
		return 0;
	/* also fails for a socket outside the group of this lookup */
	if (bpf_sk_select_reuseport(c->ctx, &datagrams, &index, 0))
		return 0;
	c->verdict = CHOSEN;
	return 1;
}

static __always_inline int choose_by_mode(struct sk_reuseport_md *ctx)
{
	struct datagram_choice c = { .ctx = ctx, .verdict = LEFT_OPEN };
	const struct sock *found;
	struct member *m;
	u64 cookie, counts;

	if (!ctx->sk)
		return SK_PASS;
	cookie = bpf_get_socket_cookie(ctx->sk);
	m = bpf_map_lookup_elem(&members, &cookie);
	c.group = m ? group_of(m) : NULL;
	if (!c.group)
		return SK_PASS;
	found = address_of(ctx->sk);
	counts = *(volatile u64 *)&c.group->counts;
	if (num_socks_of(found) <= count_all(counts)) {
		if (all_on(counts))
			return SK_PASS;
		c.hash = jhash_1word(ctx->hash, look.seed);
		bpf_loop(16, try_datagram, &c, 0);
	}
	if (c.verdict == NOBODY)
		return SK_DROP;
	if (c.verdict == LEFT_OPEN)
		leave_open(c.group);
	return SK_PASS;
}

SEC("sk_reuseport")
int choose_datagram(struct sk_reuseport_md *ctx)
{
	return choose_by_mode(ctx);
}

SEC("sk_reuseport")
int choose_flow(struct sk_reuseport_md *ctx)
{
	if (follow_flow(ctx) || settings.kernel_chooses)
		return SK_PASS;
	return choose_by_mode(ctx);
}

/* For user space, to test BPF_SK_REUSEPORT_F_FLOW: selects the first socket. */
SEC("sk_reuseport")
int name_first(struct sk_reuseport_md *ctx)
{
	u32 zero = 0;

	bpf_sk_select_reuseport(ctx, &datagrams, &zero, BPF_SK_REUSEPORT_F_FLOW);
	return SK_PASS;
}

/*
 * The program attached to a group, which is the kernel's own group, so that
 * newcomers inherit it. It stays attached when its tool is gone, but the kernel
 * empties this map when it is neither held nor pinned: then the kernel chooses
 * again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} datagram_chooser SEC(".maps");

SEC("sk_reuseport")
int reuseport_stub(struct sk_reuseport_md *ctx)
{
	bpf_tail_call(ctx, &datagram_chooser, 0);
	return SK_PASS;
}

/* --- the option itself, for the processes of a cgroup --- */

/* Network namespaces in which it is enabled, by cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct look);
} namespaces SEC(".maps");

/* For user space alone */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct about);
} about SEC(".maps");

/* The state of a socket while it is in no group. */
struct kept {
	u64 settled;		/* rcu_snapshot() of its last change */
	u32 mode;
	int refused;		/* why it is in no group although it listens */
	bool was_hashed;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kept);
} keepsakes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} hurry SEC(".maps");

/*
 * Makes a grace period happen: what is deleted here is freed after one. A busy
 * machine has one soon anyway; an idle one may not have any.
 */
#define hurry_grace_period(sk)						\
({									\
	bpf_sk_storage_get(&hurry, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE); \
	bpf_sk_storage_delete(&hurry, sk);				\
})

/*
 * The errno that the call returns. The verifier of newer kernels requires a
 * 64-bit value in its range; bpf_helpers.h declares an int.
 */
static __always_inline void fail_with(long err)
{
	long (*set_retval)(long retval) = (void *)BPF_FUNC_set_retval;

	barrier_var(err);
	if (err < -4095 || err > -1)
		err = -EINVAL;
	set_retval(err);
}

static __always_inline bool is_enabled(u64 netns)
{
	return bpf_map_lookup_elem(&namespaces, &netns);
}

static __always_inline bool is_supported(const struct bpf_sock *sk)
{
	return (sk->family == AF_INET || sk->family == AF_INET6) &&
	       ((sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP) ||
		(sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP));
}

static __always_inline int adopt(const struct sock *sk, u64 cookie, u64 netns);
static __always_inline int set_mode(const struct sock *sk, struct member *m,
				    u32 mode);

static __always_inline int set_option_of(struct bpf_sockopt *ctx)
{
	struct bpf_sock *socket = ctx->sk;
	const struct sock *sk;
	struct kept *kept;
	struct member *m;
	struct group *g;
	u64 cookie;
	int *mode = ctx->optval;
	bool udp, hashed;
	u32 to;
	u8 state;
	int err;

	/* the kernel's buffer is larger than the caller's */
	if (ctx->optlen < (int)sizeof(*mode) ||
	    (void *)(mode + 1) > ctx->optval_end)
		return -EINVAL;
	to = *mode;
	if (!socket)
		return -EOPNOTSUPP;
	if (!is_supported(socket))
		return -EOPNOTSUPP;
	if (to > REUSEPORT_LISTEN_STANDBY)
		return -EINVAL;
	sk = address_of(socket);
	udp = socket->protocol == IPPROTO_UDP;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (!has_reuseport(sk) ||
	    (!udp && state != TCP_CLOSE && state != TCP_LISTEN))
		return -EINVAL;
	hashed = udp ? BPF_CORE_READ(sk, __sk_common.skc_num) != 0 :
		       state == TCP_LISTEN;
	kept = bpf_sk_storage_get(&keepsakes, socket, NULL,
				  BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return -ENOMEM;

	cookie = cookie_of(sk);
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (g && udp && !hashed) {
		let_go(g, cookie);
		g = NULL;
	}
	if (hashed && !g && !udp && !BPF_CORE_READ(sk, sk_reuseport_cb)) {
		/* got SO_REUSEPORT after listen(2): it is alone */
		err = adopt(sk, cookie, bpf_get_netns_cookie(ctx));
		if (err)
			return err;
		m = bpf_map_lookup_elem(&members, &cookie);
		g = m ? group_of(m) : NULL;
	}
	if (hashed) {
		if (!g || !m)
			return kept->refused ?: -EAGAIN;
		err = set_mode(sk, m, to);
		if (err)
			return err;
	} else if (g) {
		/* bound: it must not be chosen once it listens */
		slot_at(g, m->slot)->wanted = section_of(to);
		put_aside(g, m->slot, cookie);
		start_looking_after(g);
	}
	if (kept->mode != to) {
		kept->mode = to;
		kept->settled = rcu_snapshot();
	}
	return 0;
}

SEC("cgroup/setsockopt")
int set_option(struct bpf_sockopt *ctx)
{
	int err;

	if (ctx->level != SOL_SOCKET || ctx->optname != SO_REUSEPORT_LISTEN_OFF ||
	    !is_enabled(bpf_get_netns_cookie(ctx)))
		return 1;
	err = set_option_of(ctx);
	if (err) {
		fail_with(err);
		return 0;
	}
	ctx->optlen = -1;	/* skip the kernel's own handler */
	return 1;
}

static __always_inline int get_option_of(struct bpf_sockopt *ctx,
					 struct reuseport_listen_info *info)
{
	struct bpf_sock *socket = ctx->sk;
	const struct sock *sk;
	struct kept *kept;
	struct member *m;
	struct group *g;
	u64 cookie;

	if (!socket)
		return -EOPNOTSUPP;
	if (!is_supported(socket))
		return -EOPNOTSUPP;
	sk = address_of(socket);
	cookie = cookie_of(sk);
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (g && slot_at(g, m->slot)->section != ASIDE) {
		if (is_hashed(slot_at(g, m->slot), cookie, g->protocol)) {
			if (tell(sk, m, g, info))
				hurry_grace_period(socket);
			return 0;
		}
		if (g->protocol == IPPROTO_TCP)
			put_aside(g, m->slot, cookie);
		else
			let_go(g, cookie);
	}
	info->flags = REUSEPORT_LISTEN_F_BPF;
	kept = bpf_sk_storage_get(&keepsakes, socket, NULL, 0);
	if (kept)
		info->mode = kept->mode;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		/* not known to the table, so ON */
		info->mode = REUSEPORT_LISTEN_ON;
		read_queues(sk, IPPROTO_TCP, info);
	} else if (socket->protocol == IPPROTO_UDP &&
		   BPF_CORE_READ(sk, __sk_common.skc_num)) {
		/* bound, and not adopted: ON */
		info->mode = REUSEPORT_LISTEN_ON;
		read_queues(sk, IPPROTO_UDP, info);
	} else if (!kept || !kept->was_hashed || rcu_is_over(kept->settled)) {
		info->flags |= REUSEPORT_LISTEN_F_SETTLED;
	} else {
		hurry_grace_period(socket);
	}
	return 0;
}

SEC("cgroup/getsockopt")
int get_option(struct bpf_sockopt *ctx)
{
	struct reuseport_listen_info info = {};
	u8 *to = ctx->optval, *from = (u8 *)&info;
	u32 i;
	int err;

	if (ctx->level != SOL_SOCKET || ctx->optname != SO_REUSEPORT_LISTEN_OFF ||
	    ctx->retval != -ENOPROTOOPT || !is_enabled(bpf_get_netns_cookie(ctx)))
		return 1;
	err = get_option_of(ctx, &info);
	if (err) {
		fail_with(err);
		return 1;
	}
	for (i = 0; i < sizeof(info); i++) {
		if ((void *)(to + i + 1) > ctx->optval_end)
			break;
		to[i] = from[i];
	}
	ctx->optlen = i;
	ctx->retval = 0;
	return 1;
}

/*
 * A TCP socket is adopted when it is bound: once it listens, lookups find it
 * before any program runs.
 */
static __always_inline void see_bound(struct bpf_sock *socket, u64 cookie,
				      u64 netns)
{
	const struct sock *sk = address_of(socket);
	struct group_key key;
	struct kept *kept;
	struct member *m;
	struct group *g;

	if (!has_reuseport(sk) || bpf_map_lookup_elem(&members, &cookie))
		return;
	describe(sk, netns, &key);
	reclaim(&key);
	if (join(sk, cookie, netns, 0))
		return;
	kept = bpf_sk_storage_get(&keepsakes, socket, NULL, 0);
	if (!kept || kept->mode == REUSEPORT_LISTEN_ON)
		return;
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (!g)
		return;
	slot_at(g, m->slot)->wanted = section_of(kept->mode);
	move(g, m->slot, ASIDE, true);
	start_looking_after(g);
}

SEC("cgroup/post_bind4")
int see_bound4(struct bpf_sock *sk)
{
	u64 netns = bpf_get_netns_cookie(sk);

	if (sk->protocol == IPPROTO_TCP && is_enabled(netns))
		see_bound(sk, bpf_get_socket_cookie(sk), netns);
	return 1;
}

SEC("cgroup/post_bind6")
int see_bound6(struct bpf_sock *sk)
{
	u64 netns = bpf_get_netns_cookie(sk);

	if (sk->protocol == IPPROTO_TCP && is_enabled(netns))
		see_bound(sk, bpf_get_socket_cookie(sk), netns);
	return 1;
}

/* listen(2): the socket is hashed. */
SEC("sockops")
int see_listening(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *socket;
	const struct sock *sk;
	struct group_key key;
	struct kept *kept;
	struct member *m;
	struct group *g;
	u64 cookie, netns;
	u32 mode;
	int err;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	netns = bpf_get_netns_cookie(ctx);
	socket = ctx->sk;
	if (!socket || !is_enabled(netns))
		return 1;
	sk = address_of(socket);
	cookie = bpf_get_socket_cookie(ctx);
	m = bpf_map_lookup_elem(&members, &cookie);
	if (!m && !has_reuseport(sk))
		return 1;
	if (BPF_CORE_READ((const struct tcp_sock *)sk, is_mptcp))
		return 1;
	kept = bpf_sk_storage_get(&keepsakes, socket, NULL,
				  BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return 1;

	err = bpf_sock_hash_update(ctx, &listeners, &cookie, BPF_ANY);
	if (m) {
		describe(sk, netns, &key);
		g = group_of(m);
		if (g && (err || !same_key(&key, &m->key))) {
			/* cannot be chosen, or has a new address */
			let_go(g, cookie);
			m = NULL;
		}
	}
	if (!err && !m)
		err = join(sk, cookie, netns, 0);
	kept->refused = err;
	kept->was_hashed = true;
	if (err) {
		bpf_map_delete_elem(&listeners, &cookie);
		return 1;
	}
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (!g)
		return 1;
	mode = kept->mode;
	slot_at(g, m->slot)->closing = false;
	/* after a shutdown(2) that went unnoticed: a lookup may hold it */
	if (!move(g, m->slot, section_of(mode), mode != REUSEPORT_LISTEN_ON) &&
	    mode != REUSEPORT_LISTEN_ON)
		slot_at(g, m->slot)->settled = rcu_snapshot();
	if (mode != REUSEPORT_LISTEN_ON)
		start_looking_after(g);
	return 1;
}

/* The last close(2), before the socket is out of the kernel's table. */
SEC("cgroup/sock_release")
int see_closing(struct bpf_sock *socket)
{
	const struct sock *sk;
	struct member *m;
	struct group *g;
	u64 cookie;

	if (socket->protocol != IPPROTO_TCP && socket->protocol != IPPROTO_UDP)
		return 1;
	sk = address_of(socket);
	cookie = cookie_of(sk);
	if (!cookie)
		return 1;
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (!g)
		return 1;
	if (is_hashed(slot_at(g, m->slot), cookie, g->protocol))
		set_aside(g, m->slot);
	else
		let_go(g, cookie);
	return 1;
}

/* --- answers of unconnected UDP sockets --- */

SEC("cgroup/sendmsg4")
int record_flow4(struct bpf_sock_addr *ctx)
{
	const struct sock *sk = address_of(ctx->sk);
	struct flow_key key = {};

	if (!find_group(sk, &key.group) || !is_enabled(bpf_get_netns_cookie(ctx)))
		return 1;
	key.remote_port = ctx->user_port;
	as_mapped(key.remote, ctx->user_ip4);
	if (ctx->msg_src_ip4)
		as_mapped(key.local, ctx->msg_src_ip4);
	record_flow(sk, bpf_get_socket_cookie(ctx), &key);
	return 1;
}

SEC("cgroup/sendmsg6")
int record_flow6(struct bpf_sock_addr *ctx)
{
	const struct sock *sk = address_of(ctx->sk);
	struct flow_key key = {};

	if (!find_group(sk, &key.group) || !is_enabled(bpf_get_netns_cookie(ctx)))
		return 1;
	key.remote_port = ctx->user_port;
	key.remote[0] = ctx->user_ip6[0];
	key.remote[1] = ctx->user_ip6[1];
	key.remote[2] = ctx->user_ip6[2];
	key.remote[3] = ctx->user_ip6[3];
	key.local[0] = ctx->msg_src_ip6[0];
	key.local[1] = ctx->msg_src_ip6[1];
	key.local[2] = ctx->msg_src_ip6[2];
	key.local[3] = ctx->msg_src_ip6[3];
	record_flow(sk, bpf_get_socket_cookie(ctx), &key);
	return 1;
}

/* --- requests of a tool, by BPF_PROG_TEST_RUN --- */

/*
 * Adopts a socket that user space has put into `listeners`. It becomes ON, or
 * keeps its mode.
 */
static __always_inline int adopt(const struct sock *sk, u64 cookie, u64 netns)
{
	struct member *m = bpf_map_lookup_elem(&members, &cookie);
	struct group *g;
	int err;

	if (m)
		return 0;
	if (!has_reuseport(sk) ||
	    BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return -EINVAL;
	if (BPF_CORE_READ((const struct tcp_sock *)sk, is_mptcp))
		return -EOPNOTSUPP;
	err = join(sk, cookie, netns, 0);
	if (err)
		return err;
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	if (!g)
		return -EAGAIN;
	move(g, m->slot, ON, false);
	start_looking_after(g);
	return 0;
}

static __always_inline int set_mode(const struct sock *sk, struct member *m,
				    u32 mode)
{
	struct group *g = group_of(m);
	enum section to = section_of(mode);

	if (!g)
		return -EAGAIN;
	/* we would bypass it, or it us */
	if (to != ON && program_of(sk) != g->program)
		return -EBUSY;
	if (slot_at(g, m->slot)->section == to)
		return 0;
	move(g, m->slot, to, to != ON);
	if (to != ON)
		start_looking_after(g);
	return 0;
}

static __always_inline struct call *call_in(struct __sk_buff *skb)
{
	struct call *call = (void *)(long)skb->data;

	return (void *)(call + 1) > (void *)(long)skb->data_end ? NULL : call;
}

SEC("tc")
int call_adopt(struct __sk_buff *skb)
{
	struct call *call = call_in(skb);
	struct bpf_sock *sk;
	u64 cookie;

	if (!call)
		return -1;
	cookie = call->cookie;
	call->error = -EINVAL;
	sk = bpf_map_lookup_elem(&listeners, &cookie);
	if (!sk)
		return 0;
	call->error = adopt(address_of(sk), cookie, netns_of(address_of(sk)));
	bpf_sk_release(sk);
	return 0;
}

/* The kernel's socket of a member, if it is still the same. */
static __always_inline const struct sock *socket_of(const struct group *g,
						    const struct member *m,
						    u64 cookie)
{
	const struct sock *sk =
		(const struct sock *)slot_at((struct group *)g, m->slot)->sk;

	return cookie_of(sk) == cookie ? sk : NULL;
}

SEC("tc")
int call_set_mode(struct __sk_buff *skb)
{
	struct call *call = call_in(skb);
	const struct sock *sk;
	struct member *m;
	struct group *g;
	u64 cookie;

	if (!call)
		return -1;
	cookie = call->cookie;
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	sk = g ? socket_of(g, m, cookie) : NULL;
	call->error = sk ? set_mode(sk, m, call->mode) : -EINVAL;
	return 0;
}

/* As the kernel counts them, where it has the option itself. */
static __always_inline void tell_counts(const struct sock *sk,
					struct reuseport_listen_info *info)
{
	const struct sock_reuseport___patched *patched;
	u16 on, ready, conns, all;

	patched = (const void *)BPF_CORE_READ(sk, sk_reuseport_cb);
	if (!patched || !bpf_core_field_exists(patched->num_conns))
		return;
	on = BPF_CORE_READ(patched, num_on);
	ready = BPF_CORE_READ(patched, num_ready);
	conns = BPF_CORE_READ(patched, num_conns);
	all = num_socks_of(sk);
	/* connected sockets are flows; they are ON while nobody is not */
	if (!BPF_CORE_READ(patched, mixed)) {
		on = on > conns ? on - conns : 0;
		ready = ready > conns ? ready - conns : 0;
	}
	all = all > conns ? all - conns : 0;
	/* they may change in between */
	info->group_on = on;
	info->group_standby = ready > on ? ready - on : 0;
	info->group_off = all > ready ? all - ready : 0;
}

SEC("tc")
int call_get_info(struct __sk_buff *skb)
{
	struct reuseport_listen_info info = {};
	struct call *call = call_in(skb);
	const struct sock *sk;
	u32 known, there;
	struct member *m;
	struct group *g;
	u64 cookie;

	if (!call)
		return -1;
	cookie = call->cookie;
	m = bpf_map_lookup_elem(&members, &cookie);
	g = m ? group_of(m) : NULL;
	sk = g ? socket_of(g, m, cookie) : NULL;
	call->error = -EINVAL;
	if (!sk || !is_hashed(slot_at(g, m->slot), cookie, g->protocol))
		return 0;
	if (settings.kernel_chooses)
		tell_counts(sk, &info);
	else
		tell(sk, m, g, &info);
	call->error = 0;
	call->info = info;
	known = count_all(g->counts);
	there = num_socks_of(sk);
	call->unknown = there > known ? there - known : 0;
	return 0;
}

/* --- what a tool needs at the start --- */

/* Run in the namespace: where the kernel keeps its listeners. */
SEC("syscall")
int find_namespace(struct look *look)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct net *net = BPF_CORE_READ(task, nsproxy, net_ns);
	struct inet_hashinfo *table =
		BPF_CORE_READ(net, ipv4.tcp_death_row.hashinfo);

	look->net = (u64)net;
	look->netns = BPF_CORE_READ(net, net_cookie);
	look->hash_mix = BPF_CORE_READ(net, hash_mix);
	look->lhash2 = (u64)BPF_CORE_READ(table, lhash2);
	look->lhash2_mask = BPF_CORE_READ(table, lhash2_mask);
	return 0;
}

/*
 * Whether that namespace is still in the kernel's list of them. Its memory may
 * be reused, but its cookie is not.
 */
SEC("syscall")
int is_there(struct look *look)
{
	struct net *net = (struct net *)look->net;

	return BPF_CORE_READ(net, net_cookie) == look->netns &&
	       BPF_CORE_READ(net, list.prev, next) == &net->list;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} per_cpu SEC(".maps");

/*
 * Finds the number of RCU's grace period. A kernel without CONFIG_KALLSYMS_ALL
 * does not reveal the address of its state. There, the root of RCU's tree has
 * nearly the same number: it gets a new one before any CPU can pass through that
 * grace period, and the next one after all CPUs have. It can be reached from the
 * rcu_data of any CPU, whose offset in .data..percpu is in BTF. Two more things
 * are needed: the address of that section, derived from a variable in it that
 * struct proto points to, and the offset of this CPU's copy, derived from a
 * value of a per-CPU map.
 */
SEC("tc")
int call_find_rcu(struct __sk_buff *skb)
{
	struct common *all = common_to_all();
	struct call *call = call_in(skb);
	struct bpf_array *array;
	struct rcu_node *node, *parent;
	struct rcu_data *data;
	struct bpf_sock *socket;
	const struct sock *sk;
	u64 value, section;
	u64 *on_this_cpu;
	u32 zero = 0, i;
	u64 cookie;

	if (!call || !all)
		return -1;
	if (call->rcu_state) {
		all->rcu_sequence = call->rcu_state +
			bpf_core_field_offset(struct rcu_state, gp_seq_polled);
		call->error = 0;
		return 0;
	}
	cookie = call->cookie;
	call->error = -EINVAL;
	socket = bpf_map_lookup_elem(&listeners, &cookie);
	if (!socket)
		return 0;
	sk = address_of(socket);
	bpf_sk_release(socket);
	section = (u64)BPF_CORE_READ(sk, __sk_common.skc_prot, per_cpu_fw_alloc) -
		  call->fw_alloc;
	on_this_cpu = bpf_map_lookup_elem(&per_cpu, &zero);
	if (!on_this_cpu)
		return 0;
	value = (u64)address_of(on_this_cpu);
	array = (struct bpf_array *)address_of(&per_cpu);
	data = (struct rcu_data *)(section + call->rcu_data + value -
				   (u64)BPF_CORE_READ(array, pptrs[0]));
	node = BPF_CORE_READ(data, mynode);
	for (i = 0; i < 4; i++) {
		parent = BPF_CORE_READ(node, parent);
		if (!parent)
			break;
		node = parent;
	}
	call->error = -ENOENT;
	if (!node)
		return 0;
	all->rcu_sequence = (u64)node +
		bpf_core_field_offset(struct rcu_node, gp_seq);
	call->error = 0;
	return 0;
}

/* Run before there is a group: sets up the timer of attend_all(), or this build's. */
SEC("tc")
int call_begin(struct __sk_buff *skb)
{
	struct call *call = call_in(skb);
	struct common_timer *t;
	u32 zero = 0;

	if (!call)
		return -1;
	t = bpf_map_lookup_elem(&common_timer, &zero);
	if (!t)
		return -1;
	call->error = bpf_timer_init(&t->timer, &common_timer, CLOCK_MONOTONIC);
	if (call->error && call->error != -EBUSY)
		return 0;
	call->error = bpf_timer_set_callback(&t->timer, attend_all);
	return 0;
}

/* The clocks of flows: in a time namespace, user space's clocks differ. */
SEC("tc")
int call_flow_clock(struct __sk_buff *skb)
{
	struct call *call = call_in(skb);

	if (!call)
		return -1;
	call->coarse_clock = bpf_ktime_get_coarse_ns();
	call->clock = bpf_ktime_get_ns();
	return 0;
}

/* If call->cookie is 0, takes a snapshot; else returns whether it is over. */
SEC("tc")
int call_grace_period(struct __sk_buff *skb)
{
	struct call *call = call_in(skb);

	if (!call)
		return -1;
	if (!call->cookie)
		call->cookie = rcu_snapshot();
	call->error = rcu_is_over(call->cookie) ? 0 : -EAGAIN;
	return 0;
}

/* Ports whose listeners a tool wants. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u16);
	__type(value, u8);
} wanted SEC(".maps");

/* Cgroups whose listeners `enable` adopts, by id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u8);
} cgroups SEC(".maps");

#define MAX_DEPTH 32	/* of cgroups */

static __always_inline bool in_scope(const struct sock *sk)
{
	struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	u64 id;
	u32 i;

	for (i = 0; i < MAX_DEPTH && cgroup; i++) {
		id = BPF_CORE_READ(cgroup, kn, id);
		if (bpf_map_lookup_elem(&cgroups, &id))
			return true;
		/* a cgroup begins with its own cgroup_subsys_state */
		cgroup = (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
	}
	return false;
}

/*
 * Run in the namespace: puts its listeners on those ports, and those of the
 * cgroups, into `listeners`, and outputs their cookies.
 */
SEC("iter/tcp")
int find_listeners(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	u64 cookie;
	u16 port;

	if (!skc || BPF_CORE_READ(skc, skc_state) != TCP_LISTEN ||
	    !has_reuseport((const struct sock *)skc))
		return 0;
	port = BPF_CORE_READ(skc, skc_num);
	if (!bpf_map_lookup_elem(&wanted, &port) &&
	    !in_scope((const struct sock *)skc))
		return 0;
	cookie = bpf_get_socket_cookie(skc);
	if (!bpf_map_update_elem(&listeners, &cookie, skc, BPF_ANY))
		bpf_seq_write(ctx->meta->seq, &cookie, sizeof(cookie));
	return 0;
}

/* Whether that is our program for groups, of this or another object. */
static __always_inline bool is_ours(u64 program)
{
	const struct bpf_prog *prog = (const struct bpf_prog *)program;
	const struct bpf_prog_aux *aux = BPF_CORE_READ(prog, aux);
	char name[16] = {};

	bpf_core_read_str(name, sizeof(name), &aux->name);
	return !bpf_strncmp(name, sizeof(name), "reuseport_stub");
}

/*
 * The program of a later tool may have replaced it, and do nothing since that
 * tool ended. Compare ids: only programs that call others may name that map.
 */
static __always_inline bool asks_our_chooser(u64 program)
{
	const struct bpf_prog *prog = (const struct bpf_prog *)program;
	struct bpf_map **maps = BPF_CORE_READ(prog, aux, used_maps);
	struct common *all = common_to_all();
	struct bpf_map *map = NULL;

	bpf_probe_read_kernel(&map, sizeof(map), maps);
	return all && map && BPF_CORE_READ(map, id) == all->chooser;
}

/*
 * Run in the namespace: outputs its UDP sockets on `wanted` ports and in the
 * cgroups, and adopts those that user space has put into `datagrams`.
 */
SEC("iter/udp")
int find_datagrams(struct bpf_iter__udp *ctx)
{
	struct datagram told = {};
	const struct sock *sk;
	struct udp_sock *up = ctx->udp_sk;
	struct group_key key;
	struct member *m;
	struct group *g;
	bool connected, grouped;
	struct kept *kept;
	u8 section;
	u32 mode;
	u32 *index;
	u64 cookie;
	u16 port;

	if (!up)
		return 0;
	sk = (const struct sock *)address_of(up);
	port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (!has_reuseport(sk) ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return 0;
	told.in_scope = in_scope(sk);
	if (!told.in_scope && !bpf_map_lookup_elem(&wanted, &port))
		return 0;
	cookie = bpf_get_socket_cookie(up);
	index = bpf_map_lookup_elem(&datagram_index, &cookie);
	m = bpf_map_lookup_elem(&members, &cookie);
	told.group = (u64)BPF_CORE_READ(sk, sk_reuseport_cb);
	grouped = told.group;
	/* otherwise clang 19 tests both by one OR, which the verifier rejects */
	barrier_var(grouped);
	if (!m && !grouped)
		return 0;	/* has left its group by connect(2) */
	if (!m && index) {
		describe(sk, netns_of(sk), &key);
		reclaim(&key);
		if (!join(sk, cookie, netns_of(sk), *index))
			m = bpf_map_lookup_elem(&members, &cookie);
	}
	g = m ? group_of(m) : NULL;
	if (g) {
		/* connected: a flow, not a listener */
		connected = !grouped ||
			    BPF_CORE_READ(sk, __sk_common.skc_state) ==
				    TCP_ESTABLISHED;
		section = slot_at(g, m->slot)->section;
		if (is_ours(program_of(sk)) && asks_our_chooser(program_of(sk)))
			g->program = program_of(sk);
		if (connected && section == ON) {
			move(g, m->slot, ASIDE, true);
		} else if (!connected && section == ASIDE &&
			 !slot_at(g, m->slot)->closing) {
			/* with the mode that was set before */
			kept = bpf_sk_storage_get(&keepsakes, up, NULL, 0);
			mode = kept ? kept->mode : REUSEPORT_LISTEN_ON;
			move(g, m->slot, section_of(mode),
			     mode != REUSEPORT_LISTEN_ON);
		}
		start_looking_after(g);
	}
	told.cookie = cookie;
	told.program = program_of(sk);
	told.port = port;
	told.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	told.known = g != NULL;
	told.ours = is_ours(told.program);
	told.attached = told.ours && asks_our_chooser(told.program);
	told.index = m ? m->index : 0;
	bpf_seq_write(ctx->meta->seq, &told, sizeof(told));
	return 0;
}
