// SPDX-License-Identifier: Apache-2.0
// Descriptors of UDP sockets of other processes: the option by BPF needs one to adopt a socket.
#ifndef REUSEPORTCTL_DATAGRAMS_HPP
#define REUSEPORTCTL_DATAGRAMS_HPP

#include <cstdint>
#include <vector>

#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

/// A duplicate of each socket with one of these cookies in this network namespace; empty where no
/// holder can be accessed. An option::FindDescriptors.
[[nodiscard]] std::vector<Fd> datagrams_by_cookie(const std::vector<std::uint64_t>& cookies);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_DATAGRAMS_HPP
