/* SPDX-License-Identifier: Apache-2.0 */
/*
 * C interface of libreuseport, for C and for whatever can call C: Python ctypes, Rust, Go.
 *
 * Functions that return int give 0 or more on success and a negative errno on failure; errno itself
 * is left alone. Names returned as strings are static. See libreuseport(3).
 */
#ifndef REUSEPORT_REUSEPORT_H
#define REUSEPORT_REUSEPORT_H

/* NOLINTBEGIN(readability-identifier-naming,modernize-*): C */
#include <stddef.h>
#include <stdint.h>

#include "reuseport/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Probe ------------------------------------------------------------------------------- */

enum reuseport_support {
  REUSEPORT_SUPPORTED = 0,
  REUSEPORT_NOT_IN_KERNEL = 1,
  REUSEPORT_NUMBER_TAKEN = 2,
  REUSEPORT_BLOCKED = 3,
  REUSEPORT_PROBE_ERROR = 4,
};

/* An enum reuseport_support, cached in the process. *why, if wanted, is set to one line of text. */
REUSEPORT_API int reuseport_probe(const char** why);
/* The same after watching the option work over loopback; not cached. */
REUSEPORT_API int reuseport_probe_behaviour(int connects, const char** why);
/* "supported", "not_in_kernel", ... */
REUSEPORT_API const char* reuseport_support_name(int support);

/* ---- Listener ---------------------------------------------------------------------------- */

enum reuseport_mode {
  REUSEPORT_MODE_ON = 0,
  REUSEPORT_MODE_OFF = 1,
  REUSEPORT_MODE_STANDBY = 2,
};

#define REUSEPORT_SETTLED 1U

/* struct reuseport_listen_info of <linux/reuseport.h> */
struct reuseport_info {
  uint32_t mode;
  uint32_t flags;
  uint32_t handshakes;
  uint32_t queued;
  uint32_t group_id;
  uint32_t group_on;
  uint32_t group_standby;
  uint32_t group_off;
};

/* -ENOPROTOOPT: not in this kernel; -EOPNOTSUPP: not TCP, MPTCP or UDP; -EPROTO: number taken. */
REUSEPORT_API int reuseport_get_info(int fd, struct reuseport_info* info);
/* An enum reuseport_mode; errors as above. */
REUSEPORT_API int reuseport_get_mode(int fd);
/* Errors as above, and -EINVAL: no SO_REUSEPORT, unknown mode, or a connected socket. */
REUSEPORT_API int reuseport_set_mode(int fd, int mode);
/* 1 when close() would lose nothing. */
REUSEPORT_API int reuseport_info_drained(const struct reuseport_info* info);

/* ---- Drain ------------------------------------------------------------------------------- */

enum reuseport_policy {
  REUSEPORT_PREFER = 0,
  REUSEPORT_REQUIRE = 1,
  REUSEPORT_CLOSE_ONLY = 2,
};

enum reuseport_last_on {
  REUSEPORT_LAST_ALLOW = 0,
  REUSEPORT_LAST_REFUSE = 1,
  REUSEPORT_LAST_WAIT = 2,
};

enum reuseport_method {
  REUSEPORT_METHOD_OPTION = 0,
  REUSEPORT_METHOD_STEER = 1,
  REUSEPORT_METHOD_MIGRATE = 2,
  REUSEPORT_METHOD_SWEEP = 3,
  REUSEPORT_METHOD_CLOSE = 4,
};

enum reuseport_outcome {
  REUSEPORT_DRAINED = 0,
  REUSEPORT_MIGRATED = 1,
  REUSEPORT_SWEPT_AND_CLOSED = 2,
  REUSEPORT_CLOSED = 3,
  REUSEPORT_DEADLINE_HIT = 4,
  REUSEPORT_UNDONE = 5,
};

enum reuseport_action {
  REUSEPORT_ACCEPT_MORE = 0,
  REUSEPORT_WAIT = 1,
  REUSEPORT_DONE = 2,
};

/* Zero is the default of every member but size. */
struct reuseport_drain_options {
  size_t size;               /* sizeof(struct reuseport_drain_options) */
  uint32_t policy;           /* enum reuseport_policy */
  uint32_t last_on;          /* enum reuseport_last_on */
  uint32_t timeout_ms;       /* 0: 30 s */
  uint32_t poll_ms;          /* 0: 20 ms */
  uint32_t undo_at_deadline; /* 0: close at the deadline; 1: restore every mode and leave open */
  uint32_t reserved;         /* 0 */
  /* 1: another process holds fd too, 0: none does, negative errno: cannot tell. NULL: /proc. */
  int (*is_shared)(int fd, void* user);
  /* Called instead of close(2). */
  void (*close)(int fd, void* user);
  void* user;
};

/* A count the kernel cannot give is REUSEPORT_UNKNOWN. */
#define REUSEPORT_UNKNOWN UINT32_MAX

struct reuseport_drain_report {
  uint32_t outcome;    /* enum reuseport_outcome, the worst of all listeners */
  uint32_t method;     /* enum reuseport_method, the weakest of all listeners */
  uint32_t support;    /* enum reuseport_support */
  uint32_t listeners;  /* how many were added */
  uint32_t handshakes; /* left at the last look before close(), all listeners together */
  uint32_t queued;
  uint32_t took_ms;
};

struct reuseport_drain;

/* NULL when options are not understood: wrong size, unknown value. options may be NULL. */
REUSEPORT_API struct reuseport_drain* reuseport_drain_new(
    const struct reuseport_drain_options* options);
REUSEPORT_API int reuseport_drain_add(struct reuseport_drain* drain, int fd);
/* On failure no listener has changed; see reuseport_drain_error(). */
REUSEPORT_API int reuseport_drain_start(struct reuseport_drain* drain);
/*
 * An enum reuseport_action. ACCEPT_MORE: accept on every listener until EAGAIN, then step again.
 * WAIT: serve, and step again after *wait_ms at the latest. DONE: see the report.
 */
REUSEPORT_API int reuseport_drain_step(struct reuseport_drain* drain, uint32_t* wait_ms);
REUSEPORT_API int reuseport_drain_undo(struct reuseport_drain* drain);
REUSEPORT_API int reuseport_drain_get_report(const struct reuseport_drain* drain,
                                             struct reuseport_drain_report* report);
/* The last failure as one line of text, "" where there was none; valid until the next call. */
REUSEPORT_API const char* reuseport_drain_error(const struct reuseport_drain* drain);
/* Undoes a drain that is not done, closes nothing, frees. NULL is allowed. */
REUSEPORT_API void reuseport_drain_free(struct reuseport_drain* drain);

REUSEPORT_API const char* reuseport_method_name(uint32_t method);
REUSEPORT_API const char* reuseport_outcome_name(uint32_t outcome);

/* "0.1.0", of the library in use */
REUSEPORT_API const char* reuseport_version(void);

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming,modernize-*) */
#endif /* REUSEPORT_REUSEPORT_H */
