/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The interface between the programs and user space. */
#ifndef OPTION_TABLE_H
#define OPTION_TABLE_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <linux/reuseport.h>

/* In the kernel's style: NOLINTBEGIN(readability-identifier-naming) */

/* Maximum number of listeners, in all namespaces and of all users. */
#define MAX_MEMBERS	65536

/* Bound UDP sockets among them. */
#define MAX_DATAGRAMS	16384

/* Members of one group; two objects are built. A power of two. */
#ifndef GROUP_SIZE
#define GROUP_SIZE	512
#endif

/* What sockets of one kernel group have in common: inet_reuseport_add_sock(). */
struct group_key {
	__u64 netns;		/* cookie */
	__u32 address[4];	/* as in the packet; IPv4: the first word */
	__u32 device;		/* bound to; 0: none */
	__u32 uid;
	__u16 port;		/* host order */
	__u8 family;
	__u8 protocol;
	__u8 v6only;
	__u8 unused[3];
};

enum section {
	ON,
	STANDBY,
	OFF,
	/*
	 * Not ON, and the kernel may or may not have it in its hash table: it
	 * is about to listen with a mode that was set before (it is bound, or was
	 * shut down), or it is closing.
	 */
	ASIDE,
	FREE,
};

struct slot {
	__u64 sk;			/* address of the kernel's socket */
	__u64 cookie;
	__u64 settled;		/* rcu_snapshot() of its last change */
	__u16 perm;		/* slot at this position */
	__u16 position;		/* of this slot */
	__u8 section;
	__u8 wanted;		/* section of its mode, also while it is ASIDE */
	__u8 closing;		/* why it is ASIDE */
};

struct group {
	struct bpf_spin_lock lock;
	__u32 id;
	__u64 counts;		/* of ON, STANDBY, OFF, ASIDE: 16 bits each */
	__u64 none_on;		/* rcu_snapshot() when last none was ON */
	__u64 left_open;		/* ... when a lookup was left to the kernel */
	struct bpf_timer timer;
	__u16 port;
	__u16 salt;		/* of its namespace in `involved` */
	__u16 empty_ticks;	/* of the timer, with no member */
	__u8 dead;		/* is about to be deleted, cannot be joined */
	__u8 involved;		/* counts in `involved` */
	__u8 quiet_ticks;	/* of the timer, with all members ON */
	__u8 protocol;
	__u8 unattended;	/* its timer got no memory */
	__u64 program;		/* UDP: address of ours, on the kernel's group */
	__u64 changes;		/* of counts */
	struct slot slots[GROUP_SIZE];
};

struct member {
	struct group_key key;
	__u32 slot;
	__u32 index;		/* UDP: in `datagrams` */
	__u64 asked;		/* the change after which SETTLED was asked for */
	__u64 none_half_open;	/* snapshot + 1 since handshakes are 0 */
	__u64 taken_in;		/* UDP: when, ns of CLOCK_MONOTONIC */
};

/* A request of the tool to the programs; the data of a BPF_PROG_TEST_RUN. */
struct call {
	__u8 ethernet_header[16];
	__u64 cookie;
	__s32 error;		/* out: 0 or a negative errno */
	__u32 mode;
	__u64 rcu_state;	/* in, call_find_rcu(): address, or 0 and ... */
	__u32 rcu_data;		/* ... offsets in .data..percpu */
	__u32 fw_alloc;
	__u32 unknown;		/* out: in the kernel's group, not in ours */
	__u64 clock;		/* out, call_flow_clock(): ns of CLOCK_MONOTONIC ... */
	__u64 coarse_clock;	/* ... and of CLOCK_MONOTONIC_COARSE */
	struct reuseport_listen_info info;	/* out */
};

/* Why a lookup was left to the kernel. */
enum left_reason {
	LEFT_UNKNOWN_LISTENER,	/* it found one that is not in the table */
	LEFT_UNKNOWN_MEMBER,	/* its group has others, or a program */
	LEFT_NO_MEMBER,		/* none of those tried could be assigned */
	LEFT_TOO_LONG,		/* too many have closed during the lookup */
	LEFT_REASONS,
};

/* State that all programs share. */
struct common {
	__u64 barrier;		/* no value: an atomic for ordering */
	__u64 rcu_sequence;	/* address of the number of RCU's grace period, or 0 */
	__u32 last_group_id;
	__u32 chooser;		/* id of the map `datagram_chooser`; written once */
	__u64 left[LEFT_REASONS];	/* lookups left to the kernel although a port is involved */
};

/* Grace periods that user space has waited for. */
struct grace_periods {
	__u64 begun;
	__u64 over;
};

/*
 * A UDP flow: a group of sockets, an address and port that sends to it, and the
 * local address of its answers.
 */
struct flow_key {
	__u32 group;		/* the kernel's number of it: reuseport_id */
	__u16 remote_port;	/* network order */
	__u16 unused;
	__u32 remote[4];	/* IPv4 is mapped into IPv6, RFC 4291, 2.5.5.2 */
	__u32 local[4];		/* 0: the answer left it to the kernel */
};

struct flow {
	__u64 cookie;		/* of the socket that answers */
	__u64 sk;		/* its address */
	__u64 last;		/* ns of CLOCK_MONOTONIC_COARSE: of its last datagram */
	__u32 place;		/* of a confirmed flow; else FLOW_EARLY or 0 */
	__u32 uid;
};

/* Answered before its socket was adopted: then nothing could confirm it. */
#define FLOW_EARLY	1

struct flow_place {
	struct flow_key key;
	__u32 held;		/* while it is changed */
};

/* Written by user space only. */
struct flow_table {
	__u64 idle;		/* ns: idle timeout of a flow */
	__u64 since;		/* when recording began, ns of CLOCK_MONOTONIC */
	__u32 places;
	__u32 of_one_uid;
};

/* ... by programs only */
struct flow_counts {
	__u64 full;		/* datagrams whose flow got no place */
	__u64 full_last;	/* ... the last one whose uid has no entry, as below */
	__u64 short_headers;	/* ... without a flow but with a short QUIC header */
	__u32 hand;		/* the place to try next */
	__u32 unused;
};

struct flow_user {
	/* when a flow of this uid last found no place, ns of CLOCK_MONOTONIC */
	__u64 full_last;
	__u32 flows;		/* confirmed */
	__u32 unused;
};

/* Flows on which the client has sent nothing since the answer. */
#define MAX_UNCONFIRMED_FLOWS	65536
#define UNCONFIRMED_IDLE	10000000000ULL	/* ns */

struct about {
	__u32 version;
	__u32 group_size;
	__u64 since;		/* seconds of the epoch */
	__u64 build;		/* of the object whose programs are attached */
};

/* A UDP socket, as find_datagrams() reports it. */
struct datagram {
	__u64 cookie;
	__u64 program;		/* address of the BPF program on its group, or 0 */
	__u16 port;
	__u8 family;
	__u8 known;		/* is a member */
	__u32 index;		/* ... at this index of `datagrams` */
	__u8 ours;		/* the program is, or another object's */
	__u8 in_scope;		/* in an enabled cgroup, not only on a port */
	__u8 attached;		/* the program calls the chooser of this object */
	__u8 unused[5];
	__u64 group;		/* the kernel's, by its address */
};

/* Set before the programs are loaded. */
struct settings {
	__u32 hz;		/* jiffies a second */
	__u32 members_per_uid;
	__u32 sees_closing;	/* see_closing() is attached for all members */
	__u32 kernel_chooses;	/* it has the option itself: flows alone are ours */
};

/* A namespace, for the program that chooses there. */
struct look {
	__u64 netns;		/* cookie */
	__u64 net;		/* address of struct net */
	__u64 lhash2;		/* address of the table of listeners */
	__u32 lhash2_mask;
	__u32 hash_mix;
	__u32 seed;		/* of the selection */
	__u32 inode;		/* of the namespace, for user space */
};

/*
 * Pinned with the maps. Programs of another version do not understand them: change
 * it with every struct above and with what programs do with them.
 */
#define TABLE_VERSION	11

/* NOLINTEND(readability-identifier-naming) */

#endif /* OPTION_TABLE_H */
