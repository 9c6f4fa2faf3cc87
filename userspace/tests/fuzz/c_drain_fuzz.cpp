// SPDX-License-Identifier: Apache-2.0
// The C interface with any options and any order of calls, on a socket that is no listener (so that
// nothing outside is touched) and on descriptors that do not exist.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "reuseport/reuseport.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  reuseport_drain_options options{};
  const std::size_t head = std::min(size, offsetof(reuseport_drain_options, is_shared));
  std::memcpy(&options, data, head);
  if (size > 0 && (data[0] & 1U) != 0) {
    options.size = sizeof(options);
  }
  reuseport_drain* drain = reuseport_drain_new(&options);
  if (drain == nullptr) {
    return 0;
  }
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::uint32_t wait_ms = 0;
  reuseport_drain_report report{};
  for (std::size_t i = head; i < size; ++i) {
    switch (data[i] % 6) {
      case 0: (void)reuseport_drain_add(drain, fd); break;
      case 1: (void)reuseport_drain_add(drain, -1 - data[i]); break;
      case 2: (void)reuseport_drain_start(drain); break;
      case 3: (void)reuseport_drain_step(drain, &wait_ms); break;
      case 4: (void)reuseport_drain_undo(drain); break;
      default: (void)reuseport_drain_get_report(drain, &report); break;
    }
    (void)reuseport_outcome_name(report.outcome);
    (void)reuseport_method_name(data[i]);
    (void)reuseport_support_name(data[i]);
    (void)std::strlen(reuseport_drain_error(drain));
  }
  reuseport_drain_free(drain);
  ::close(fd);
  return 0;
}
