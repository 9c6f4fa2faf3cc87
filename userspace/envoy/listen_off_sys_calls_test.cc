// SPDX-License-Identifier: Apache-2.0
// Built with Envoy's compiler and strictness (see the Makefile beside it); exits 0 when the answers
// are those of the kernel the runner names in REUSEPORT_EXPECT.
#include "envoy/listen_off_sys_calls.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using Envoy::Api::SysCallIntResult;
using Envoy::Network::drained;
using Envoy::Network::ListenInfo;
using Envoy::Network::ListenMode;
using Envoy::Network::ListenOffSysCalls;

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "FAILED %s\n", what);
    ++failures;
  }
}

bool is(const SysCallIntResult& result, int rc, int error) {
  return result.return_value_ == rc && result.errno_ == error;
}

int listener() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const void* address = &at;
  if (::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(fd, static_cast<const sockaddr*>(address), sizeof(at)) != 0 || ::listen(fd, 8) != 0) {
    std::perror("listener");
    std::exit(1);
  }
  return fd;
}

} // namespace

int main() {
  const char* expected = std::getenv("REUSEPORT_EXPECT");
  const bool supported = expected != nullptr && std::strncmp(expected, "supported", 9) == 0;
  const ListenOffSysCalls calls;
  const int fd = listener();
  ListenInfo info{};
  expect(calls.supportsReusePortListenOff() == supported, "supportsReusePortListenOff");
  if (supported) {
    expect(is(calls.setListenMode(fd, ListenMode::Standby), 0, 0), "set standby");
    expect(is(calls.getListenInfo(fd, info), 0, 0), "get info");
    expect(info.group_standby == 1 && info.group_on == 0 && !drained(info), "standby alone serves");
    expect(is(calls.setListenMode(fd, ListenMode::Off), 0, 0), "set off");
    for (int i = 0; i < 5000 && !drained(info); ++i) {
      ::usleep(1000);
      (void)calls.getListenInfo(fd, info);
    }
    expect(info.mode == 1 && drained(info), "drained in the end");
    expect(is(calls.setListenMode(-1, ListenMode::Off), -1, EBADF), "bad descriptor");
    expect(is(calls.setListenMode(fd, static_cast<ListenMode>(9)), -1, EINVAL), "unknown mode");
  } else {
    expect(is(calls.setListenMode(fd, ListenMode::Off), -1, ENOPROTOOPT), "set is not supported");
    expect(is(calls.getListenInfo(fd, info), -1, ENOPROTOOPT), "get is not supported");
  }
  ::close(fd);
  return failures == 0 ? 0 : 1;
}
