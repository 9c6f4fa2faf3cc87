// SPDX-License-Identifier: Apache-2.0
#include "server/stage.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include "host/sockdiag.hpp"
#include "load/flows.hpp"
#include "net/netns.hpp"
#include "process.hpp"
#include "report/report.hpp"
#include "server/option_bpf.hpp"

namespace lab {
namespace {

using reuseport::SockDiag;

// Generous: on an emulated, busy machine an exec alone takes seconds.
constexpr std::int64_t ready_bound = 180 * one_second;

/// How many sockets `ask` finds by sock_diag(7) in a network namespace.
template <typename Ask>
Result<std::size_t> count_sockets(int ns, Ask ask) {
  const auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  auto diag = SockDiag::open();
  if (!diag) {
    return error(diag.error().message());
  }
  const auto found = ask(*diag);
  return found ? Result<std::size_t>(found->size()) : error(found.error().message());
}

/// Waits until the current half-open requests are gone, at most `bound_ns`: a client that does not
/// answer keeps its request for a minute.
Result<void> wait_half_open_gone(int ns, std::uint16_t port, std::int64_t bound_ns) {
  const auto until = now_ns() + bound_ns;
  const reuseport::Endpoint any{AF_INET, {}, port, 0};
  for (;;) {
    const auto requests = count_sockets(ns, [&](SockDiag& diag) { return diag.half_open(any); });
    if (!requests) {
      return tl::unexpected(requests.error());
    }
    if (*requests == 0 || now_ns() >= until) {
      return {};
    }
    pause_ns(one_ms);
  }
}

/// migrate: the sysctl is always on, as an administrator would set it. Needs Linux 5.14.
class MigrateStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& /*options*/) override {
    return set_sysctl(link.server_ns(), "net/ipv4/tcp_migrate_req", "1");
  }
};

/// option-bpf, option-flows: the servers are in a cgroup for which the option is enabled.
class OptionByBpfStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    std::optional<reuseport::option::FlowOptions> flows;
    if (options.method == RestartMethod::option_flows) {
      flows.emplace().idle = std::chrono::milliseconds{flow_idle_ns / one_ms};
    }
    auto enabled = OptionByBpf::enable(link.server_ns(), flows);
    if (!enabled) {
      return tl::unexpected(enabled.error());
    }
    option_ = std::move(*enabled);
    return {};
  }
  Result<Generation> start(const ServerOptions& options, const Link& link) override {
    return Generation::spawn(options, link.server_ns(), "server", option_->procs());
  }

 private:
  std::unique_ptr<OptionByBpf> option_;
};

/// syncookies: while they are on for every SYN, the kernel keeps no half-open request that could be
/// lost with its listener. Waits for older half-open requests.
class SyncookiesStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    ns_ = link.server_ns();
    port_ = options.port;
    return set("1");
  }
  Result<void> before_drain() override {
    if (auto on = set("2"); !on) {
      return on;
    }
    return wait_half_open_gone(ns_, port_, 5 * one_second);
  }
  Result<void> after_drain() override { return set("1"); }

 private:
  [[nodiscard]] Result<void> set(const std::string& value) const {
    return set_sysctl(ns_, "net/ipv4/tcp_syncookies", value);
  }
  int ns_ = -1;
  std::uint16_t port_ = 0;
};

/// socket-server: the servers are children of the process that holds the sockets.
class SocketServerStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    auto holder = Generation::spawn(options, link.server_ns(), "socket-server");
    if (!holder) {
      return tl::unexpected(holder.error());
    }
    holder_.emplace(std::move(*holder));
    return holder_->wait_ready(ready_bound);
  }
  Result<Generation> start(const ServerOptions& options, const Link& /*link*/) override {
    auto pair = Control::pair();
    if (!pair) {
      return tl::unexpected(pair.error());
    }
    auto server = options;
    server.control_fd = 3 + options.listeners;
    auto told = holder_->tell({{"do", "start"}, {"arguments", server_arguments(server)}},
                              {pair->server.get()});
    if (!told) {
      return tl::unexpected(told.error());
    }
    return Generation{options.generation, std::move(pair->lab)};
  }

 private:
  std::optional<Generation> holder_;
};

/// qdisc-plug: at the last hop before the server (on loopback: on `lo`), SYNs have a band of their
/// own with a plug in it:
///
///     netem (delay) --- prio 2: --- 2:1  everything else
///                              \--- 2:2  SYNs --- plug 3:
class PlugStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    device_ = link.client_device();
    client_ns_ = link.client_ns();
    server_ns_ = link.server_ns();
    port_ = options.port;
    // A little longer than a handshake takes; more would delay every newcomer.
    bound_ns_ = 2 * link.rtt_ns() + 50 * one_ms;
    // All priorities to band 1; a new plug holds everything back until it is told to release.
    // The filter: SYN set, ACK clear.
    return tc(
        fmt::format(
            "qdisc add dev {0} {1} handle 2: prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
            "qdisc add dev {0} parent 2:2 handle 3: plug limit 16777216\n"
            "qdisc change dev {0} parent 2:2 handle 3: plug release_indefinite\n"
            "filter add dev {0} parent 2: protocol ip u32 match ip protocol 6 0xff "
            "match ip dport {2} 0xffff match u8 0x02 0x12 at 33 flowid 2:2\n",
            device_, link.has_netem() ? "parent 1:1" : "root", port_),
        "the kernel needs CONFIG_NET_SCH_PRIO, NET_SCH_PLUG and NET_CLS_U32");
  }
  Result<void> before_drain() override {
    if (auto held = plug("block"); !held) {
      return held;
    }
    return wait_half_open_gone(server_ns_, port_, bound_ns_);
  }
  Result<void> after_drain() override { return plug("release_indefinite"); }

 private:
  [[nodiscard]] Result<void> tc(const std::string& lines, const std::string& hint = {}) const {
    return run_tool({"tc", "-batch", "-"}, lines, client_ns_, {}, hint);
  }
  [[nodiscard]] Result<void> plug(const char* action) const {
    return tc(fmt::format("qdisc change dev {} parent 2:2 handle 3: plug {}\n", device_, action));
  }

  std::string device_;
  int client_ns_ = -1;
  int server_ns_ = -1;
  std::uint16_t port_ = 0;
  std::int64_t bound_ns_ = 0;
};

/// uds-rename: haproxy has the address, the generations replace the Unix socket behind it.
class ProxyStage final : public Stage {
 public:
  ProxyStage() = default;
  ProxyStage(const ProxyStage&) = delete;
  ProxyStage& operator=(const ProxyStage&) = delete;
  ProxyStage(ProxyStage&&) = delete;
  ProxyStage& operator=(ProxyStage&&) = delete;
  ~ProxyStage() override {
    if (!directory_.empty()) {
      std::error_code ignored;
      std::filesystem::remove_all(directory_, ignored);
    }
  }

  Result<void> prepare(const Link& /*link*/, ServerOptions& options) override {
    std::string name = "/tmp/restart-lab-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) {
      return sys_error("mkdtemp /tmp/restart-lab-XXXXXX", errno);
    }
    directory_ = name;
    options.unix_path = directory_ + "/server.sock";
    options_ = options;
    return {};
  }

  Result<void> open(const Link& link) override {
    const auto path = directory_ + "/haproxy.cfg";
    auto written = write_file(
        path, fmt::format(R"(global
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen restart-lab
  bind {}:{} backlog {}
  server generation unix@{}
)",
                          options_.address, options_.port, options_.backlog, options_.unix_path));
    if (!written) {
      return written;
    }
    ChildSpec spec;
    spec.program = access("/usr/sbin/haproxy", X_OK) == 0 ? "/usr/sbin/haproxy" : "haproxy";
    spec.arguments = {"-db", "-f", path};
    spec.ns = link.server_ns();
    const Fd log{::open(log_path().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
    spec.output = log.get();
    auto pid = spawn(spec);
    if (!pid) {
      return tl::unexpected(pid.error());
    }
    proxy_ = Child{*pid};
    return wait_listening(link);
  }

 private:
  [[nodiscard]] std::string log_path() const { return directory_ + "/haproxy.log"; }
  /// The last line of its output.
  [[nodiscard]] std::string said() const {
    std::ifstream log{log_path()};
    std::string last;
    for (std::string line; std::getline(log, line);) {
      last = line;
    }
    return last;
  }
  Result<void> wait_listening(const Link& link) {
    const auto until = now_ns() + 30 * one_second;
    while (now_ns() < until) {
      if (proxy_.gone()) {
        return error(fmt::format("haproxy does not run (apt-get install haproxy): {}", said()));
      }
      const auto found = count_sockets(link.server_ns(), [this](SockDiag& diag) {
        return diag.listeners(reuseport::Protocol::tcp, options_.port);
      });
      if (!found) {
        return tl::unexpected(found.error());
      }
      if (*found > 0) {
        return {};
      }
      pause_ns(10 * one_ms);
    }
    return error("haproxy does not listen");
  }

  std::string directory_;
  ServerOptions options_;
  Child proxy_;
};

}  // namespace

std::unique_ptr<Stage> Stage::make(RestartMethod method) {
  switch (method) {
    case RestartMethod::option_bpf:
    case RestartMethod::option_flows: return std::make_unique<OptionByBpfStage>();
    case RestartMethod::migrate: return std::make_unique<MigrateStage>();
    case RestartMethod::syncookies: return std::make_unique<SyncookiesStage>();
    case RestartMethod::socket_server: return std::make_unique<SocketServerStage>();
    case RestartMethod::qdisc_plug: return std::make_unique<PlugStage>();
    case RestartMethod::uds_rename: return std::make_unique<ProxyStage>();
    default: return std::make_unique<Stage>();
  }
}

}  // namespace lab
