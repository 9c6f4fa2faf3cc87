/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Programs and maps by the bare bpf() syscall: these tests have no object
 * files to load and no library to link.
 *
 * Functions return 0 or what they made, or a negative errno.
 */
#ifndef REUSEPORT_LISTEN_OFF_BPF_H
#define REUSEPORT_LISTEN_OFF_BPF_H

#include "reuseport_listen_off.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/unistd.h>

static inline int sys_bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	int ret = syscall(__NR_bpf, cmd, attr, sizeof(*attr));

	return ret < 0 ? -errno : ret;
}

static inline int new_map(enum bpf_map_type type, int value_size)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_type = type;
	attr.key_size = sizeof(__u32);
	attr.value_size = value_size;
	attr.max_entries = 1;
	return sys_bpf(BPF_MAP_CREATE, &attr);
}

static inline int set_elem(int map, __u64 value)
{
	union bpf_attr attr;
	__u32 key = 0;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = map;
	attr.key = (unsigned long)&key;
	attr.value = (unsigned long)&value;
	return sys_bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

static inline long long get_elem(int map)
{
	union bpf_attr attr;
	long long value;
	__u32 key = 0;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = map;
	attr.key = (unsigned long)&key;
	attr.value = (unsigned long)&value;
	return sys_bpf(BPF_MAP_LOOKUP_ELEM, &attr) ? -1 : value;
}

#define INSN(c, d, s, o, i)						\
	((struct bpf_insn){ .code = (c), .dst_reg = (d), .src_reg = (s),\
			    .off = (o), .imm = (i) })
#define MOV_REG(d, s)	INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_IMM(d, i)	INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD_IMM(d, i)	INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define STORE_W(d, o, i) INSN(BPF_ST | BPF_MEM | BPF_W, d, 0, o, i)
#define STORE_X(d, o, s) INSN(BPF_STX | BPF_MEM | BPF_DW, d, s, o, 0)
#define ADD_ATOMIC(d, o, s) \
	INSN(BPF_STX | BPF_ATOMIC | BPF_DW, d, s, o, BPF_ADD)
#define JUMP_NULL(d, o)	INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, 0)
#define CALL(f)		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define EXIT()		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
/* One instruction, in two parts. */
#define MOV_MAP(d, fd)							\
	INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd)
#define MOV_MAP_END	INSN(0, 0, 0, 0, 0)

static inline int load(enum bpf_prog_type type, enum bpf_attach_type attach,
		       const struct bpf_insn *insns, int cnt)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = type;
	attr.expected_attach_type = attach;
	attr.insns = (unsigned long)insns;
	attr.insn_cnt = cnt;
	attr.license = (unsigned long)"GPL";
	return sys_bpf(BPF_PROG_LOAD, &attr);
}

/* Select the socket in @sockets, put what the helper said into @result. */
static inline int load_select(int sockets, int result,
			      enum bpf_attach_type attach)
{
	struct bpf_insn insns[] = {
		STORE_W(BPF_REG_10, -4, 0),
		MOV_MAP(BPF_REG_2, sockets), MOV_MAP_END,
		MOV_REG(BPF_REG_3, BPF_REG_10),
		ADD_IMM(BPF_REG_3, -4),
		MOV_IMM(BPF_REG_4, 0),
		CALL(BPF_FUNC_sk_select_reuseport),
		MOV_REG(BPF_REG_6, BPF_REG_0),
		MOV_MAP(BPF_REG_1, result), MOV_MAP_END,
		MOV_REG(BPF_REG_2, BPF_REG_10),
		ADD_IMM(BPF_REG_2, -4),
		CALL(BPF_FUNC_map_lookup_elem),
		JUMP_NULL(BPF_REG_0, 1),
		STORE_X(BPF_REG_0, 0, BPF_REG_6),
		MOV_IMM(BPF_REG_0, SK_PASS),
		EXIT(),
	};

	return load(BPF_PROG_TYPE_SK_REUSEPORT, attach, insns,
		    ARRAY_SIZE(insns));
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
