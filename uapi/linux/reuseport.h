/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef _UAPI_LINUX_REUSEPORT_H
#define _UAPI_LINUX_REUSEPORT_H

#include <linux/types.h>

/*
 * SO_REUSEPORT_LISTEN_OFF, level SOL_SOCKET: whether the listeners of a
 * SO_REUSEPORT group get new connections (TCP, MPTCP) or datagrams (UDP).
 *
 * To anything that looks a listener up, an OFF listener is closed; to
 * everything already on its way to it, it is open.
 *
 * setsockopt() takes an int, one of the modes below.
 * getsockopt() gives as many bytes of struct reuseport_listen_info as fit, so
 * an int reads the mode alone.
 *
 * The number ("RP") is the same on every architecture, unlike those that
 * asm/socket.h assigns in sequence.
 */
#ifndef SO_REUSEPORT_LISTEN_OFF
#define SO_REUSEPORT_LISTEN_OFF	0x5250
#endif

/* sock_diag attribute which carries struct reuseport_listen_info */
#define INET_DIAG_REUSEPORT	0x1250

/* Modes. STANDBY is chosen only while the group has no ON member. */
#define REUSEPORT_LISTEN_ON		0
#define REUSEPORT_LISTEN_OFF		1
#define REUSEPORT_LISTEN_STANDBY	2

/*
 * No CPU can still be inside a choice that began while this socket could be
 * chosen. Restarted when the socket's own mode changes to STANDBY or OFF and,
 * for a STANDBY socket, when its group gets an ON member where it had none. No
 * other change by other members delays it.
 */
#define REUSEPORT_LISTEN_F_SETTLED	(1U << 0)

/*
 * TCP: a SYN cookie may come back, and no ON member of the group could take it.
 */
#define REUSEPORT_LISTEN_F_COOKIES	(1U << 1)

/* The option is provided by BPF, not by this kernel */
#define REUSEPORT_LISTEN_F_BPF		(1U << 31)

/*
 * A listener is drained when it is OFF, or STANDBY with group_on > 0, and
 * SETTLED, and not COOKIES, and handshakes and queued are both 0. Mode, SETTLED
 * and the group's counts are read at one instant, then handshakes, then queued.
 *
 * close() of a drained OFF listener loses nothing. close() of a drained STANDBY
 * listener loses nothing unless the last ON member leaves first: check the
 * group again afterwards.
 *
 * Neither this nor SETTLED covers datagrams for which a BPF program names the
 * socket with BPF_SK_REUSEPORT_F_FLOW: a drained socket may get more of them.
 *
 * group_id identifies a group within one network namespace. Numbers of two
 * namespaces cannot be compared.
 */
struct reuseport_listen_info {
	__u32	mode;		/* REUSEPORT_LISTEN_* */
	__u32	flags;		/* REUSEPORT_LISTEN_F_* */
	__u32	handshakes;	/* TCP: half-open requests to land here */
	__u32	queued;		/* TCP: accept queue; UDP: bytes to read */
	__u32	group_id;	/* this and those below: 0 without a group */
	__u32	group_on;
	__u32	group_standby;
	__u32	group_off;
};

#endif /* _UAPI_LINUX_REUSEPORT_H */
