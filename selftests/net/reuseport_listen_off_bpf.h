/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The programs of reuseport_listen_off.bpf.c, loaded by a skeleton that needs
 * no library, and what fills their maps.
 *
 * Functions return 0 or a negative errno.
 */
#ifndef REUSEPORT_LISTEN_OFF_BPF_H
#define REUSEPORT_LISTEN_OFF_BPF_H

#include "reuseport_listen_off.h"

#include <linux/bpf.h>
#include <linux/filter.h>

#include <reuseport_listen_off.lskel.h>

/* Let @map name @fd, in the place of whom it named. */
static inline int name_socket(const struct bpf_map_desc *map, int fd)
{
	__u64 value = fd;
	__u32 key = 0;

	return skel_map_update_elem(map->map_fd, &key, &value, BPF_ANY) ?
		-errno : 0;
}

/* A classic program which returns @index. */
static inline int attach_index(int fd, int index)
{
	struct sock_filter insn = BPF_STMT(BPF_RET | BPF_K, index);
	struct sock_fprog prog = { .len = 1, .filter = &insn };

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog,
			  sizeof(prog)) ? -errno : 0;
}

#endif /* REUSEPORT_LISTEN_OFF_BPF_H */
