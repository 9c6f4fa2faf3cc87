// SPDX-License-Identifier: Apache-2.0
#include "enable.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "datagrams.hpp"
#include "option/option.hpp"
#include "text.hpp"

namespace reuseport::ctl {

namespace {

Expected<Fd> open_path(const std::string& path, int flags, const std::string& what) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
  if (!fd) {
    return failed(Error{"open(" + path + ")", errno, what});
  }
  return fd;
}

/// Maps what the option needs to an exit code.
tl::unexpected<Failure> refused(const Error& error) {
  Failure failure(error);
  switch (option::need(error)) {
    case option::Need::privilege: failure.exit = Exit::permission; break;
    case option::Need::kernel:
    case option::Need::not_by_bpf: failure.exit = Exit::unsupported; break;
    case option::Need::nothing: break;
  }
  return failed(std::move(failure));
}

bool is_number(const std::string& text) {
  return !text.empty() &&
         std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c) != 0; });
}

}  // namespace

Done enable_command(const EnableOptions& options, const Output& out) {
  std::string cgroup = options.cgroup;
  std::string netns =
      is_number(options.netns) ? "/proc/" + options.netns + "/ns/net" : options.netns;
  if (options.pid) {
    const auto of = option::cgroup_of(*options.pid);
    if (!of) {
      return refused(of.error());
    }
    cgroup = cgroup.empty() ? *of : cgroup;
    netns = netns.empty() ? fmt::format("/proc/{}/ns/net", *options.pid) : netns;
  }
  if (cgroup.empty()) {
    return failed(Failure(Exit::usage, "enable needs --cgroup or --pid"));
  }
  std::optional<option::FlowOptions> flows;
  if (options.udp_flows) {
    flows = option::FlowOptions{options.idle, options.flows_max};
  } else if (options.idle || options.flows_max) {
    return failed(Failure(Exit::usage, "--idle and --flows-max need --udp-flows"));
  }
  auto directory = open_path(cgroup, O_DIRECTORY, "name a cgroup2 directory");
  if (!directory) {
    return tl::unexpected(directory.error());
  }
  Fd where;
  if (!netns.empty()) {
    auto fd =
        open_path(netns, 0, "name a network namespace: PID, /proc/PID/ns/net or /run/netns/NAME");
    if (!fd) {
      return tl::unexpected(fd.error());
    }
    where = std::move(*fd);
  }
  const auto done =
      option::enable(directory->get(), where.get(),
                     options.large_groups ? option::GroupSize::large : option::GroupSize::normal,
                     datagrams_by_cookie, flows);
  if (!done) {
    auto failure = refused(done.error());
    if (!options.udp_flows && option::need(done.error()) == option::Need::not_by_bpf) {
      failure.value().hint += "; only UDP flows can be enabled (--udp-flows)";
    }
    return failure;
  }
  const auto root = option::cgroup2_mount();
  if (root && *root == cgroup) {
    out.note(
        done->own_option
            ? "this is the root cgroup: BPF programs run at every datagram that an unconnected "
              "UDP socket of this machine sends, and at every close of a socket"
            : "this is the root cgroup: BPF programs run at every setsockopt, getsockopt, "
              "bind, listen and close of the whole machine, and a server that adds its "
              "listeners to its own REUSEPORT_SOCKARRAY gets EBUSY");
  }
  if (done->foreign > 0) {
    out.note(
        fmt::format("{} other sk_lookup program{} in this namespace: their choice takes precedence",
                    done->foreign, done->foreign == 1 ? "" : "s"));
  }
  if (done->refused > 0) {
    out.note(
        fmt::format("{} socket{} could not be adopted: their groups are left to the kernel (see "
                    "reuseportctl status)",
                    done->refused, done->refused == 1 ? "" : "s"));
  }
  if (out.json) {
    out.document({{"cgroup", cgroup},
                  {"new_cgroup", done->new_cgroup},
                  {"new_namespace", done->new_namespace},
                  {"programs_replaced", done->replaced},
                  {"listeners", done->listeners},
                  {"datagram_sockets", done->datagrams},
                  {"refused", done->refused},
                  {"foreign_programs", done->foreign},
                  {"udp_flows", done->flows},
                  {"modes", done->own_option ? "kernel" : "bpf"}});
  } else {
    const std::string listeners =
        done->own_option
            ? "the modes are the kernel's own; "
            : fmt::format("{} listener{} and ", done->listeners, done->listeners == 1 ? "" : "s");
    out.text(fmt::format("{}: {} in {}; {}{} UDP socket{} known{}\n", visible(cgroup),
                         done->new_cgroup || done->new_namespace ? "enabled"
                         : done->replaced ? "already enabled, programs replaced"
                                          : "already enabled",
                         netns.empty() ? "this network namespace" : netns, listeners,
                         done->datagrams, done->datagrams == 1 ? "" : "s",
                         done->flows ? "; UDP flows are recorded" : ""));
  }
  return {};
}

Done disable_command(bool force, const Output& out) {
  if (const auto done = option::disable(force); !done) {
    return refused(done.error());
  }
  if (out.json) {
    out.document({{"enabled", false}});
  } else {
    out.text("disabled\n");
  }
  return {};
}

}  // namespace reuseport::ctl
