/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libreuseport: retire SO_REUSEPORT listeners without losing connections. For C and for whatever
 * can call C; reuseport.hpp is the same for C++. See libreuseport(3).
 *
 * Results: 0 or more is success, below is a negative errno; errno itself is left alone. No function
 * blocks. Strings are static. Nothing is thrown, no thread is started, no signal is sent.
 *
 * Threads: a drain is used by one thread at a time, callbacks are called in that thread, and
 * accepting may go on in others. Every other function may be called from any thread.
 *
 * Structs that may grow carry their size, set by the caller with sizeof. As with openat2(2): a
 * smaller one, of an older header, is taken, and what it lacks is 0; a larger one, of a newer
 * header, is taken if what this library does not know is 0, and refused with -E2BIG otherwise. In a
 * struct that is filled in, what this library does not know is set to 0.
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

/* "1.0.0", of the library in use */
REUSEPORT_API const char* reuseport_version(void);

/* ---- Is the option there? ------------------------------------------------------------------ */

enum reuseport_support {
  REUSEPORT_PROBE_ERROR = 0,      /* the question could not be put, say for EMFILE; ask again */
  REUSEPORT_SUPPORTED = 1,        /* by the kernel */
  REUSEPORT_SUPPORTED_BY_BPF = 2, /* by BPF, on a kernel without it */
  REUSEPORT_NOT_IN_KERNEL = 3,
  REUSEPORT_NUMBER_TAKEN = 4, /* something answers to the number, but it is not this option */
  REUSEPORT_BLOCKED = 5,      /* a seccomp filter, LSM or cgroup program forbids the question */
};

/* An enum reuseport_support, cached in the process. *why, if wanted, is set to one line of text. */
REUSEPORT_API int reuseport_probe(const char** why);
/* The same after watching the option at work in @connects connections over loopback; not cached. */
REUSEPORT_API int reuseport_probe_behaviour(int connects, const char** why);

/* ---- One listener -------------------------------------------------------------------------- */

/*
 * getsockopt(SO_REUSEPORT_LISTEN_OFF), the whole struct. -ENOPROTOOPT: not in this kernel;
 * -EOPNOTSUPP: not TCP, MPTCP or UDP; -EPROTO: the number is taken by something else.
 */
REUSEPORT_API int reuseport_get_info(int fd, struct reuseport_listen_info* info);
/*
 * setsockopt(SO_REUSEPORT_LISTEN_OFF), a REUSEPORT_LISTEN_* mode. Errors as above, and -EINVAL: no
 * SO_REUSEPORT, unknown mode, or a connected TCP socket; -EAGAIN: not yet, where BPF provides it.
 */
REUSEPORT_API int reuseport_set_mode(int fd, int mode);
/* 1 when close() would lose nothing, as <linux/reuseport.h> defines it; else 0. */
REUSEPORT_API int reuseport_drained(const struct reuseport_listen_info* info);
/* What to do about an error of the two above, or "". Takes an errno of either sign. */
REUSEPORT_API const char* reuseport_hint(int error);

/* ---- The drain ----------------------------------------------------------------------------- */

/*
 *   new, add ..., start, step ... until REUSEPORT_DONE, get_report, free
 *
 * Every listener goes to STANDBY and stays there until it is closed: beside an ON member, the
 * newcomer, it gets nothing new, and should the newcomer die it serves again. It is closed when it
 * is drained (reuseport_drained()). A drain that is undone, freed before its end, or left by the
 * newcomer gives every listener that is still open the mode it had.
 */
struct reuseport_drain;

/* How much a drain may fall back where the option is not to be had. */
enum reuseport_policy {
  REUSEPORT_PREFER = 0,  /* the option, else net.ipv4.tcp_migrate_req if on, else sweep and close */
  REUSEPORT_REQUIRE = 1, /* the option, or start fails */
  REUSEPORT_CLOSE_ONLY = 2, /* plain close(2), the baseline others are compared with */
};

/* Where a group has no ON member but those that leave. Without the option nobody can tell. */
enum reuseport_last_on {
  REUSEPORT_LAST_REFUSE = 0, /* start fails with -EADDRNOTAVAIL; later the drain is undone */
  REUSEPORT_LAST_WAIT = 1,   /* serve on in STANDBY until one is there; at the deadline undo */
  REUSEPORT_LAST_LEAVE = 2,  /* OFF: the address shall go, new connections are refused */
};

/* What becomes of a listener that is not drained at the deadline. */
enum reuseport_at_deadline {
  REUSEPORT_DEADLINE_CLOSE = 0, /* close it; what was left is in the report */
  REUSEPORT_DEADLINE_UNDO = 1,  /* give all that are open their modes back, leave them open */
  REUSEPORT_DEADLINE_KEEP = 2,  /* leave them open as they are, in STANDBY */
};

/*
 * The caller cannot accept, because the sockets are copies of another process' (pidfd_getfd(2)):
 * step never asks for it, and there is no fallback: the policy is REUSEPORT_REQUIRE.
 */
#define REUSEPORT_DRAIN_NO_ACCEPT 1U

#define REUSEPORT_MS(n) ((n)*INT64_C(1000000))
#define REUSEPORT_FOREVER INT64_MAX

/* 0 is the default of every member but size. */
struct reuseport_drain_options {
  size_t size;          /* sizeof(struct reuseport_drain_options) */
  uint32_t policy;      /* enum reuseport_policy */
  uint32_t last_on;     /* enum reuseport_last_on */
  uint32_t at_deadline; /* enum reuseport_at_deadline */
  uint32_t flags;       /* REUSEPORT_DRAIN_* */
  /*
   * From start on; 0: 30 s; 1: at once. It should outlast the SYN-ACK retries of clients that mean
   * to come: 63 s with net.ipv4.tcp_synack_retries=5, while most handshakes take one round trip.
   */
  int64_t timeout_ns;
  int64_t poll_ns; /* the longest pause between two looks; 0: 20 ms. The first are shorter. */
  /*
   * Callbacks, all optional; user is handed to each. Those that return int give 0 (is_shared: 0 or
   * 1) or a negative errno. They must return: no exception, no longjmp.
   *
   * set_mode, get_info: in place of reuseport_set_mode(), reuseport_get_info(), for sockets whose
   * option is provided elsewhere; give both or neither. -EBADF, -ENOTSOCK and -ESTALE of get_info
   * say that the listener is gone: it counts by the last look before. -EAGAIN of set_mode is a
   * passing obstacle: tried again until the deadline.
   */
  int (*set_mode)(int fd, int mode, void* user);
  int (*get_info)(int fd, struct reuseport_listen_info* info, void* user);
  /*
   * Whether another process holds the socket too, for its mode is one and the same there: start
   * fails with -EBUSY where one does. NULL: start looks through /proc/PID/fd once, about 50 us a
   * process. A process this user must not look into counts as a holder if it is an ancestor (but
   * for process 1) or of the same session; another user's other processes are passed over. Not
   * asked where the listeners are only closed.
   */
  int (*is_shared)(int fd, void* user);
  /* In place of close(2), say to take the descriptor out of tables first. */
  void (*close)(int fd, void* user);
  void* user;
};

enum reuseport_action {
  REUSEPORT_DONE = 0,
  REUSEPORT_ACCEPT_MORE =
      1,              /* accept (UDP: receive) on each of fds until EAGAIN, then step at once */
  REUSEPORT_WAIT = 2, /* serve; step when one of fds is readable, after wait_ns at the latest */
};

struct reuseport_step {
  size_t size;
  uint32_t action; /* enum reuseport_action */
  uint32_t n_fds;
  const int* fds;  /* ACCEPT_MORE: those with something to take; WAIT: all that are open */
  int64_t wait_ns; /* WAIT */
};

/* From best to worst behind the first two, so the worst of several is their maximum. */
enum reuseport_outcome {
  REUSEPORT_NOT_STARTED = 0,
  REUSEPORT_RUNNING = 1,
  REUSEPORT_DRAINED = 2,  /* nothing was left; and, but for an address that is left for good, an ON
                             member of the group was seen after close() */
  REUSEPORT_MIGRATED = 3, /* closed; the kernel moved what was left to a member that stays */
  REUSEPORT_UNCONFIRMED = 4,      /* drained and closed, but no ON member was seen afterwards */
  REUSEPORT_SWEPT_AND_CLOSED = 5, /* queue emptied, then closed; half-open requests were reset */
  REUSEPORT_CLOSED = 6,           /* closed with whatever it had */
  REUSEPORT_DEADLINE_HIT = 7,     /* time ran out; what was left is in the report */
  REUSEPORT_VANISHED = 8,         /* closed or shut down by somebody else before it was drained */
  REUSEPORT_UNDONE = 9, /* open, in the mode it had before; or its error says why it is not */
};

/* By what means new connections were kept away. From best to worst. */
enum reuseport_method {
  REUSEPORT_METHOD_NONE = 0,    /* not started */
  REUSEPORT_METHOD_OPTION = 1,  /* SO_REUSEPORT_LISTEN_OFF */
  REUSEPORT_METHOD_MIGRATE = 2, /* sweep, then close() with net.ipv4.tcp_migrate_req=1 */
  REUSEPORT_METHOD_SWEEP = 3,   /* accept until EAGAIN, then close() */
  REUSEPORT_METHOD_CLOSE = 4,   /* close() alone */
};

/* A count that nobody can tell */
#define REUSEPORT_UNKNOWN UINT32_MAX

struct reuseport_drain_report {
  size_t size;
  uint32_t outcome;    /* enum reuseport_outcome: the first two, then the worst of all listeners */
  uint32_t method;     /* enum reuseport_method, the weakest of all listeners */
  uint32_t support;    /* enum reuseport_support, as found by start */
  uint32_t lossless;   /* 1: at its end, DRAINED or MIGRATED */
  uint32_t timed_out;  /* 1: the deadline passed first */
  uint32_t listeners;  /* how many were added */
  uint32_t handshakes; /* at the last look at each before its close(), all together */
  uint32_t queued;
  int64_t took_ns; /* from start to the end, or to now */
};

struct reuseport_listener_report {
  size_t size;
  int32_t fd; /* as given to add */
  uint32_t outcome;
  uint32_t method;
  uint32_t before;     /* the mode it had; without the option ON */
  uint32_t handshakes; /* at the last look, as all below */
  uint32_t queued;
  uint32_t group_on;
  int32_t error; /* negative errno where that look, or giving the mode back, failed; else 0 */
  uint32_t open; /* 1: the drain has not closed it, nor seen it closed */
  uint32_t reserved;
};

/* Why the last call of a drain failed, or why it was undone. */
struct reuseport_error {
  size_t size;
  int32_t error;    /* negative errno; 0: nothing failed */
  int32_t fd;       /* of the listener concerned, -1: all */
  const char* call; /* that failed */
  const char* hint; /* what to do next, may be "" */
};

/* options may be NULL. -EINVAL: a size, value or time that is none; -E2BIG; -ENOMEM. */
REUSEPORT_API int reuseport_drain_new(const struct reuseport_drain_options* options,
                                      struct reuseport_drain** drain);
/*
 * A listening TCP or MPTCP socket or a bound UDP socket, non-blocking, with SO_REUSEPORT. The drain
 * owns it from here to its close(); reuseport_drain_free() hands back what is open. -EBADF,
 * -ENOTSOCK, -EINVAL: no such socket; -EEXIST: added already; -EBUSY: the drain has started.
 */
REUSEPORT_API int reuseport_drain_add(struct reuseport_drain* drain, int fd);
/*
 * Switches all listeners or, on failure, none. A passing obstacle (EAGAIN, ENOMEM, ENOBUFS, EINTR,
 * the probe's EMFILE) is no failure and no reason to fall back: step tries again until the
 * deadline, then undoes the drain. -EBUSY: shared, or started before; -EADDRNOTAVAIL: see enum
 * reuseport_last_on; -EINVAL: nothing added; with REUSEPORT_REQUIRE why the option cannot be used:
 * -ENOPROTOOPT, -EPERM, -EPROTO, ...
 */
REUSEPORT_API int reuseport_drain_start(struct reuseport_drain* drain);
/* An enum reuseport_action, more of it in @step, whose fds are valid until the next call. After
 * DONE it stays DONE. -EINVAL: not started. */
REUSEPORT_API int reuseport_drain_step(struct reuseport_drain* drain, struct reuseport_step* step);
/*
 * Gives the open listeners their modes back and ends the drain. -ESTALE: none is running;
 * -ECANCELED: done, but some were closed before; or the first error of setsockopt(2). After one
 * that passes, such as -EAGAIN, the drain still runs, and step or undo try again, for a second.
 */
REUSEPORT_API int reuseport_drain_undo(struct reuseport_drain* drain);
REUSEPORT_API int reuseport_drain_get_report(const struct reuseport_drain* drain,
                                             struct reuseport_drain_report* report);
/* Of the listener added as number @index, from 0. -ENOENT: there is none. */
REUSEPORT_API int reuseport_drain_get_listener(const struct reuseport_drain* drain, size_t index,
                                               struct reuseport_listener_report* report);
REUSEPORT_API int reuseport_drain_get_error(const struct reuseport_drain* drain,
                                            struct reuseport_error* error);
/* Undoes a drain that is not done; closes nothing. NULL is allowed. */
REUSEPORT_API void reuseport_drain_free(struct reuseport_drain* drain);

/* "supported_by_bpf", "swept_and_closed", "migrate", ... and "unknown" for any other number */
REUSEPORT_API const char* reuseport_support_name(uint32_t support);
REUSEPORT_API const char* reuseport_outcome_name(uint32_t outcome);
REUSEPORT_API const char* reuseport_method_name(uint32_t method);

/* NOLINTEND(readability-identifier-naming,modernize-*) */

#ifdef __cplusplus
}
#endif

#endif /* REUSEPORT_REUSEPORT_H */
