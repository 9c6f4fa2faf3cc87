/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libreuseport: retire SO_REUSEPORT listeners without losing connections. For C and anything that
 * can call C; reuseport.hpp is the C++ interface. See libreuseport(3).
 *
 * Return values: 0 or more on success, a negative errno on failure; errno itself is unchanged. No
 * function blocks. Strings are static. The library throws nothing, starts no thread and sends no
 * signal.
 *
 * Threads: use a drain from one thread at a time; its callbacks run in that thread. Other threads
 * may go on accepting. Every other function may be called from any thread.
 *
 * Structs that may grow carry their size, which the caller sets with sizeof. The rules are those of
 * openat2(2). A smaller struct, from an older header, is accepted; the members it lacks are 0. A
 * larger one, from a newer header, is accepted if the bytes this library does not know are 0, and
 * refused with -E2BIG otherwise. In a struct that the library fills in, it zeroes the bytes it does
 * not know.
 */
#ifndef REUSEPORT_REUSEPORT_H
#define REUSEPORT_REUSEPORT_H

#include <stddef.h>  // NOLINT(modernize-deprecated-headers): C reads this, too
#include <stdint.h>  // NOLINT(modernize-deprecated-headers)

#include <reuseport/linux/reuseport.h>

#define REUSEPORT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* NOLINTBEGIN(readability-identifier-naming,modernize-*): C */

/* "1.0.0": the version of the library in use */
REUSEPORT_API const char* reuseport_version(void);

/* ---- Is the option available? -------------------------------------------------------------- */

enum reuseport_support {
  REUSEPORT_PROBE_ERROR = 0,      /* cannot query the kernel, e.g. EMFILE; try again later */
  REUSEPORT_SUPPORTED = 1,        /* by the kernel */
  REUSEPORT_SUPPORTED_BY_BPF = 2, /* by BPF, on a kernel without it */
  REUSEPORT_NOT_IN_KERNEL = 3,
  REUSEPORT_NUMBER_TAKEN = 4, /* another option has this number */
  REUSEPORT_BLOCKED = 5,      /* a seccomp filter, LSM or cgroup program forbids the call */
};

/* Returns an enum reuseport_support, cached per process. Sets *why, unless NULL, to a one-line
 * explanation. */
REUSEPORT_API int reuseport_probe(const char** why);
/* As above, but also tests the option with @connects connections over loopback. Not cached. */
REUSEPORT_API int reuseport_probe_behaviour(int connects, const char** why);

/* ---- One listener -------------------------------------------------------------------------- */

/*
 * getsockopt(SO_REUSEPORT_LISTEN_OFF), the whole struct. -ENOPROTOOPT: not in this kernel;
 * -EOPNOTSUPP: not TCP, MPTCP or UDP; -EPROTO: another option has this number.
 */
REUSEPORT_API int reuseport_get_info(int fd, struct reuseport_listen_info* info);
/*
 * setsockopt(SO_REUSEPORT_LISTEN_OFF), a REUSEPORT_LISTEN_* mode. Errors as above, and -EINVAL: no
 * SO_REUSEPORT, unknown mode, or a connected TCP socket; -EAGAIN: BPF is not ready for this socket.
 */
REUSEPORT_API int reuseport_set_mode(int fd, int mode);
/* 1 if close() would lose nothing ("drained" in <linux/reuseport.h>), else 0. */
REUSEPORT_API int reuseport_drained(const struct reuseport_listen_info* info);
/* How to fix an error of get_info or set_mode, or "". Takes an errno of either sign. */
REUSEPORT_API const char* reuseport_hint(int error);

/* ---- The drain ----------------------------------------------------------------------------- */

/*
 *   new, add ..., start, step ... until REUSEPORT_DONE, get_report, free
 *
 * Every listener goes to STANDBY and stays there until the drain closes it. While the group has an
 * ON member, the newcomer, it gets nothing new; if the newcomer dies, it serves again. A listener
 * is closed when it is drained (reuseport_drained()). If the drain is undone or freed early, or
 * the newcomer leaves, every listener that is still open gets its old mode back.
 */
struct reuseport_drain;

/* What a drain may do if the option is not available. */
enum reuseport_policy {
  REUSEPORT_PREFER = 0,  /* the option, else net.ipv4.tcp_migrate_req if on, else sweep and close */
  REUSEPORT_REQUIRE = 1, /* the option, or start fails */
  REUSEPORT_CLOSE_ONLY = 2, /* plain close(2), the baseline for comparisons */
};

/* What to do if the drain would leave a group without an ON member. Needs the option to tell. */
enum reuseport_last_on {
  REUSEPORT_LAST_REFUSE = 0, /* start fails with -EADDRNOTAVAIL; a running drain is undone */
  REUSEPORT_LAST_WAIT = 1,   /* keep serving in STANDBY until one appears; at the deadline undo */
  REUSEPORT_LAST_LEAVE = 2,  /* OFF: give up the address; new connections are refused */
};

/* What to do with a listener that is not drained at the deadline. */
enum reuseport_at_deadline {
  REUSEPORT_DEADLINE_CLOSE = 0, /* close it; the report counts what was left */
  REUSEPORT_DEADLINE_UNDO = 1,  /* restore the modes of all open listeners, leave them open */
  REUSEPORT_DEADLINE_KEEP = 2,  /* leave them open, in STANDBY */
};

/*
 * The caller cannot accept, because the sockets are copies of another process's (pidfd_getfd(2)).
 * step never asks it to, and there is no fallback: the policy is REUSEPORT_REQUIRE.
 */
#define REUSEPORT_DRAIN_NO_ACCEPT 1U

#define REUSEPORT_MS(n) ((n)*INT64_C(1000000))
#define REUSEPORT_FOREVER INT64_MAX

/* 0 selects the default of every member except size. */
struct reuseport_drain_options {
  size_t size;          /* sizeof(struct reuseport_drain_options) */
  uint32_t policy;      /* enum reuseport_policy */
  uint32_t last_on;     /* enum reuseport_last_on */
  uint32_t at_deadline; /* enum reuseport_at_deadline */
  uint32_t flags;       /* REUSEPORT_DRAIN_* */
  /*
   * Time from start to the deadline. 0: 30 s; 1: at once. To cover every SYN-ACK retransmission it
   * would have to be 63 s (net.ipv4.tcp_synack_retries=5), but most handshakes take one round trip.
   */
  int64_t timeout_ns;
  int64_t poll_ns; /* the longest pause between two checks; 0: 20 ms. The first are shorter. */
  /*
   * Callbacks, all optional. Each is passed user. Those that return int return 0 (is_shared: 0 or
   * 1) or a negative errno. They must return normally: no exception, no longjmp.
   *
   * set_mode and get_info replace reuseport_set_mode() and reuseport_get_info() for sockets whose
   * option is provided elsewhere; set both or neither. -EBADF, -ENOTSOCK or -ESTALE from get_info
   * means that the listener is gone; the previous check then decides its outcome. -EAGAIN from
   * set_mode is temporary: the drain retries until the deadline.
   */
  int (*set_mode)(int fd, int mode, void* user);
  int (*get_info)(int fd, struct reuseport_listen_info* info, void* user);
  /*
   * Whether another process holds the socket too. A socket has one mode in all processes, so start
   * fails with -EBUSY if one does. NULL: start scans /proc/PID/fd once, about 50 us per process. A
   * process that this user may not inspect counts as a holder if it is an ancestor (other than
   * process 1) or in the same session; other users' processes are skipped otherwise. So does a
   * parent that proc(5) hides (hidepid=2). Not called with REUSEPORT_CLOSE_ONLY.
   */
  int (*is_shared)(int fd, void* user);
  /* Replaces close(2), e.g. to take the descriptor out of tables first. */
  void (*close)(int fd, void* user);
  void* user;
};

enum reuseport_action {
  REUSEPORT_DONE = 0,
  REUSEPORT_ACCEPT_MORE =
      1,              /* accept (UDP: receive) on each of fds until EAGAIN, then step at once */
  REUSEPORT_WAIT = 2, /* keep serving; step when one of fds is readable or wait_ns has passed */
};

struct reuseport_step {
  size_t size;
  uint32_t action; /* enum reuseport_action */
  uint32_t n_fds;
  const int* fds;  /* ACCEPT_MORE: listeners with something to accept; WAIT: all open listeners */
  int64_t wait_ns; /* WAIT */
};

/* After the first two, from best to worst: the worst of several is their maximum. */
enum reuseport_outcome {
  REUSEPORT_NOT_STARTED = 0,
  REUSEPORT_RUNNING = 1,
  REUSEPORT_DRAINED = 2,  /* nothing was left, and an ON member of the group was seen after close()
                             (by BPF, which nobody else can ask for modes: another member; not
                             checked for an address that is given up) */
  REUSEPORT_MIGRATED = 3, /* closed; the kernel moved what was left to another member */
  REUSEPORT_UNCONFIRMED = 4,      /* drained and closed, but no ON member was seen afterwards */
  REUSEPORT_SWEPT_AND_CLOSED = 5, /* queue emptied, then closed; half-open requests were reset */
  REUSEPORT_CLOSED = 6,           /* closed with whatever it had */
  REUSEPORT_DEADLINE_HIT = 7,     /* time ran out; the report counts what was left */
  REUSEPORT_VANISHED = 8,         /* closed or shut down by someone else before it was drained */
  REUSEPORT_UNDONE = 9,           /* open, in its old mode; or its error says why it is not */
};

/* How the drain kept new connections away. From best to worst. */
enum reuseport_method {
  REUSEPORT_METHOD_NONE = 0,    /* not started */
  REUSEPORT_METHOD_OPTION = 1,  /* SO_REUSEPORT_LISTEN_OFF */
  REUSEPORT_METHOD_MIGRATE = 2, /* sweep, then close() with net.ipv4.tcp_migrate_req=1 */
  REUSEPORT_METHOD_SWEEP = 3,   /* accept until EAGAIN, then close() */
  REUSEPORT_METHOD_CLOSE = 4,   /* close() alone */
};

/* The kernel does not report this count */
#define REUSEPORT_UNKNOWN UINT32_MAX

struct reuseport_drain_report {
  size_t size;
  uint32_t outcome;    /* enum reuseport_outcome: at the end, the worst of all listeners */
  uint32_t method;     /* enum reuseport_method, the weakest of all listeners */
  uint32_t support;    /* enum reuseport_support, as found by start */
  uint32_t lossless;   /* 1: the drain has ended DRAINED or MIGRATED */
  uint32_t timed_out;  /* 1: the deadline passed first */
  uint32_t listeners;  /* how many were added */
  uint32_t handshakes; /* at the last check of each before its close(), summed up */
  uint32_t queued;
  int64_t took_ns; /* from start to the end, or to now */
};

struct reuseport_listener_report {
  size_t size;
  int32_t fd; /* as given to add */
  uint32_t outcome;
  uint32_t method;
  uint32_t before;     /* its old mode; ON without the option */
  uint32_t handshakes; /* at the last check, as the members below */
  uint32_t queued;
  uint32_t group_on;
  int32_t error; /* negative errno if that check, or restoring the mode, failed; else 0 */
  uint32_t open; /* 1: the drain has neither closed it nor seen it closed */
  uint32_t reserved;
};

/* Why the last call of a drain failed, or why it was undone. */
struct reuseport_error {
  size_t size;
  int32_t error;    /* negative errno; 0: nothing failed */
  int32_t fd;       /* the listener concerned; -1: all */
  const char* call; /* the call that failed */
  const char* hint; /* how to fix it; may be "" */
};

/* options may be NULL. -EINVAL: invalid size, value or time; -E2BIG; -ENOMEM. */
REUSEPORT_API int reuseport_drain_new(const struct reuseport_drain_options* options,
                                      struct reuseport_drain** drain);
/*
 * Adds a non-blocking socket with SO_REUSEPORT: a listening TCP or MPTCP socket, or a bound UDP
 * socket. The drain owns it until it closes it; reuseport_drain_free() leaves open sockets to the
 * caller. -EBADF, -ENOTSOCK, -EINVAL: no such socket; -EEXIST: added already; -EBUSY: the drain has
 * started.
 */
REUSEPORT_API int reuseport_drain_add(struct reuseport_drain* drain, int fd);
/*
 * Switches all listeners or, on failure, none; if one cannot be set back, the error says so, and
 * step and undo try again. Temporary errors (EAGAIN, ENOMEM, ENOBUFS, EINTR, EMFILE in the probe)
 * neither fail nor cause a fallback: step retries until the deadline, then undoes the drain.
 * -EBUSY: a listener is shared, or the drain has started; -EADDRNOTAVAIL: see enum
 * reuseport_last_on; -EINVAL: no listener added; with REUSEPORT_REQUIRE, the reason why the option
 * cannot be used: -ENOPROTOOPT, -EPERM, -EPROTO, ...
 */
REUSEPORT_API int reuseport_drain_start(struct reuseport_drain* drain);
/* Returns an enum reuseport_action and fills in @step; its fds are valid until the next call. Once
 * it has returned DONE it always does. -EINVAL: not started. */
REUSEPORT_API int reuseport_drain_step(struct reuseport_drain* drain, struct reuseport_step* step);
/*
 * Restores the modes of the open listeners and ends the drain. -ESTALE: no drain is running;
 * -ECANCELED: undone, but some listeners were already closed; or the first error of setsockopt(2).
 * After a temporary error such as -EAGAIN the drain still runs, and step or undo retries for a
 * second.
 */
REUSEPORT_API int reuseport_drain_undo(struct reuseport_drain* drain);
REUSEPORT_API int reuseport_drain_get_report(const struct reuseport_drain* drain,
                                             struct reuseport_drain_report* report);
/* The report of listener number @index, from 0, in the order added. -ENOENT: no such listener. */
REUSEPORT_API int reuseport_drain_get_listener(const struct reuseport_drain* drain, size_t index,
                                               struct reuseport_listener_report* report);
REUSEPORT_API int reuseport_drain_get_error(const struct reuseport_drain* drain,
                                            struct reuseport_error* error);
/* Undoes a drain that is not done; closes nothing. NULL is allowed. */
REUSEPORT_API void reuseport_drain_free(struct reuseport_drain* drain);

/* "supported_by_bpf", "swept_and_closed", "migrate", ...; "unknown" for any other number */
REUSEPORT_API const char* reuseport_support_name(uint32_t support);
REUSEPORT_API const char* reuseport_outcome_name(uint32_t outcome);
REUSEPORT_API const char* reuseport_method_name(uint32_t method);

/* NOLINTEND(readability-identifier-naming,modernize-*) */

#ifdef __cplusplus
}
#endif

#endif /* REUSEPORT_REUSEPORT_H */
