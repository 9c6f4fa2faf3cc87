// SPDX-License-Identifier: Apache-2.0
// Uses every public header; prints the probe's answer.
#include <cstdio>

#include <reuseport/drain.hpp>
#include <reuseport/epoll.hpp>
#include <reuseport/error.hpp>
#include <reuseport/fd.hpp>
#include <reuseport/linux/reuseport.h>
#include <reuseport/listener.hpp>
#include <reuseport/probe.hpp>
#include <reuseport/reuseport.h>

namespace {

// With RTTI, as most programs are built, unlike the library.
class NoSteering : public reuseport::Steering {
 public:
  reuseport::Status start(std::span<const int> /*leaving*/) override {
    return reuseport::fail("NoSteering::start", ENOTSUP);
  }
  reuseport::Result<reuseport::Left> left(int /*fd*/) override { return reuseport::Left{}; }
  void stop() noexcept override {}
};

}  // namespace

int main() {
  NoSteering steering;
  reuseport::Drain drain({.steering = &steering});
  const reuseport::Status added = drain.add(-1);
  if (added || reuseport::Listener(-1).info()) {
    return 1;
  }
  if (reuseport::EpollDrain::start(std::move(drain), [](int) {})) {
    return 1;
  }
  std::puts(reuseport::to_string(reuseport::probe().support));
  return reuseport_version()[0] == '0' ? 0 : 1;
}
