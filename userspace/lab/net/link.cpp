// SPDX-License-Identifier: Apache-2.0
#include "net/link.hpp"

#include <charconv>
#include <string_view>

#include "net/netns.hpp"
#include "process.hpp"

namespace lab {
namespace {

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
  return fmt::format("{:g}ms{}", to_ms(rtt_ns), loss > 0 ? fmt::format("/{:g}%", loss * 100) : "");
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

Result<Link> Link::make(const LinkSpec& spec, LinkDevice device, std::uint64_t seed) {
  Link link;
  link.spec_ = spec;
  for (auto* end : {&link.client_, &link.server_}) {
    if (end == &link.server_ && spec.loopback()) {
      break;
    }
    auto made = make_namespace();
    if (!made) {
      return tl::unexpected(made.error());
    }
    *end = std::move(*made);
  }
  // A client that opens tens of thousands of connections to one address must reuse its ports soon.
  auto done = set_sysctl(link.client_ns(), "net/ipv4/ip_local_port_range", "1024 65535");
  if (done) {
    done = set_sysctl(link.client_ns(), "net/ipv4/tcp_tw_reuse", "1");
  }
  if (done && !spec.loopback()) {
    done = device == LinkDevice::tun ? link.make_tun(seed) : link.make_veth();
  }
  if (!done && device == LinkDevice::automatic && !spec.loopback()) {
    // No veth or no netem: again with clean namespaces.
    auto again = make(spec, LinkDevice::tun, seed);
    return again ? std::move(again)
                 : error(fmt::format("{}; without it: {}", done.error().text, again.error().text));
  }
  if (!done) {
    return tl::unexpected(done.error());
  }
  return link;
}

/// Permanent neighbours, so that no address resolution disturbs a measurement.
Result<void> Link::make_veth() const {
  auto done = run_tool({"ip", "-batch", "-"},
                       "link add lab0 address 02:00:00:00:00:01 type veth"
                       " peer name lab0 address 02:00:00:00:00:02 netns /proc/self/fd/3\n"
                       "address add 10.77.0.1/24 dev lab0\n"
                       "link set lab0 up\n"
                       "neighbour add 10.77.0.2 lladdr 02:00:00:00:00:02 dev lab0\n",
                       client_ns(), {server_ns()}, "the kernel needs CONFIG_VETH");
  if (done) {
    done = run_tool({"ip", "-batch", "-"},
                    "address add 10.77.0.2/24 dev lab0\n"
                    "link set lab0 up\n"
                    "neighbour add 10.77.0.1 lladdr 02:00:00:00:00:01 dev lab0\n",
                    server_ns());
  }
  // The limit, in packets, is too high to cause losses.
  const auto netem =
      fmt::format("qdisc add dev lab0 root handle 1: netem limit 200000 delay {}us loss {:f}%\n",
                  spec_.rtt_ns / 2000, spec_.loss * 100);
  for (const int ns : {client_ns(), server_ns()}) {
    if (done) {
      done = run_tool({"tc", "-batch", "-"}, netem, ns, {}, "netem: CONFIG_NET_SCH_NETEM");
    }
  }
  return done;
}

Result<void> Link::make_tun(std::uint64_t seed) {
  auto relay =
      Relay::start(device_name, client_ns(), server_ns(), spec_.rtt_ns / 2, spec_.loss, seed);
  if (!relay) {
    return tl::unexpected(relay.error());
  }
  relay_ = std::move(*relay);
  auto done = run_tool({"ip", "-batch", "-"},
                       "address add 10.77.0.1/24 dev lab0\nlink set lab0 up\n", client_ns());
  if (done) {
    done = run_tool({"ip", "-batch", "-"}, "address add 10.77.0.2/24 dev lab0\nlink set lab0 up\n",
                    server_ns());
  }
  return done;
}

}  // namespace lab
