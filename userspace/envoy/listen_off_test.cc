// SPDX-License-Identifier: Apache-2.0
// Built with Envoy's compiler and strictness by ./run; exits 0 when the answers are those of the
// kernel the runner names in REUSEPORT_EXPECT.
#include "envoy/listen_off.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "reuseport/probe.hpp"

namespace {

using Envoy::Api::SysCallIntResult;
using Envoy::Network::drained;
using Envoy::Network::getListenInfo;
using Envoy::Network::IoHandle;
using Envoy::Network::ListenInfo;
using Envoy::Network::ListenMode;
using Envoy::Network::setListenMode;

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

class Handle : public IoHandle {
public:
  explicit Handle(int fd) : fd_(fd) {}
  SysCallIntResult setOption(int level, int optname, const void* optval,
                             socklen_t optlen) override {
    return result(::setsockopt(fd_, level, optname, optval, optlen));
  }
  SysCallIntResult getOption(int level, int optname, void* optval, socklen_t* optlen) override {
    const SysCallIntResult got = result(::getsockopt(fd_, level, optname, optval, optlen));
    *optlen = answered_ != 0 ? answered_ : *optlen;
    return got;
  }
  socklen_t answered_ = 0; // as if another option had the number

private:
  static SysCallIntResult result(int rc) { return {rc, rc == 0 ? 0 : errno}; }
  int fd_;
};

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
  const int fd = listener();
  Handle handle(fd);
  ListenInfo info{};
  expect(reuseport::probe().supported() == supported, "supportsReusePortListenOff");
  if (supported) {
    expect(is(setListenMode(handle, ListenMode::Standby), 0, 0), "set standby");
    expect(is(getListenInfo(handle, info), 0, 0), "get info");
    expect(info.group_standby == 1 && info.group_on == 0 && !drained(info), "standby alone serves");
    expect(is(setListenMode(handle, ListenMode::Off), 0, 0), "set off");
    for (int i = 0; i < 5000 && !drained(info); ++i) {
      ::usleep(1000);
      (void)getListenInfo(handle, info);
    }
    expect(info.mode == 1 && drained(info), "drained in the end");
    Handle none(-1);
    expect(is(setListenMode(none, ListenMode::Off), -1, EBADF), "bad descriptor");
    expect(is(setListenMode(handle, static_cast<ListenMode>(9)), -1, EINVAL), "unknown mode");
    handle.answered_ = 4;
    expect(is(getListenInfo(handle, info), -1, EPROTO), "another option's answer");
  } else {
    expect(is(setListenMode(handle, ListenMode::Off), -1, ENOPROTOOPT), "set is not supported");
    expect(is(getListenInfo(handle, info), -1, ENOPROTOOPT), "get is not supported");
  }
  ::close(fd);
  return failures == 0 ? 0 : 1;
}
