/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * UDP flows: while a socket lives, a client's datagrams go to the socket that
 * answered it, whatever its mode and however the group changes.
 *
 *	client ── datagram ──► a socket, by mode and hash
 *	client ◄── answer ──── record_flow: an unconfirmed flow
 *	client ── datagram ──► follow_flow: the same socket; now it is confirmed
 *
 * A sender with a forged address sees no answer. If it uses each address once,
 * its flows stay unconfirmed, and these evict only each other. A confirmed flow
 * is never evicted while it lives. Each has a place; a new one searches the next
 * few places for one whose flow has ended.
 */
#ifndef OPTION_FLOWS_BPF_H
#define OPTION_FLOWS_BPF_H

#include <linux/udp.h>

#include "table.bpf.h"

#define ETH_P_IP	0x0800
#define PLACES_TRIED	8

/* Their sizes are set before they are loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct flow_place);
} flow_places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_UNCONFIRMED_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
} unconfirmed_flows SEC(".maps");

/* Confirmed flows per uid, so that no user takes all places. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_MEMBERS);
	__type(key, u32);
	__type(value, struct flow_user);
} flow_users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct flow_table);
} flow_table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct flow_counts);
} flow_counts SEC(".maps");

static __always_inline struct flow_table *table_of_flows(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&flow_table, &zero);
}

static __always_inline struct flow_counts *counts_of_flows(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&flow_counts, &zero);
}

/* --- whether a flow is live --- */

static __always_inline bool is_silent(const struct flow *f, u64 now, u64 idle)
{
	/* another CPU may have seen a later tick */
	return (long long)(now - f->last) > (long long)idle;
}

/*
 * Memory of closed sockets may be reused for others at any time; a closed socket
 * that is not reused has no port.
 */
static __always_inline bool has_socket(const struct flow *f)
{
	const struct sock *sk = (const struct sock *)f->sk;

	return cookie_of(sk) == f->cookie &&
	       BPF_CORE_READ(sk, __sk_common.skc_num);
}

static __always_inline bool is_live(const struct flow *f, u64 now, u64 idle)
{
	return !is_silent(f, now, idle) && has_socket(f);
}

static __always_inline u64 idle_unconfirmed(const struct flow_table *t,
					    const struct flow *f)
{
	if (f->place == FLOW_EARLY)
		return t->idle;
	return t->idle < UNCONFIRMED_IDLE ? t->idle : UNCONFIRMED_IDLE;
}

/* The clock ticks a few hundred times a second; a flow is not written more often. */
static __always_inline void touch(struct flow *f, u64 now)
{
	if (f->last != now)
		*(volatile u64 *)&f->last = now;
}

/* --- confirmed flows and their places --- */

static __always_inline struct flow_user *user_of_flows(u32 uid)
{
	struct flow_user new = {};

	bpf_map_update_elem(&flow_users, &uid, &new, BPF_NOEXIST);
	return bpf_map_lookup_elem(&flow_users, &uid);
}

static __always_inline bool charge_flow(const struct flow_table *t, u32 uid)
{
	struct flow_user *user = user_of_flows(uid);

	if (!user)
		return false;
	if (__sync_fetch_and_add(&user->flows, 1) < t->of_one_uid)
		return true;
	__sync_fetch_and_add(&user->flows, -1);
	return false;
}

static __always_inline void uncharge_flow(u32 uid)
{
	struct flow_user *user = bpf_map_lookup_elem(&flow_users, &uid);

	if (user)
		__sync_fetch_and_add(&user->flows, -1);
}

/*
 * Not all flows of this user are known: a drain that waits for them goes on. By
 * the coarse clock they would count as known up to a tick before they were.
 */
static __always_inline void note_full(struct flow_counts *counts, u32 uid)
{
	struct flow_user *user = user_of_flows(uid);
	u64 now = bpf_ktime_get_ns();

	__sync_fetch_and_add(&counts->full, 1);
	if (user)
		*(volatile u64 *)&user->full_last = now;
	else
		*(volatile u64 *)&counts->full_last = now;
}

/*
 * Its place is free as soon as no flow names it. This may delete a flow that
 * another CPU has just recorded by this key: its next answer records it again.
 */
static __always_inline void forget_flow(const struct flow_key *key, u32 uid)
{
	if (!bpf_map_delete_elem(&flows, key))
		uncharge_flow(uid);
}

struct placing {
	const struct flow_table *table;
	struct flow_counts *counts;
	struct flow_key key;
	struct flow flow;
	u32 placed;
};

/* Checks the next place; only its holder changes what it names. */
static long try_place(u32 i, struct placing *p)
{
	const struct flow_table *t = p->table;
	struct flow_place *place;
	struct flow *there;
	long err;
	u32 n;

	n = __sync_fetch_and_add(&p->counts->hand, 1);
	n = t->places ? n % t->places : 0;
	place = bpf_map_lookup_elem(&flow_places, &n);
	if (!place || __sync_val_compare_and_swap(&place->held, 0, 1))
		return 0;
	there = bpf_map_lookup_elem(&flows, &place->key);
	if (there && there->place != n)
		there = NULL;
	if (there && !is_live(there, p->flow.last, t->idle)) {
		forget_flow(&place->key, there->uid);
		there = NULL;
	}
	if (!there && !p->placed && charge_flow(t, p->flow.uid)) {
		place->key = p->key;
		p->flow.place = n;
		err = bpf_map_update_elem(&flows, &p->key, &p->flow, BPF_NOEXIST);
		if (err)
			uncharge_flow(p->flow.uid);
		/* another CPU has done it: just as good */
		p->placed = !err || err == -EEXIST;
	}
	__sync_val_compare_and_swap(&place->held, 1, 0);
	return 0;
}

/* The client has sent again after an answer. */
static __always_inline void confirm(const struct flow_table *t,
				    const struct flow_key *key,
				    const struct flow *f)
{
	struct placing p = { .table = t, .counts = counts_of_flows(),
			     .key = *key, .flow = *f };

	if (!p.counts)
		return;
	bpf_loop(PLACES_TRIED, try_place, &p, 0);
	if (p.placed)
		bpf_map_delete_elem(&unconfirmed_flows, key);
	else
		note_full(p.counts, f->uid);
}

/* --- an incoming datagram --- */

static __always_inline void as_mapped(u32 *to, u32 ipv4)
{
	to[0] = to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = ipv4;
}

/* Without its port. */
static __always_inline bool read_addresses(struct sk_reuseport_md *ctx,
					   struct flow_key *key)
{
	u32 from_to[8];

	if (ctx->eth_protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(ctx, 12, from_to, 8,
						BPF_HDR_START_NET))
			return false;
		as_mapped(key->remote, from_to[0]);
		as_mapped(key->local, from_to[1]);
		return true;
	}
	if (bpf_skb_load_bytes_relative(ctx, 8, from_to, 32, BPF_HDR_START_NET))
		return false;
	__builtin_memcpy(key->remote, from_to, sizeof(key->remote));
	__builtin_memcpy(key->local, from_to + 4, sizeof(key->local));
	return true;
}

/* The flow of this key, if it is live; confirms it. */
static __always_inline struct flow *flow_of(const struct flow_table *t,
					    const struct flow_key *key, u64 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);
	struct flow copy;

	if (f)
		return is_live(f, now, t->idle) ? f : NULL;
	f = bpf_map_lookup_elem(&unconfirmed_flows, key);
	if (!f)
		return NULL;
	copy = *f;	/* in a full table it may be replaced at any moment */
	if (!is_live(&copy, now, idle_unconfirmed(t, &copy)))
		return NULL;
	copy.last = now;
	confirm(t, key, &copy);
	return bpf_map_lookup_elem(&flows, key) ?: f;
}

/* RFC 9000, 17.3. Datagrams of other protocols may look the same. */
static __always_inline bool has_short_header(struct sk_reuseport_md *ctx)
{
	u8 first;

	return !bpf_skb_load_bytes(ctx, sizeof(struct udphdr), &first, 1) &&
	       (first & 0xc0) == 0x40;
}

/*
 * Whether the datagram belongs to a flow and went to its socket. The selection
 * fails for a socket that is closing or not adopted.
 */
static __always_inline bool follow_flow(struct sk_reuseport_md *ctx)
{
	const struct flow_table *t = table_of_flows();
	const struct udphdr *udp = ctx->data;
	struct sock_reuseport *reuse;
	struct flow_counts *counts;
	struct flow_key key = {};
	const struct sock *sk;
	struct flow *f;
	u64 cookie, now;
	u32 index;

	if (!t || !ctx->sk || (void *)(udp + 1) > ctx->data_end)
		return false;
	sk = address_of(ctx->sk);
	reuse = BPF_CORE_READ(sk, sk_reuseport_cb);
	key.group = BPF_CORE_READ(reuse, reuseport_id);
	key.remote_port = udp->source;
	if (!read_addresses(ctx, &key))
		return false;
	now = bpf_ktime_get_coarse_ns();
	f = flow_of(t, &key, now);
	if (!f && ctx->bind_inany) {
		/* of an answer that did not set its local address */
		__builtin_memset(key.local, 0, sizeof(key.local));
		f = flow_of(t, &key, now);
	}
	if (!f)
		goto unknown;
	sk = (const struct sock *)f->sk;
	cookie = f->cookie;
	/* connected: it receives nothing from others any more */
	if (!index_of(cookie, &index) ||
	    BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED)
		goto unknown;
	if (bpf_sk_select_reuseport(ctx, &datagrams, &index,
				    BPF_SK_REUSEPORT_F_FLOW))
		goto unknown;
	touch(f, now);
	return true;
unknown:
	counts = counts_of_flows();
	if (counts && has_short_header(ctx))
		__sync_fetch_and_add(&counts->short_headers, 1);
	return false;
}

/* --- an answer --- */

/*
 * A socket sends: if it is in a group, that is a flow, whoever receives it. A live
 * flow stays with its socket.
 */
static __always_inline void record_flow(const struct sock *sk, u64 cookie,
					struct flow_key *key)
{
	struct flow new = { .cookie = cookie, .sk = (u64)sk };
	const struct flow_table *t = table_of_flows();
	struct flow *f;

	if (!t)
		return;
	new.last = bpf_ktime_get_coarse_ns();
	f = bpf_map_lookup_elem(&flows, key);
	if (f && f->cookie == cookie) {
		touch(f, new.last);
		return;
	}
	if (f) {
		if (is_live(f, new.last, t->idle))
			return;
		forget_flow(key, f->uid);
	}
	f = bpf_map_lookup_elem(&unconfirmed_flows, key);
	if (f && f->cookie == cookie) {
		touch(f, new.last);
		return;
	}
	if (f && is_live(f, new.last, idle_unconfirmed(t, f)))
		return;
	new.uid = BPF_CORE_READ(sk, sk_uid.val);
	if (!bpf_map_lookup_elem(&members, &cookie))
		new.place = FLOW_EARLY;
	bpf_map_update_elem(&unconfirmed_flows, key, &new, BPF_ANY);
}

/* Whether a socket sends for a group: not if it is connected. */
static __always_inline bool find_group(const struct sock *sk, u32 *group)
{
	struct sock_reuseport *reuse = BPF_CORE_READ(sk, sk_reuseport_cb);

	if (!reuse || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP ||
	    BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED)
		return false;
	*group = BPF_CORE_READ(reuse, reuseport_id);
	return true;
}

#endif /* OPTION_FLOWS_BPF_H */
