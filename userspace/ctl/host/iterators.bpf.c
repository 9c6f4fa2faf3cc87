// SPDX-License-Identifier: GPL-2.0-only
/*
 * What /proc and sock_diag do not report, or report slowly. Each iterator walks
 * the kernel's objects once and writes a record of iterators.h for each that
 * matters.
 */
#include "option/kernel.bpf.h"

#include "ctl/host/iterators.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline void tell_program(struct seq_file *seq,
					 const struct sock *sk)
{
	struct group_record record = {};
	struct sock_reuseport *reuse;
	struct bpf_prog *program;

	reuse = BPF_CORE_READ(sk, sk_reuseport_cb);
	program = reuse ? BPF_CORE_READ(reuse, prog) : NULL;
	if (!program)
		return;
	record.cookie = cookie_of(sk);
	record.program_id = BPF_CORE_READ(program, aux, id);
	bpf_seq_write(seq, &record, sizeof(record));
}

SEC("iter/tcp")
int reuseport_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	/* requests and time-wait sockets end before sk_reuseport_cb */
	if (sk && sk->skc_state == TCP_LISTEN)
		tell_program(ctx->meta->seq, (const struct sock *)sk);
	return 0;
}

SEC("iter/udp")
int reuseport_udp(struct bpf_iter__udp *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->udp_sk;

	if (sk && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		tell_program(ctx->meta->seq, sk);
	return 0;
}

/*
 * Follow pointers directly, as their types allow: with tens of thousands of
 * descriptors, bpf_probe_read_kernel() would be half of the work.
 */
SEC("iter/task_file")
int reuseport_held(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct holder_record record = {};
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	sk = socket ? socket->sk : NULL;
	/*
	 * There may be very many connected sockets. TCP_CLOSE is 7, TCP_LISTEN
	 * 10; those in between are transient states.
	 */
	if (!sk || sk->__sk_common.skc_state < TCP_CLOSE)
		return 0;
	record.inode = file->f_inode->i_ino;
	record.pid = task->tgid;
	record.fd = ctx->fd;
	record.reuseport = BPF_CORE_READ_BITFIELD(sk, __sk_common.skc_reuseport);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
