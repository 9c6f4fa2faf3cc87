// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_BPF_STEERING_HPP
#define REUSEPORT_BPF_STEERING_HPP

#include <memory>
#include <vector>

#include "reuseport/drain.hpp"
#include "reuseport/export.h"
#include "reuseport/fd.hpp"

namespace reuseport {

/// Steering for a Drain on a kernel without the option, by SteerProgram and QueueWatch (steer.hpp,
/// which says what they need): one program for each address that the drain leaves.
///
///     auto steering = bpf_steering(std::move(newcomers_listeners));
///     Drain drain({.steering = steering.get()});
///
/// Its start() fails with EADDRNOTAVAIL where an address has nobody in @p stay, and with the errors
/// of SteerProgram::start(). The drain must step more often than SteerProgram::lease; where it was
/// late, what may have slipped in is waited for too.
/// @param stay  listeners that go on: the newcomer's, by Process::duplicate() or SCM_RIGHTS. They
///              are closed with this object; while they are held, the newcomer's close() is not the
///              last.
[[nodiscard]] REUSEPORT_API std::unique_ptr<Steering> bpf_steering(std::vector<Fd> stay);

}  // namespace reuseport

#endif  // REUSEPORT_BPF_STEERING_HPP
