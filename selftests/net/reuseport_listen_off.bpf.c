// SPDX-License-Identifier: GPL-2.0
/*
 * Programs that choose a socket, for the tests of SO_REUSEPORT_LISTEN_OFF.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} to_select SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} to_assign SEC(".maps");

__s64 answer;		/* of the last bpf_sk_select_reuseport() */
__u64 select_flags;	/* BPF_SK_REUSEPORT_F_* */
bool refuse;		/* what was not selected */
__u64 assign_flags;	/* BPF_SK_LOOKUP_F_* */
__u64 runs;

static int select_first(struct sk_reuseport_md *md)
{
	__u32 key = 0;

	answer = bpf_sk_select_reuseport(md, &to_select, &key, select_flags);
	return answer && refuse ? SK_DROP : SK_PASS;
}

SEC("sk_reuseport")
int select_one(struct sk_reuseport_md *md)
{
	return select_first(md);
}

SEC("sk_reuseport/migrate")
int select_or_migrate(struct sk_reuseport_md *md)
{
	return select_first(md);
}

/* Give every new flow to one socket. */
SEC("sk_lookup")
int assign(struct bpf_sk_lookup *ctx)
{
	struct bpf_sock *sk;
	__u32 key = 0;

	sk = bpf_map_lookup_elem(&to_assign, &key);
	if (!sk)
		return SK_PASS;
	bpf_sk_assign(ctx, sk, assign_flags);
	bpf_sk_release(sk);
	return SK_PASS;
}

/* Return no index, take long, and count. */
SEC("socket")
int count(struct __sk_buff *skb)
{
	int i;

	for (i = 0; i < 200; i++)
		bpf_get_prandom_u32();
	__sync_fetch_and_add(&runs, 1);
	return -1;
}

char _license[] SEC("license") = "GPL";
