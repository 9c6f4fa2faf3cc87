// SPDX-License-Identifier: Apache-2.0
// What the library says in each of these cases, a line each. The programs of the other languages say the same,
// word for word: see ../conformance. In a network namespace with lo up.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <reuseport/reuseport.h>

static void die(const char* what) {
  perror(what);
  exit(1);
}

static int open_socket(int type, struct sockaddr_in* at) {
  const int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int one = 1;
  socklen_t len = sizeof(*at);
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      bind(fd, (struct sockaddr*)at, len) != 0 || (type == SOCK_STREAM && listen(fd, 16) != 0) ||
      getsockname(fd, (struct sockaddr*)at, &len) != 0) {
    die("listen");
  }
  return fd;
}

static struct sockaddr_in loopback(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  return at;
}

static void dial(const struct sockaddr_in* to, int n) {
  for (int i = 0; i < n; i++) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr*)to, sizeof(*to)) != 0) die("connect");
  }
}

static int accept_all(int fd) {
  int n = 0;
  while (accept(fd, NULL, NULL) >= 0) n++;
  return n;
}

static void print_error(const char* name, int error, const char* call, const char* hint) {
  if (error == 0) {
    printf("%s: ok\n", name);
  } else {
    printf("%s: %s|%d|%s\n", name, call, -error, hint);
  }
}

static void print_drain_error(const char* name, const struct reuseport_drain* drain) {
  struct reuseport_error error = {.size = sizeof(error)};
  reuseport_drain_get_error(drain, &error);
  print_error(name, error.error, error.call, error.hint);
}

static const char* count(uint32_t number, char* text) {
  sprintf(text, number == REUSEPORT_UNKNOWN ? "-" : "%u", number);
  return text;
}

static void print_report(const char* name, const struct reuseport_drain* drain) {
  char handshakes[16], queued[16];
  struct reuseport_drain_report r = {.size = sizeof(r)};
  reuseport_drain_get_report(drain, &r);
  printf("%s: outcome=%s method=%s support=%s lossless=%u timed_out=%u listeners=%u handshakes=%s queued=%s\n", name,
         reuseport_outcome_name(r.outcome), reuseport_method_name(r.method), reuseport_support_name(r.support),
         r.lossless, r.timed_out, r.listeners, count(r.handshakes, handshakes), count(r.queued, queued));
  struct reuseport_listener_report l = {.size = sizeof(l)};
  for (size_t i = 0; reuseport_drain_get_listener(drain, i, &l) == 0; i++) {
    printf("%s, listener %zu: outcome=%s method=%s before=%u handshakes=%s queued=%s group_on=%u error=%d open=%u\n",
           name, i, reuseport_outcome_name(l.outcome), reuseport_method_name(l.method), l.before,
           count(l.handshakes, handshakes), count(l.queued, queued), l.group_on, -l.error, l.open);
  }
}

static void print_mode(const char* name, int fd) {
  struct reuseport_listen_info info;
  const int got = reuseport_get_info(fd, &info);
  if (got < 0) {
    print_error(name, got, "getsockopt(SO_REUSEPORT_LISTEN_OFF)", reuseport_hint(got));
  } else {
    printf("%s: mode=%u bpf=%d cookies=%d handshakes=%u queued=%u on=%u standby=%u off=%u\n", name, info.mode,
           (info.flags & REUSEPORT_LISTEN_F_BPF) != 0, (info.flags & REUSEPORT_LISTEN_F_COOKIES) != 0,
           info.handshakes, info.queued, info.group_on, info.group_standby, info.group_off);
  }
}

static void set_mode(const char* name, int fd, int mode) {
  const int set = reuseport_set_mode(fd, mode);
  print_error(name, set, "setsockopt(SO_REUSEPORT_LISTEN_OFF)", reuseport_hint(set));
}

// Steps to the end; how many were accepted.
static int run(struct reuseport_drain* drain) {
  struct reuseport_step step = {.size = sizeof(step)};
  int accepted = 0;
  for (;;) {
    switch (reuseport_drain_step(drain, &step)) {
      case REUSEPORT_ACCEPT_MORE:
        for (uint32_t i = 0; i < step.n_fds; i++) accepted += accept_all(step.fds[i]);
        break;
      case REUSEPORT_WAIT: poll(NULL, 0, (int)(step.wait_ns / 1000000) + 1); break;
      default: return accepted;
    }
  }
}

static int is_shared(int fd, void* user) {
  (void)fd;
  return *(int*)user;
}

// Options of a case; the size is set here.
static struct reuseport_drain* make(struct reuseport_drain_options options) {
  struct reuseport_drain* drain;
  options.size = sizeof(options);
  if (reuseport_drain_new(&options, &drain) != 0) die("drain_new");
  return drain;
}

static int start(const char* name, struct reuseport_drain* drain, int listener) {
  char text[64];
  int result = reuseport_drain_add(drain, listener);
  if (result == 0) result = reuseport_drain_start(drain);
  snprintf(text, sizeof(text), "%s, start", name);
  if (result == 0) {
    printf("%s: ok\n", text);
  } else {
    print_drain_error(text, drain);
  }
  return result == 0;
}

static void names(void) {
  for (uint32_t i = 0; i < 8; i++) printf("support %u: %s\n", i, reuseport_support_name(i));
  for (uint32_t i = 0; i < 12; i++) printf("outcome %u: %s\n", i, reuseport_outcome_name(i));
  for (uint32_t i = 0; i < 7; i++) printf("method %u: %s\n", i, reuseport_method_name(i));
  for (int i = 0; i < 134; i++) {
    if (reuseport_hint(i)[0] != '\0') printf("hint %d: %s\n", i, reuseport_hint(i));
  }
}

static void options(void) {
  const char* why;
  int support = reuseport_probe(&why);
  printf("probe: %s, %s\n", reuseport_support_name((uint32_t)support), why);
  support = reuseport_probe_behaviour(8, &why);
  printf("behaviour: %s, %s\n", reuseport_support_name((uint32_t)support), why);
  struct sockaddr_in at = loopback();
  const int fd = open_socket(SOCK_STREAM, &at), other = open_socket(SOCK_STREAM, &at);
  print_mode("on", fd);
  set_mode("set off", fd, REUSEPORT_LISTEN_OFF);
  print_mode("off", fd);
  set_mode("set standby", fd, REUSEPORT_LISTEN_STANDBY);
  print_mode("standby", fd);
  set_mode("set nothing", fd, 77);
  print_mode("still standby", fd);
  set_mode("set on", fd, REUSEPORT_LISTEN_ON);
  const int local = socket(AF_UNIX, SOCK_STREAM, 0);
  set_mode("unix", local, REUSEPORT_LISTEN_OFF);
  set_mode("no socket", -1, REUSEPORT_LISTEN_OFF);
  close(local);
  close(fd);
  close(other);
  struct reuseport_listen_info info = {.mode = REUSEPORT_LISTEN_STANDBY, .flags = REUSEPORT_LISTEN_F_SETTLED, .group_on = 1};
  printf("drained: %d", reuseport_drained(&info));
  info.queued = 1;
  printf(" %d", reuseport_drained(&info));
  info.queued = info.group_on = 0;
  printf(" %d", reuseport_drained(&info));
  info.mode = REUSEPORT_LISTEN_OFF;
  printf(" %d", reuseport_drained(&info));
  info.flags |= REUSEPORT_LISTEN_F_COOKIES;
  printf(" %d\n", reuseport_drained(&info));
}

// Three in the queue of the old one, then a newcomer.
static void newcomer(void) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at);
  dial(&at, 3);
  const int fresh = open_socket(SOCK_STREAM, &at);
  struct reuseport_drain* drain = make((struct reuseport_drain_options){0});
  print_report("newcomer, before", drain);
  if (start("newcomer", drain, old)) {
    print_report("newcomer, running", drain);
    printf("newcomer, accepted: %d\n", run(drain));
    print_report("newcomer", drain);
    print_drain_error("newcomer, why", drain);
    struct reuseport_step step = {.size = sizeof(step)};
    printf("newcomer, again: %d\n", reuseport_drain_step(drain, &step));
  }
  reuseport_drain_free(drain);
  dial(&at, 2);
  printf("newcomer, next: %d\n", accept_all(fresh));
  close(fresh);
}

static void alone(const char* name, struct reuseport_drain_options options) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at);
  dial(&at, 1);
  struct reuseport_drain* drain = make(options);
  char text[64];
  if (start(name, drain, old)) {
    snprintf(text, sizeof(text), "%s, accepted", name);
    printf("%s: %d\n", text, run(drain));
    print_report(name, drain);
  }
  reuseport_drain_free(drain);
}

static void undo(void) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at), fresh = open_socket(SOCK_STREAM, &at);
  struct reuseport_drain* drain = make((struct reuseport_drain_options){.policy = REUSEPORT_REQUIRE});
  print_error("undo too early", reuseport_drain_undo(drain) == -ESTALE ? -ESTALE : 0, "undo", "");
  if (start("undo", drain, old)) {
    print_mode("undo, meanwhile", old);
    printf("undo, done: %d\n", reuseport_drain_undo(drain));
    print_report("undo", drain);
  }
  reuseport_drain_free(drain);
  print_mode("undo, afterwards", old);
  close(fresh);
  dial(&at, 1);
  printf("undo, serves: %d\n", accept_all(old));
  close(old);
}

// Nobody accepts, so time runs out.
static void keep(void) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at);
  dial(&at, 2);
  const int fresh = open_socket(SOCK_STREAM, &at);
  struct reuseport_drain* drain = make((struct reuseport_drain_options){.flags = REUSEPORT_DRAIN_NO_ACCEPT,
      .at_deadline = REUSEPORT_DEADLINE_KEEP, .timeout_ns = REUSEPORT_MS(50)});
  if (start("keep", drain, old)) {
    printf("keep, accepted: %d\n", run(drain));
    print_report("keep", drain);
    print_mode("keep, afterwards", old);
  }
  reuseport_drain_free(drain);
  close(old);
  close(fresh);
}

static void shared(const char* name, int answer) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at), fresh = open_socket(SOCK_STREAM, &at);
  struct reuseport_drain* drain =
      make((struct reuseport_drain_options){.policy = REUSEPORT_REQUIRE, .is_shared = is_shared, .user = &answer});
  if (start(name, drain, old)) print_report(name, drain);
  reuseport_drain_free(drain);
  print_mode(name, old);
  close(old);
  close(fresh);
}

static void wrong(void) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_STREAM, &at), local = socket(AF_UNIX, SOCK_STREAM, 0);
  struct reuseport_drain* drain = make((struct reuseport_drain_options){0});
  struct reuseport_step step = {.size = sizeof(step)};
  if (reuseport_drain_step(drain, &step) < 0) print_drain_error("step too early", drain);
  if (reuseport_drain_start(drain) < 0) print_drain_error("start with nothing", drain);
  if (reuseport_drain_add(drain, local) < 0) print_drain_error("add unix", drain);
  if (reuseport_drain_add(drain, old) < 0) print_drain_error("add", drain);
  if (reuseport_drain_add(drain, old) < 0) print_drain_error("add again", drain);
  struct reuseport_listener_report l = {.size = sizeof(l)};
  printf("no listener: %d\n", -reuseport_drain_get_listener(drain, 1, &l));
  struct reuseport_drain_options options = {.size = sizeof(options), .timeout_ns = -1};
  struct reuseport_drain* none;
  printf("bad option: %d\n", -reuseport_drain_new(&options, &none));
  reuseport_drain_free(drain);
  close(old);
  close(local);
}

// By BPF a UDP socket has to be taken in by a tool first: until then EAGAIN, to the deadline.
static void udp(void) {
  struct sockaddr_in at = loopback();
  const int old = open_socket(SOCK_DGRAM, &at), fresh = open_socket(SOCK_DGRAM, &at);
  struct reuseport_drain* drain =
      make((struct reuseport_drain_options){.policy = REUSEPORT_REQUIRE, .timeout_ns = REUSEPORT_MS(300)});
  if (start("udp", drain, old)) {
    run(drain);
    print_report("udp", drain);
    print_drain_error("udp, why", drain);
  }
  reuseport_drain_free(drain);
  close(fresh);
}

int main(void) {
  printf("version: %s\n", reuseport_version());
  names();
  options();
  newcomer();
  alone("alone", (struct reuseport_drain_options){0});
  alone("leave", (struct reuseport_drain_options){.last_on = REUSEPORT_LAST_LEAVE});
  alone("close", (struct reuseport_drain_options){.policy = REUSEPORT_CLOSE_ONLY});
  undo();
  keep();
  shared("shared", 1);
  shared("shared, unknown", -EIO);
  wrong();
  udp();
  printf("end\n");
  return 0;
}
