/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel's migrate_reuseport test wants of the BPF tests' harness, which as a whole needs
 * a kernel with BTF: it is built alone. Each assertion that does not hold is printed, and counted
 * in `failures`; each subtest is named, and counted in `subtests`.
 */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/libbpf.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

extern int failures, subtests;

static inline bool holds(bool condition, const char* what) {
  if (!condition) {
    fprintf(stderr, "  failed: %s (errno: %s)\n", what, strerror(errno));
    failures++;
  }
  return condition;
}
static inline void test__start_subtest(const char* name) {
  fprintf(stderr, "%s\n", name);
  subtests++;
}

#define ASSERT_OK(result, name) holds((result) == 0, name)
#define ASSERT_OK_PTR(pointer, name) holds(libbpf_get_error(pointer) == 0, name)
#define ASSERT_EQ(got, wanted, name) holds((got) == (wanted), name)
#define ASSERT_NEQ(got, other, name) holds((got) != (other), name)
#define ASSERT_GE(got, least, name) holds((got) >= (least), name)
#define ASSERT_STREQ(got, wanted, name) holds(strcmp(got, wanted) == 0, name)
