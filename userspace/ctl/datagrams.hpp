// SPDX-License-Identifier: Apache-2.0
// Descriptors of UDP sockets of other processes: the option by BPF takes them in by nothing else.
#ifndef REUSEPORTCTL_DATAGRAMS_HPP
#define REUSEPORTCTL_DATAGRAMS_HPP

#include <cstdint>
#include <vector>

#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

/// A duplicate each of the sockets with these cookies, of this network namespace, from whoever
/// holds them; none where nobody does who may be asked. An option::FindDescriptors.
[[nodiscard]] std::vector<Fd> datagrams_by_cookie(const std::vector<std::uint64_t>& cookies);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_DATAGRAMS_HPP
