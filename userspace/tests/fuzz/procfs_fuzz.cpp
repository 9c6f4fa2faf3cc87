// SPDX-License-Identifier: Apache-2.0
// Links below /proc/PID/fd, /proc/PID/stat and /proc/PID/status, which hold names that any user may
// choose.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "host/process.hpp"
#include "states.hpp"

namespace {
const reuseport::fuzz::States states{"link",      "link_too_long", "stat",
                                     "stat_name", "status",        "status_name"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(static_cast<const char*>(static_cast<const void*>(data)), size);
  const auto inode = reuseport::detail::parse_socket_link(text);
  if (inode && text.find(std::to_string(*inode)) == std::string_view::npos) {
    std::abort();
  }
  const auto parent = reuseport::detail::parse_stat_parent(text);
  if (parent && *parent < 0) {
    std::abort();
  }
  // a command's name cannot change the answer
  const std::string whole = "1 (" + std::string(text) + ") S 42 1 1 0";
  if (reuseport::detail::parse_stat_parent(whole) != 42) {
    std::abort();
  }
  const auto uid = reuseport::detail::parse_status_uid(text);
  if (inode || text.starts_with("socket:[")) {
    states.reached(inode ? "link" : "link_too_long");
  }
  if (parent) {
    states.reached(text.find(')') == text.rfind(')') ? "stat" : "stat_name");
  }
  if (uid) {
    states.reached(text.find("Uid:") == text.rfind("Uid:") ? "status" : "status_name");
  }
  return 0;
}
