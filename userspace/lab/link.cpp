// SPDX-License-Identifier: Apache-2.0
#include "link.hpp"

#include <arpa/inet.h>

#include <charconv>
#include <string_view>

#include "clock.hpp"
#include "netns.hpp"
#include "rtnl.hpp"

namespace lab {
namespace {

constexpr const char* device_name = "lab0";
constexpr std::uint32_t client_address = 0x0a4d0001U;       // 10.77.0.1
constexpr std::uint32_t server_side_address = 0x0a4d0002U;  // 10.77.0.2
constexpr MacAddress client_mac{0x02, 0, 0, 0, 0, 1};
constexpr MacAddress server_mac{0x02, 0, 0, 0, 0, 2};

/// One end of the wire: its own address, up, and (veth) the way to the other.
Result<void> set_up_end(int ns, std::uint32_t own, std::uint32_t peer, const MacAddress* peer_mac,
                        const LinkSpec* netem) {
  auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  auto rtnl = Rtnl::open();
  if (!rtnl) {
    return tl::unexpected(rtnl.error());
  }
  auto done = rtnl->add_address(device_name, htonl(own), 24);
  if (done) {
    done = rtnl->set_up(device_name);
  }
  if (done && peer_mac != nullptr) {
    done = rtnl->add_neighbour(device_name, htonl(peer), *peer_mac);
  }
  if (done && netem != nullptr) {
    done = rtnl->add_netem(device_name, netem->rtt_ns / 2, netem->loss);
  }
  return done;
}

/// A client that opens tens of thousands of connections to one address needs its ports back soon.
Result<void> tune_client(int ns) {
  auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  auto done = set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
  if (done) {
    done = set_sysctl("net/ipv4/tcp_tw_reuse", "1");
  }
  return done;
}

bool take_number(std::string_view& text, double& value) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{}) {
    return false;
  }
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) {
    return false;
  }
  text.remove_prefix(word.size());
  return true;
}

}  // namespace

std::string LinkSpec::name() const {
  if (loopback()) {
    return "loopback";
  }
  return fmt::format("{:g}ms{}", static_cast<double>(rtt_ns) / static_cast<double>(one_ms),
                     loss > 0 ? fmt::format("/{:g}%", loss * 100) : "");
}

Result<LinkSpec> parse_link(const std::string& text) {
  if (text == "loopback") {
    return LinkSpec{};
  }
  std::string_view rest{text};
  double rtt = 0;
  double loss = 0;
  bool good = take_number(rest, rtt);
  take(rest, "ms");
  if (good && take(rest, "/")) {
    good = take_number(rest, loss);
    take(rest, "%");
  }
  if (!good || !rest.empty() || !(rtt >= 0 && rtt <= 2000) || !(loss >= 0 && loss <= 50)) {
    return error(
        fmt::format("link '{}': want loopback, or RTT in ms (0 to 2000) and loss in "
                    "percent (0 to 50) as in 20ms or 100ms/1%",
                    text));
  }
  return LinkSpec{static_cast<std::int64_t>(rtt * static_cast<double>(one_ms)), loss / 100};
}

Result<Link> Link::make(const LinkSpec& spec, Wire wire, std::uint64_t seed) {
  Link link;
  link.rtt_ns_ = spec.rtt_ns;
  auto client = make_namespace();
  if (!client) {
    return tl::unexpected(client.error());
  }
  link.client_ = std::move(*client);
  if (auto tuned = tune_client(link.client_ns()); !tuned) {
    return tl::unexpected(tuned.error());
  }
  if (spec.loopback()) {
    link.address_.s_addr = htonl(INADDR_LOOPBACK);
    link.device_ = "lo";
    link.wire_ = "loopback";
    return link;
  }
  auto server = make_namespace();
  if (!server) {
    return tl::unexpected(server.error());
  }
  link.server_ = std::move(*server);
  link.address_.s_addr = htonl(server_side_address);
  link.device_ = device_name;

  Result<void> done{};
  if (wire != Wire::tun) {
    done = link.make_netem(spec);
    if (!done && wire == Wire::automatic) {
      // The kernel lacks netem: begin again with clean namespaces.
      auto again = make(spec, Wire::tun, seed);
      if (!again) {
        return error(fmt::format("{}; without it: {}", done.error().text, again.error().text));
      }
      return again;
    }
  } else {
    done = link.make_tun(spec, seed);
  }
  if (!done) {
    return tl::unexpected(done.error());
  }
  return link;
}

Result<void> Link::make_netem(const LinkSpec& spec) {
  wire_ = "veth+netem";
  netem_ = true;
  {
    auto inside = InNamespace::enter(client_ns());
    if (!inside) {
      return tl::unexpected(inside.error());
    }
    auto rtnl = Rtnl::open();
    if (!rtnl) {
      return tl::unexpected(rtnl.error());
    }
    auto done = rtnl->add_veth(device_name, client_mac, device_name, server_mac, server_ns());
    if (!done) {
      return done;
    }
  }
  auto done = set_up_end(client_ns(), client_address, server_side_address, &server_mac, &spec);
  if (!done) {
    return done;
  }
  return set_up_end(server_ns(), server_side_address, client_address, &client_mac, &spec);
}

Result<void> Link::make_tun(const LinkSpec& spec, std::uint64_t seed) {
  wire_ = "tun relay";
  auto relay =
      Relay::start(device_name, client_ns(), server_ns(), spec.rtt_ns / 2, spec.loss, seed);
  if (!relay) {
    return tl::unexpected(relay.error());
  }
  relay_ = std::move(*relay);
  auto done = set_up_end(client_ns(), client_address, server_side_address, nullptr, nullptr);
  if (!done) {
    return done;
  }
  return set_up_end(server_ns(), server_side_address, client_address, nullptr, nullptr);
}

}  // namespace lab
