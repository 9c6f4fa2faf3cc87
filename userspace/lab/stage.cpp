// SPDX-License-Identifier: Apache-2.0
#include "stage.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include "host/sockdiag.hpp"

#include "clock.hpp"
#include "netns.hpp"
#include "report.hpp"
#include "rtnl.hpp"
#include "socket_server.hpp"

namespace lab {
namespace {

void pause(std::int64_t ns) {
  const auto time = to_timespec(ns);
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

/// Watches the half-open requests of the server's address.
class HalfOpen {
 public:
  static Result<HalfOpen> watch(const Link& link, const ServerOptions& options) {
    auto inside = InNamespace::enter(link.server_ns());
    if (!inside) {
      return tl::unexpected(inside.error());
    }
    auto diag = reuseport::SockDiag::open();
    if (!diag) {
      return error(diag.error().message());
    }
    reuseport::Endpoint endpoint;
    endpoint.family = AF_INET;
    std::memcpy(endpoint.addr.data(), &options.address, sizeof options.address);
    endpoint.port = options.port;
    return HalfOpen{std::move(*diag), endpoint};
  }

  /// Until those of this moment are gone, but `bound_ns` at the longest: a client that does not
  /// answer keeps its request for a minute.
  Result<void> wait_gone(std::int64_t bound_ns) {
    const auto until = now_ns() + bound_ns;
    for (;;) {
      auto requests = diag_.half_open(endpoint_);
      if (!requests) {
        return error(requests.error().message());
      }
      if (requests->empty() || now_ns() >= until) {
        return {};
      }
      pause(one_ms);
    }
  }

 private:
  HalfOpen(reuseport::SockDiag diag, const reuseport::Endpoint& endpoint)
      : diag_(std::move(diag)), endpoint_(endpoint) {}
  reuseport::SockDiag diag_;
  reuseport::Endpoint endpoint_;
};

/// A sysctl of the server's namespace.
Result<void> set_server_sysctl(int ns, const std::string& name, const std::string& value) {
  auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  return set_sysctl(name, value);
}

/// migrate: the sysctl is on all the time, as an administrator would have it. Needs Linux 5.14.
class MigrateStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& /*options*/) override {
    return set_server_sysctl(link.server_ns(), "net/ipv4/tcp_migrate_req", "1");
  }
};

/// syncookies: while they are on for every SYN, the kernel keeps no half-open request that could be
/// lost with its listener. What was half-open before is waited for.
class SyncookiesStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    ns_ = link.server_ns();
    auto watch = HalfOpen::watch(link, options);
    if (!watch) {
      return tl::unexpected(watch.error());
    }
    half_open_.emplace(std::move(*watch));
    return set("1");
  }
  Result<void> before_drain() override {
    if (auto on = set("2"); !on) {
      return on;
    }
    return half_open_->wait_gone(5 * one_second);
  }
  Result<void> after_drain() override { return set("1"); }

 private:
  [[nodiscard]] Result<void> set(const std::string& value) const {
    return set_server_sysctl(ns_, "net/ipv4/tcp_syncookies", value);
  }
  int ns_ = -1;
  std::optional<HalfOpen> half_open_;
};

/// socket-server: the servers are children of the process that holds the sockets.
class SocketServerStage final : public Stage {
 public:
  Result<void> prepare(const Link& link, ServerOptions& options) override {
    auto server = SocketServer::spawn(options, link.server_ns());
    if (!server) {
      return tl::unexpected(server.error());
    }
    server_.emplace(std::move(*server));
    return {};
  }
  Result<Generation> start(const ServerOptions& options, const Link& /*link*/) override {
    return server_->start(options);
  }

 private:
  std::optional<SocketServer> server_;
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
    ns_ = link.client_ns();
    // As long as a handshake takes, and some; longer would delay every newcomer.
    bound_ns_ = 2 * link.rtt_ns() + 50 * one_ms;
    auto watch = HalfOpen::watch(link, options);
    if (!watch) {
      return tl::unexpected(watch.error());
    }
    half_open_.emplace(std::move(*watch));
    auto inside = InNamespace::enter(link.client_ns());
    if (!inside) {
      return tl::unexpected(inside.error());
    }
    auto rtnl = Rtnl::open();
    if (!rtnl) {
      return tl::unexpected(rtnl.error());
    }
    rtnl_.emplace(std::move(*rtnl));
    auto done = rtnl_->add_prio(device_, link.has_netem() ? Rtnl::netem_handle + 1 : Rtnl::root,
                                prio_handle);
    if (done) {
      done = rtnl_->add_plug(device_, syn_band, plug_handle);
    }
    if (done) {
      done = rtnl_->classify_syns(device_, prio_handle, syn_band, options.port);
    }
    return done;
  }
  Result<void> before_drain() override {
    {
      auto inside = InNamespace::enter(ns_);
      if (!inside) {
        return tl::unexpected(inside.error());
      }
      if (auto held = rtnl_->plug(device_, syn_band, plug_handle); !held) {
        return held;
      }
    }
    return half_open_->wait_gone(bound_ns_);
  }
  Result<void> after_drain() override {
    auto inside = InNamespace::enter(ns_);
    if (!inside) {
      return tl::unexpected(inside.error());
    }
    return rtnl_->unplug(device_, syn_band, plug_handle);
  }

 private:
  static constexpr Rtnl::Handle prio_handle = 0x00020000U;
  static constexpr Rtnl::Handle syn_band = 0x00020002U;
  static constexpr Rtnl::Handle plug_handle = 0x00030000U;

  std::string device_;
  int ns_ = -1;
  std::int64_t bound_ns_ = 0;
  std::optional<HalfOpen> half_open_;
  std::optional<Rtnl> rtnl_;
};

/// uds-rename: haproxy has the address, the generations replace the Unix socket behind it.
class ProxyStage final : public Stage {
 public:
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
    std::array<char, 16> address{};
    inet_ntop(AF_INET, &options_.address, address.data(), address.size());
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
                          address.data(), options_.port, options_.backlog, options_.unix_path));
    if (!written) {
      return written;
    }
    ChildSpec spec;
    spec.program = access("/usr/sbin/haproxy", X_OK) == 0 ? "/usr/sbin/haproxy" : "haproxy";
    spec.arguments = {"-db", "-f", path};
    spec.ns = link.server_ns();
    spec.log = log_path();
    auto pid = spawn(spec);
    if (!pid) {
      return tl::unexpected(pid.error());
    }
    proxy_ = Child{*pid};
    return wait_listening(link);
  }

 private:
  [[nodiscard]] std::string log_path() const { return directory_ + "/haproxy.log"; }
  /// Its last line.
  [[nodiscard]] std::string said() const {
    std::ifstream log{log_path()};
    std::string last;
    for (std::string line; std::getline(log, line);) {
      last = line;
    }
    return last;
  }
  Result<void> wait_listening(const Link& link) {
    auto inside = InNamespace::enter(link.server_ns());
    if (!inside) {
      return tl::unexpected(inside.error());
    }
    auto diag = reuseport::SockDiag::open();
    if (!diag) {
      return error(diag.error().message());
    }
    const auto until = now_ns() + 30 * one_second;
    while (now_ns() < until) {
      if (proxy_.gone()) {
        return error(fmt::format("haproxy does not run (apt-get install haproxy): {}", said()));
      }
      auto found = diag->listeners(reuseport::Protocol::tcp, options_.port);
      if (found && !found->empty()) {
        return {};
      }
      pause(10 * one_ms);
    }
    return error("haproxy does not listen");
  }

  std::string directory_;
  ServerOptions options_;
  Child proxy_;
};

}  // namespace

std::unique_ptr<Stage> Stage::make(Method method) {
  switch (method) {
    case Method::migrate: return std::make_unique<MigrateStage>();
    case Method::syncookies: return std::make_unique<SyncookiesStage>();
    case Method::socket_server: return std::make_unique<SocketServerStage>();
    case Method::qdisc_plug: return std::make_unique<PlugStage>();
    case Method::uds_rename: return std::make_unique<ProxyStage>();
    default: return std::make_unique<Stage>();
  }
}

}  // namespace lab
