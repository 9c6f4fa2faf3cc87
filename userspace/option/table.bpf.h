/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The table: reuseport groups, their members, and how a member changes its
 * place in its group.
 *
 * A group is an array of slots, one per member, and a permutation of them kept
 * in sections, like socks[] in the patched kernel:
 *
 *	perm:	ON ... | STANDBY ... | OFF ... | ASIDE ... | free
 *
 * Every change is a swap at each boundary it crosses, under the group's lock,
 * then one store of all counts. The selection takes no lock: it reads the counts,
 * perm[hash], and the member's own section, which must be the expected one.
 */
#ifndef OPTION_TABLE_BPF_H
#define OPTION_TABLE_BPF_H

#include "kernel.bpf.h"
#include "table.h"

#define SLOT_MASK	(GROUP_SIZE - 1)
/* "pending", later than any grace period */
#define NEVER		(~0ULL >> 1)

/* Listening TCP sockets by cookie; the kernel removes them when they close. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, MAX_MEMBERS);
	__type(key, u64);
	__type(value, u64);
} listeners SEC(".maps");

/*
 * Bound UDP sockets, by an index that user space assigns. A SOCKHASH would change
 * how they receive. Adding a socket needs its descriptor.
 */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, MAX_DATAGRAMS);
	__type(key, u32);
	__type(value, u64);
} datagrams SEC(".maps");

/* ... of sockets to be joined, by cookie; user space has put them there */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DATAGRAMS);
	__type(key, u64);
	__type(value, u32);
} datagram_index SEC(".maps");

/* All sockets that are in a group of the table, by cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_MEMBERS);
	__type(key, u64);
	__type(value, struct member);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_MEMBERS);
	__type(key, struct group_key);
	__type(value, struct group);
} groups SEC(".maps");

/* The initial state of a new group; user space fills in the permutation. */
struct new_group {
	u8 bytes[sizeof(struct group)];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct new_group);
} new_group SEC(".maps");

/*
 * Groups with members that are not ON, or had some a moment ago, by port and
 * namespace; 0 if a port is not involved.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, u32);
} involved SEC(".maps");

/* Members per uid, so that no user fills the table for others. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_MEMBERS);
	__type(key, u32);
	__type(value, u32);
} users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct common);
} common SEC(".maps");

/* Written by user space; see rcu_snapshot(). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct grace_periods);
} grace_periods SEC(".maps");

const volatile struct settings settings SEC(".rodata.settings");

static __always_inline struct common *common_to_all(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&common, &zero);
}

/* --- grace periods --- */

/*
 * What get_state_synchronize_rcu() and poll_state_synchronize_rcu() read
 * (kernel/rcu/tree.c), at the address found by call_find_rcu(). Without it, user
 * space counts the grace periods it has waited for.
 */
static __always_inline bool rcu_sequence(const struct common *all, u64 *sequence)
{
	unsigned long number;

	if (!all->rcu_sequence ||
	    bpf_probe_read_kernel(&number, sizeof(number), (void *)all->rcu_sequence))
		return false;
	*sequence = number;
	return true;
}

static __always_inline struct grace_periods *waited_for(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&grace_periods, &zero);
}

/* Once rcu_is_over() this, every lookup that is in progress now has finished. */
static __always_inline u64 rcu_snapshot(void)
{
	struct grace_periods *waited = waited_for();
	struct common *all = common_to_all();
	u64 sequence, order;

	if (!all || !waited)
		return NEVER;
	/*
	 * Lookups that begin from here on see earlier changes. Only an atomic
	 * that fetches is a full barrier.
	 */
	order = __sync_fetch_and_add(&all->barrier, 1);
	barrier_var(order);
	/* rcu_seq_snap(), kernel/rcu/rcu.h */
	if (rcu_sequence(all, &sequence))
		return (sequence + 7) & ~3ULL;
	return *(volatile u64 *)&waited->begun + 1;
}

static __always_inline bool rcu_is_over(u64 snapshot)
{
	struct grace_periods *waited = waited_for();
	struct common *all = common_to_all();
	u64 sequence;

	if (!all || !waited)
		return false;
	if (rcu_sequence(all, &sequence))
		return (long long)(sequence - snapshot) >= 0;
	return *(volatile u64 *)&waited->over >= snapshot;
}

static __always_inline bool same_key(const struct group_key *a,
				     const struct group_key *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;
	u32 i;

	for (i = 0; i < sizeof(*a) / sizeof(*x); i++)
		if (x[i] != y[i])
			return false;
	return true;
}

/* --- counts --- */

static __always_inline u32 count_in(u64 counts, enum section section)
{
	return (counts >> (16 * section)) & 0xffff;
}

static __always_inline u32 count_all(u64 counts)
{
	return count_in(counts, ON) + count_in(counts, STANDBY) +
	       count_in(counts, OFF) + count_in(counts, ASIDE);
}

static __always_inline bool all_on(u64 counts)
{
	return counts >> 16 == 0;
}

/* --- involved --- */

static __always_inline u16 salt_of(u64 netns_cookie)
{
	return (netns_cookie * 0x9e3779b97f4a7c15ULL) >> 48;
}

static __always_inline void involve(u16 port, u16 salt, int by)
{
	u32 key = port ^ salt;
	u32 *n = bpf_map_lookup_elem(&involved, &key);

	if (n)
		__sync_fetch_and_add(n, by);
}

static __always_inline bool is_involved(u16 port, u16 salt)
{
	u32 key = port ^ salt;
	u32 *n = bpf_map_lookup_elem(&involved, &key);

	return n && *(volatile u32 *)n;
}

/* --- a member changes its section --- */

static __always_inline struct slot *slot_at(struct group *g, u32 i)
{
	return &g->slots[i & SLOT_MASK];
}

static __always_inline void swap_positions(struct group *g, u32 a, u32 b)
{
	u16 slot_a = slot_at(g, a)->perm;
	u16 slot_b = slot_at(g, b)->perm;

	*(volatile u16 *)&slot_at(g, a)->perm = slot_b;
	*(volatile u16 *)&slot_at(g, b)->perm = slot_a;
	slot_at(g, slot_b)->position = a;
	slot_at(g, slot_a)->position = b;
}

static __always_inline u64 one_in(int section)
{
	return section < FREE ? 1ULL << (16 * section) : 0;
}

/* Where this section ends and the next begins. */
static __always_inline u32 end_of(u64 counts, int section)
{
	return count_in(counts, ON) +
	       (section >= STANDBY ? count_in(counts, STANDBY) : 0) +
	       (section >= OFF ? count_in(counts, OFF) : 0) +
	       (section >= ASIDE ? count_in(counts, ASIDE) : 0);
}

/* From the section to the next one: as the last of it, over the boundary. */
static __always_inline u64 step_away(struct group *g, struct slot *s,
				     u64 counts, int section)
{
	swap_positions(g, s->position, end_of(counts, section) - 1);
	return counts - one_in(section) + one_in(section + 1);
}

/* From the next section to this one: as the first of that. */
static __always_inline u64 step_toward(struct group *g, struct slot *s,
				       u64 counts, int section)
{
	swap_positions(g, s->position, end_of(counts, section));
	return counts + one_in(section) - one_in(section + 1);
}

/*
 * Under the group's lock. The counts change by one store, so that no reader sees
 * the group without this member or with it twice. A member's own section is
 * written before it moves toward ON, and after it has moved away.
 */
static __always_inline void move_locked(struct group *g, struct slot *s,
					int to)
{
	int from = s->section;
	u64 counts = g->counts;

	*(volatile u64 *)&g->changes += 1;
	if (to < from) {
		*(volatile u8 *)&s->section = to;
		if (from > ASIDE && to <= ASIDE)
			counts = step_toward(g, s, counts, ASIDE);
		if (from > OFF && to <= OFF)
			counts = step_toward(g, s, counts, OFF);
		if (from > STANDBY && to <= STANDBY)
			counts = step_toward(g, s, counts, STANDBY);
		if (from > ON && to <= ON)
			counts = step_toward(g, s, counts, ON);
		*(volatile u64 *)&g->counts = counts;
	} else {
		if (from <= ON && to > ON)
			counts = step_away(g, s, counts, ON);
		if (from <= STANDBY && to > STANDBY)
			counts = step_away(g, s, counts, STANDBY);
		if (from <= OFF && to > OFF)
			counts = step_away(g, s, counts, OFF);
		if (from <= ASIDE && to > ASIDE)
			counts = step_away(g, s, counts, ASIDE);
		*(volatile u64 *)&g->counts = counts;
		*(volatile u8 *)&s->section = to;
	}
}

/* --- joining --- */

static __always_inline void describe(const struct sock *sk, u64 netns,
				     struct group_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->netns = netns;
	key->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	key->protocol = BPF_CORE_READ(sk, sk_protocol);
	key->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	key->device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	key->uid = BPF_CORE_READ(sk, sk_uid.val);
	if (key->family == AF_INET6) {
		key->v6only = BPF_CORE_READ_BITFIELD_PROBED(
			sk, __sk_common.skc_ipv6only);
		bpf_core_read(key->address, sizeof(key->address),
			      &sk->__sk_common.skc_v6_rcv_saddr);
	} else {
		key->address[0] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	}
}

/* Cookie of the network namespace of a socket. */
static __always_inline u64 netns_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
}

static __always_inline bool has_reuseport(const struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport);
}

static __always_inline u16 num_socks_of(const struct sock *sk)
{
	struct sock_reuseport *reuse = BPF_CORE_READ(sk, sk_reuseport_cb);

	return reuse ? BPF_CORE_READ(reuse, num_socks) : 0;
}

static __always_inline enum section section_of(u32 mode)
{
	return mode == REUSEPORT_LISTEN_ON  ? ON :
	       mode == REUSEPORT_LISTEN_OFF ? OFF :
					      STANDBY;
}

static __always_inline u32 mode_of(enum section section)
{
	return section == ON  ? REUSEPORT_LISTEN_ON :
	       section == OFF ? REUSEPORT_LISTEN_OFF :
				REUSEPORT_LISTEN_STANDBY;
}

static __always_inline int charge(u32 uid)
{
	u32 zero = 0;
	u32 *n;

	bpf_map_update_elem(&users, &uid, &zero, BPF_NOEXIST);
	n = bpf_map_lookup_elem(&users, &uid);
	if (!n)
		return -ENOSPC;
	if (__sync_fetch_and_add(n, 1) < settings.members_per_uid)
		return 0;
	__sync_fetch_and_add(n, -1);
	return -ENOSPC;
}

static __always_inline void uncharge(u32 uid)
{
	u32 *n = bpf_map_lookup_elem(&users, &uid);

	if (n)
		__sync_fetch_and_add(n, -1);
}

/*
 * Where a member is in `datagrams`. The memory of one that has gone is another
 * one's at once, but no cookie comes twice: what was read before it is found
 * again, at the same place, is its own.
 */
static __always_inline bool index_of(u64 cookie, u32 *index)
{
	struct member *m = bpf_map_lookup_elem(&members, &cookie);

	if (!m)
		return false;
	*index = *(volatile u32 *)&m->index;
	return bpf_map_lookup_elem(&members, &cookie) == m;
}

static __always_inline struct group *find_or_make(const struct group_key *key)
{
	struct group *g = bpf_map_lookup_elem(&groups, key);
	struct common *all = common_to_all();
	struct new_group *template;
	u32 zero = 0;

	if (g)
		return g;
	template = bpf_map_lookup_elem(&new_group, &zero);
	if (!template || !all)
		return NULL;
	bpf_map_update_elem(&groups, key, template, BPF_NOEXIST);
	g = bpf_map_lookup_elem(&groups, key);
	if (!g)
		return NULL;
	g->port = key->port;
	g->salt = salt_of(key->netns);
	g->protocol = key->protocol;
	__sync_val_compare_and_swap(&g->id, 0,
				    __sync_fetch_and_add(&all->last_group_id, 1) + 1);
	return g;
}

/*
 * Adds a socket to the table, ASIDE; the caller moves it on. Called by programs
 * that own the socket or its place in the table, so once per socket.
 */
static __always_inline int join(const struct sock *sk, u64 cookie, u64 netns,
				u32 index)
{
	struct member m = { .index = index, .taken_in = bpf_ktime_get_ns() };
	struct group *g;
	struct slot *s;
	u32 total;
	int err;

	describe(sk, netns, &m.key);
	err = charge(m.key.uid);
	if (err)
		return err;
	err = -ENOSPC;
	g = find_or_make(&m.key);
	if (!g)
		goto refund;

	bpf_spin_lock(&g->lock);
	total = count_all(g->counts);
	if (g->dead) {
		err = -EAGAIN;
	} else if (total < GROUP_SIZE) {
		m.slot = slot_at(g, total)->perm;
		s = slot_at(g, m.slot);
		/* in this order for those who read without the lock */
		*(volatile u8 *)&s->closing = false;
		*(volatile u64 *)&s->sk = (u64)sk;
		*(volatile u64 *)&s->cookie = cookie;
		s->settled = 0;
		s->wanted = ON;
		move_locked(g, s, ASIDE);
		err = 0;
	}
	bpf_spin_unlock(&g->lock);
	if (err)
		goto refund;

	err = bpf_map_update_elem(&members, &cookie, &m, BPF_NOEXIST);
	if (!err)
		return 0;
	bpf_spin_lock(&g->lock);
	move_locked(g, slot_at(g, m.slot), FREE);
	bpf_spin_unlock(&g->lock);
	err = -ENOSPC;
refund:
	uncharge(m.key.uid);
	return err;
}

/*
 * Call before lookups depend on it. Holds until some time after the last member
 * that is not ON has gone: a lookup that saw no involved group may take a while,
 * and another such member may come.
 */
static __always_inline void start_involving(struct group *g)
{
	bool was_involved;

	*(volatile u8 *)&g->quiet_ticks = 0;
	if (*(volatile u8 *)&g->involved)
		return;
	involve(g->port, g->salt, 1);
	bpf_spin_lock(&g->lock);
	was_involved = g->involved;
	g->involved = true;
	bpf_spin_unlock(&g->lock);
	if (was_involved)
		involve(g->port, g->salt, -1);
}

static __always_inline void stop_involving(struct group *g)
{
	bool stops;

	bpf_spin_lock(&g->lock);
	stops = g->involved && all_on(g->counts);
	if (stops)
		g->involved = false;
	bpf_spin_unlock(&g->lock);
	if (stops)
		involve(g->port, g->salt, -1);
}

/*
 * Moves a member; returns whether that changed anything. @involves: lookups may
 * find it, but must not choose it.
 */
static __always_inline bool move(struct group *g, u32 slot, enum section to,
				 bool involves)
{
	struct slot *s = slot_at(g, slot);
	enum section from;
	bool none_on, again;

	if (involves)
		start_involving(g);

	bpf_spin_lock(&g->lock);
	from = s->section;
	none_on = !count_in(g->counts, ON);
	if (from != to && (to == STANDBY || to == OFF))
		s->settled = NEVER;
	if (none_on && to == ON)
		g->none_on = NEVER;
	move_locked(g, s, to);
	if (to <= OFF)
		s->wanted = to;
	again = involves && !g->involved;	/* just stopped, by the timer */
	if (again)
		g->involved = true;
	bpf_spin_unlock(&g->lock);

	if (again)
		involve(g->port, g->salt, 1);
	if (from == to)
		return false;
	if (to == STANDBY || to == OFF)
		s->settled = rcu_snapshot();
	if (none_on && to == ON)
		g->none_on = rcu_snapshot();
	return true;
}

/* --- leaving --- */

/*
 * A closing member stays in the table, ASIDE, until it is in none of the kernel's
 * hash tables: until then a lookup may find it. Its group's timer checks that. It
 * also finds members whose end no program noticed: shutdown(2), and all that a
 * Session adopted.
 */
static __always_inline bool is_hashed(const struct slot *s, u64 cookie,
				      u8 protocol)
{
	const struct sock *sk = (const struct sock *)s->sk;

	/* memory of closed sockets may be reused for others at any time */
	if (cookie_of(sk) != cookie)
		return false;
	if (protocol == IPPROTO_UDP)
		return BPF_CORE_READ(sk, __sk_common.skc_num);
	return BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN;
}

/*
 * By its cookie, read before the reason to remove it: the slot may have been
 * freed and reused since. Whoever deletes the member owns its slot.
 */
static __always_inline void let_go(struct group *g, u64 cookie)
{
	struct member *m = bpf_map_lookup_elem(&members, &cookie);
	struct slot *s;
	u32 uid;

	if (!m)
		return;
	uid = m->key.uid;
	s = slot_at(g, m->slot);
	if (bpf_map_delete_elem(&members, &cookie))
		return;	/* another CPU does it */
	if (g->protocol == IPPROTO_UDP)
		bpf_map_delete_elem(&datagram_index, &cookie);
	bpf_spin_lock(&g->lock);
	move_locked(g, s, FREE);
	bpf_spin_unlock(&g->lock);
	uncharge(uid);
}

/* A member that is not listening, or not yet. */
static __always_inline void put_aside(struct group *g, u32 slot, u64 cookie)
{
	struct slot *s = slot_at(g, slot);

	move(g, slot, ASIDE, s->wanted != ON);
	/* or is by now: then no one else moves it any more */
	if (is_hashed(s, cookie, g->protocol) && !*(volatile u8 *)&s->closing)
		move(g, slot, s->wanted, s->wanted != ON);
}

static long sweep_one(u32 i, struct group **group)
{
	struct group *g = *group;
	const struct sock *sk;
	struct slot *s;
	u32 n, slot;
	u64 cookie;

	/* from the end: a removed member swaps places with the last */
	n = count_all(g->counts);
	if (i >= n)
		return 1;
	slot = slot_at(g, n - 1 - i)->perm;
	s = slot_at(g, slot);
	cookie = *(volatile u64 *)&s->cookie;
	if (*(volatile u8 *)&s->section == FREE ||
	    is_hashed(s, cookie, g->protocol))
		return 0;
	/* one that may listen again must be known before lookups find it */
	sk = (const struct sock *)s->sk;
	if (!settings.sees_closing || g->protocol != IPPROTO_TCP ||
	    s->closing || cookie_of(sk) != cookie ||
	    /* closed before it was adopted, so see_closing() missed it */
	    !BPF_CORE_READ(sk, sk_socket))
		let_go(g, cookie);
	else if (s->section != ASIDE)
		put_aside(g, slot, cookie);
	return 0;
}

static __always_inline void sweep(struct group *g)
{
	bpf_loop(GROUP_SIZE, sweep_one, &g, 0);
}

/*
 * No program notices shutdown(2), and the timer may take a while. Do not count a
 * member that the kernel has already removed, e.g. the last one that is ON.
 */
static __always_inline void sweep_if_some_are_gone(struct group *g,
						   const struct sock *sk)
{
	u64 counts = *(volatile u64 *)&g->counts;

	if (num_socks_of(sk) < end_of(counts, OFF))
		sweep(g);
}

/*
 * If members come and go faster than the timer runs, each that joins removes some
 * that have closed: the first ones of the section ASIDE.
 */
static long reclaim_one(u32 i, struct group **group)
{
	struct group *g = *group;
	u64 counts = g->counts;
	struct slot *s;
	u32 from, n;
	u64 cookie;

	n = count_in(counts, ASIDE);
	if (!n)
		return 1;
	from = end_of(counts, OFF);
	s = slot_at(g, slot_at(g, from + i % n)->perm);
	cookie = *(volatile u64 *)&s->cookie;
	if (*(volatile u8 *)&s->section == ASIDE &&
	    *(volatile u8 *)&s->closing && !is_hashed(s, cookie, g->protocol))
		let_go(g, cookie);
	return 0;
}

static __always_inline void reclaim(const struct group_key *key)
{
	struct group *g = bpf_map_lookup_elem(&groups, key);

	if (g && count_in(g->counts, ASIDE))
		bpf_loop(8, reclaim_one, &g, 0);
}

#define MS		1000000ULL
#define CLOCK_MONOTONIC	1

static int look_after(void *map, struct group_key *key, struct group *value);

/* The timer of all groups that have none; its memory is allocated. */
struct common_timer {
	struct bpf_timer timer;
	u64 started;	/* do not start it again: that would delay it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct common_timer);
} common_timer SEC(".maps");

static __always_inline void start_common_timer(void)
{
	u32 zero = 0;
	struct common_timer *t = bpf_map_lookup_elem(&common_timer, &zero);

	if (t && !__sync_val_compare_and_swap(&t->started, 0, 1) &&
	    bpf_timer_start(&t->timer, 100 * MS, 0))
		t->started = 0;
}

/* Whether the group has its own timer, and it runs. */
static __always_inline bool has_timer(struct group *g)
{
	long err = bpf_timer_init(&g->timer, &groups, CLOCK_MONOTONIC);

	if (err && err != -EBUSY)
		return false;	/* newer kernels may lack memory here, for seconds */
	bpf_timer_set_callback(&g->timer, look_after);
	bpf_timer_start(&g->timer, 10 * MS, 0);
	return true;
}

static __always_inline void leave_to_common_timer(struct group *g)
{
	*(volatile u8 *)&g->unattended = true;
	start_common_timer();
}

/* Groups whose members are all ON need no timer. */
static __always_inline void start_looking_after(struct group *g)
{
	if (!has_timer(g))
		leave_to_common_timer(g);
}

/* Periodic work; returns the time until the next run, 0: none. */
static __always_inline u64 attend(struct group *g, struct group_key *key)
{
	u64 counts;

	sweep(g);
	counts = g->counts;
	if (!all_on(counts))
		g->quiet_ticks = 0;
	else if (g->involved && ++g->quiet_ticks > 2)
		stop_involving(g);
	if (count_all(counts)) {
		g->empty_ticks = 0;
	} else if (++g->empty_ticks > 10) {
		/*
		 * No one joined for a second: no joining program still holds a
		 * pointer to it, so it can be deleted.
		 */
		bpf_spin_lock(&g->lock);
		g->dead = !count_all(g->counts);
		bpf_spin_unlock(&g->lock);
		if (g->dead) {
			bpf_map_delete_elem(&groups, key);
			return 0;
		}
	}
	if (count_in(counts, ASIDE))
		return 10 * MS;
	if (!count_all(counts) || !all_on(counts) || g->involved)
		return 100 * MS;
	return 0;
}

static int look_after(void *map, struct group_key *key, struct group *value)
{
	struct group *g;
	u64 next;

	/* 6.1 does not allow locking @value */
	g = bpf_map_lookup_elem(&groups, key);
	if (!g)
		return 0;
	next = attend(g, key);
	if (next)
		bpf_timer_start(&g->timer, next, 0);
	return 0;
}

static long attend_unattended(void *map, struct group_key *key,
			      struct group *value, void *unused)
{
	struct group *g;

	if (!*(volatile u8 *)&value->unattended)
		return 0;
	g = bpf_map_lookup_elem(&groups, key);
	if (!g)
		return 0;
	*(volatile u8 *)&g->unattended = false;
	if (!has_timer(g) && attend(g, key))
		leave_to_common_timer(g);
	return 0;
}

static int attend_all(void *map, u32 *key, struct common_timer *value)
{
	/* before the walk: a group that comes later starts the timer */
	__sync_val_compare_and_swap(&value->started, 1, 0);
	bpf_for_each_map_elem(&groups, attend_unattended, NULL, 0);
	return 0;
}

/* For the time that it takes to close a socket. */
static __always_inline void set_aside(struct group *g, u32 slot)
{
	slot_at(g, slot)->closing = true;
	move(g, slot, ASIDE, false);
	start_looking_after(g);
}

#endif /* OPTION_TABLE_BPF_H */
