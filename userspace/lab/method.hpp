// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_METHOD_HPP
#define LAB_METHOD_HPP

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lab {

/// A way to restart a listener, the lab's `--method`. What the old generation does is in
/// server/server.cpp, what happens around it in server/stage.cpp, and how a generation comes by its
/// listeners in server/listeners.cpp.
enum class RestartMethod : std::uint8_t {
  close,
  sweep,
  migrate,
  listen_off,
  option_bpf,
  option_flows,
  fd_pass,
  socket_server,
  qdisc_plug,
  uds_rename,
  syncookies,
};

struct MethodInfo {
  RestartMethod method;
  std::string_view name;
  std::string_view what;        ///< one line for `restart-lab methods`
  std::string_view privileges;  ///< beyond those of a server that opens its own sockets
  int extra_processes;          ///< besides the two generations
};

inline constexpr std::array methods{
    MethodInfo{RestartMethod::close, "close", "plain close", "none", 0},
    MethodInfo{RestartMethod::sweep, "sweep", "accept until EAGAIN, then close", "none", 0},
    MethodInfo{RestartMethod::migrate, "migrate", "net.ipv4.tcp_migrate_req=1, then close",
               "CAP_NET_ADMIN (sysctl)", 0},
    MethodInfo{RestartMethod::listen_off, "listen-off",
               "libreuseport's drain: SO_REUSEPORT_LISTEN_OFF, else its fallback", "none", 0},
    MethodInfo{RestartMethod::option_bpf, "option-bpf",
               "libreuseport's drain, BPF provides the option",
               "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", 0},
    MethodInfo{RestartMethod::option_flows, "option-flows",
               "the same drain for UDP, after the flows of the old process are over (enable "
               "--udp-flows)",
               "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", 0},
    MethodInfo{RestartMethod::fd_pass, "fd-pass",
               "the old process passes its listening sockets on (SCM_RIGHTS)", "none", 0},
    MethodInfo{RestartMethod::socket_server, "socket-server",
               "another process holds the sockets and starts the servers", "none", 1},
    MethodInfo{RestartMethod::qdisc_plug, "qdisc-plug",
               "SYNs wait in a plug qdisc while the listeners change", "CAP_NET_ADMIN (tc)", 0},
    MethodInfo{RestartMethod::uds_rename, "uds-rename",
               "haproxy in front of a Unix socket that an atomic rename replaces", "none", 1},
    MethodInfo{RestartMethod::syncookies, "syncookies",
               "net.ipv4.tcp_syncookies=2 for the time of the close", "CAP_NET_ADMIN (sysctl)", 0},
};

inline const MethodInfo& info(RestartMethod method) {
  for (const auto& entry : methods) {
    if (entry.method == method) {
      return entry;
    }
  }
  return methods.front();
}

/// Whether the old generation uses libreuseport's drain, which must lose nothing with the option.
constexpr bool drains(RestartMethod method) {
  return method == RestartMethod::listen_off || method == RestartMethod::option_bpf ||
         method == RestartMethod::option_flows;
}

/// Is something enabled by BPF for it?
constexpr bool wants_bpf(RestartMethod method) {
  return method == RestartMethod::option_bpf || method == RestartMethod::option_flows;
}

/// Can it restart a server of UDP flows?
constexpr bool serves_udp(RestartMethod method) {
  return method == RestartMethod::close || drains(method);
}
/// ... of TCP connections?
constexpr bool serves_tcp(RestartMethod method) {
  return method != RestartMethod::option_flows;
}

/// Whether it empties its queues before it closes.
constexpr bool sweeps(RestartMethod method) {
  return method == RestartMethod::sweep || method == RestartMethod::qdisc_plug ||
         method == RestartMethod::syncookies || method == RestartMethod::uds_rename;
}

/// Whether the generations share their sockets.
constexpr bool shares_sockets(RestartMethod method) {
  return method == RestartMethod::fd_pass || method == RestartMethod::socket_server;
}

inline std::optional<RestartMethod> parse_method(std::string_view name) {
  for (const auto& entry : methods) {
    if (entry.name == name) {
      return entry.method;
    }
  }
  return std::nullopt;
}

}  // namespace lab

#endif  // LAB_METHOD_HPP
