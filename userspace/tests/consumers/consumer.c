/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C: probe, mode, info and a whole drain; prints the probe's answer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <reuseport/reuseport.h>

static int open_listener(void) {
  struct sockaddr_in at;
  int one = 1;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

  memset(&at, 0, sizeof(at));
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      bind(fd, (struct sockaddr*)&at, sizeof(at)) != 0 || listen(fd, 8) != 0) {
    perror("listener");
    return -1;
  }
  return fd;
}

static int drain_it(int fd) {
  struct reuseport_drain_options options = {
      .size = sizeof(options), .last_on = REUSEPORT_LAST_LEAVE, .timeout_ns = REUSEPORT_MS(5000)};
  struct reuseport_drain_report report = {.size = sizeof(report)};
  struct reuseport_error error = {.size = sizeof(error)};
  struct reuseport_step step = {.size = sizeof(step)};
  struct reuseport_drain* drain = NULL;

  if (reuseport_drain_new(&options, &drain) != 0 || reuseport_drain_add(drain, fd) != 0 ||
      reuseport_drain_start(drain) != 0) {
    reuseport_drain_get_error(drain, &error);
    fprintf(stderr, "drain: %s: %s\n", error.call, error.hint);
    return 1;
  }
  while (reuseport_drain_step(drain, &step) > 0) {
    poll(NULL, 0, 1);
  }
  reuseport_drain_get_report(drain, &report);
  fprintf(stderr, "%s by %s in %lld ns\n", reuseport_outcome_name(report.outcome),
          reuseport_method_name(report.method), (long long)report.took_ns);
  reuseport_drain_free(drain);
  return report.outcome == REUSEPORT_DRAINED || report.outcome == REUSEPORT_SWEPT_AND_CLOSED ? 0
                                                                                             : 1;
}

int main(void) {
  const char* why = NULL;
  struct reuseport_listen_info info;
  int support = reuseport_probe(&why);
  int supported = support == REUSEPORT_SUPPORTED || support == REUSEPORT_SUPPORTED_BY_BPF;
  int fd = open_listener();
  int got = reuseport_get_info(fd, &info);

  if (fd < 0 || !why || supported != (got == 0)) {
    fprintf(stderr, "probe %d (%s), info %d\n", support, why ? why : "", got);
    return 1;
  }
  if (got != 0 && (got != -ENOPROTOOPT || reuseport_set_mode(fd, REUSEPORT_LISTEN_OFF) != got)) {
    return 1;
  }
  puts(reuseport_support_name((uint32_t)support));
  return drain_it(fd);
}
