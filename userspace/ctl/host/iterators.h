/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the iterators of iterators.bpf.c write, record by record. */
#ifndef REUSEPORT_ITERATORS_H
#define REUSEPORT_ITERATORS_H

#include <linux/types.h>

/* In the kernel's style: NOLINTBEGIN(readability-identifier-naming) */

/* A socket whose reuseport group has a BPF program. */
struct group_record {
	__u64 cookie;
	__u32 program_id;	/* 0: a classic (cBPF) one */
	__u32 unused;
};

/* A descriptor that is a listening TCP or an unconnected socket. */
struct holder_record {
	__u64 inode;
	__s32 pid;
	__u32 fd;
	__u32 reuseport;	/* SO_REUSEPORT is set */
	__u32 unused;
};

/* NOLINTEND(readability-identifier-naming) */

#endif /* REUSEPORT_ITERATORS_H */
