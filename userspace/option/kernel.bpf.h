/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel structs that the BPF programs of this project, here and in
 * ../ctl/host, read, with only the fields in use. CO-RE finds the fields in the
 * running kernel's BTF by name, so order and size do not matter here.
 */
#ifndef OPTION_KERNEL_BPF_H
#define OPTION_KERNEL_BPF_H

#include <linux/types.h>
#include <stdbool.h>

#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define AF_INET		2
#define AF_INET6	10
#define IPPROTO_TCP	6
#define IPPROTO_UDP	17
#define SOL_SOCKET	1
#define SOCK_STREAM	1
#define SOCK_DGRAM	2
#define TCP_ESTABLISHED	1
#define TCP_CLOSE	7
#define TCP_LISTEN	10

/* of a kernel that has the option itself; others ignore all flags */
#define BPF_SK_REUSEPORT_F_FLOW	1

#define EPERM		1
#define ENOENT		2
#define EAGAIN		11
#define ENOMEM		12
#define EBUSY		16
#define EEXIST		17
#define EINVAL		22
#define ENOSPC		28
#define ENOPROTOOPT	92
#define EOPNOTSUPP	95

#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)

/* include/net/inet_hashtables.h: the table of listening TCP sockets */
struct hlist_nulls_node {
	struct hlist_nulls_node *next;
};

struct hlist_nulls_head {
	struct hlist_nulls_node *first;
};

struct inet_listen_hashbucket {
	struct hlist_nulls_head nulls_head;
};

struct inet_hashinfo {
	unsigned int lhash2_mask;
	struct inet_listen_hashbucket *lhash2;
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
};

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row;
	u8 sysctl_tcp_l3mdev_accept;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct list_head {
	struct list_head *next, *prev;
};

struct net {
	struct list_head list;
	u32 hash_mix;
	u64 net_cookie;
	struct hlist_head *dev_index_head;
	struct netns_ipv4 ipv4;
};

/* include/linux/netdevice.h */
struct net_device {
	int ifindex;
	struct hlist_node index_hlist;
	const void *l3mdev_ops;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	int tgid;
	struct nsproxy *nsproxy;
};

/* include/linux/fs.h, include/linux/net.h */
struct inode {
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct socket {
	struct sock *sk;
};

/* include/net/sock.h */
typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	unsigned int val;
} kuid_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long long counter;
} atomic64_t;

struct in6_addr {
	u32 words[4];
};

struct sock_common {
	__be32 skc_rcv_saddr;
	u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_reuseport : 1;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if;
	struct proto *skc_prot;
	possible_net_t skc_net;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	struct hlist_nulls_node skc_nulls_node;
};

struct proto {
	int *per_cpu_fw_alloc;
};

struct sock_reuseport {
	u16 num_socks;
	unsigned int synq_overflow_ts;
	unsigned int reuseport_id;
	struct bpf_prog *prog;
};

/* ... of a kernel with the option itself: where in socks[] two sections end */
struct sock_reuseport___patched {
	u16 num_on;
	u16 num_ready;
	u16 num_conns;
	u8 mixed;
};

/* include/linux/cgroup-defs.h, include/linux/kernfs.h */
struct kernfs_node {
	u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sk_buff_head {
	u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	struct sock_cgroup_data sk_cgrp_data;
	u16 sk_type;
	u16 sk_protocol;
	u32 sk_ack_backlog;
	kuid_t sk_uid;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	struct sock_reuseport *sk_reuseport_cb;
	struct socket *sk_socket;
};

/* include/net/inet_connection_sock.h, include/linux/tcp.h */
struct request_sock_queue {
	atomic_t qlen;
};

struct inet_connection_sock {
	struct request_sock_queue icsk_accept_queue;
};

struct tcp_options_received {
	int ts_recent_stamp;
};

struct tcp_sock {
	struct tcp_options_received rx_opt;
	bool is_mptcp;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

/* include/linux/udp.h */
struct udp_sock {
	struct sk_buff_head reader_queue;
	int forward_deficit;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

/* kernel/rcu/tree.h */
struct rcu_state {
	unsigned long gp_seq_polled;
};

struct rcu_node {
	unsigned long gp_seq;
	struct rcu_node *parent;
};

struct rcu_data {
	struct rcu_node *mynode;
};

/* include/linux/bpf.h */
struct bpf_map {
	u32 id;
};

struct bpf_prog_aux {
	u32 id;
	struct bpf_map **used_maps;
	char name[16];
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct bpf_array {
	void *pptrs[1];
};

#pragma clang attribute pop

/*
 * The address of a socket that the verifier knows as one. Programs of these
 * types can read only the fields of struct bpf_sock; a copy through the stack
 * gives the address that bpf_probe_read_kernel() takes.
 */
static __always_inline struct sock *address_of(const void *socket)
{
	const void *on_stack = socket;
	struct sock *sk = NULL;

	bpf_probe_read_kernel(&sk, sizeof(sk), &on_stack);
	return sk;
}

static __always_inline u64 cookie_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

#endif /* OPTION_KERNEL_BPF_H */
