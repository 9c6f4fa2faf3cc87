// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_NET_LINK_HPP
#define LAB_NET_LINK_HPP

#include <cstdint>
#include <memory>
#include <string>

#include "base.hpp"
#include "net/relay.hpp"

namespace lab {

/// Link between clients and server.
struct LinkSpec {
  std::int64_t rtt_ns = 0;  ///< round trip; 0 with loss 0 is plain loopback in one namespace
  double loss = 0;          ///< 0 to 1, in each direction

  [[nodiscard]] bool loopback() const { return rtt_ns == 0 && loss == 0; }
  [[nodiscard]] std::string name() const;
};

/// `loopback`, or `RTT` in ms with an optional `/LOSS` in percent: `20`, `20ms`, `100ms/1%`.
Result<LinkSpec> parse_link(const std::string& text);

/// The two ends of a link: a veth pair with netem(8) or, if the kernel lacks that, two TUN devices
/// with a Relay between them.
enum class LinkDevice : std::uint8_t { automatic, veth, tun };

/// Two namespaces and the link between them; the destructor removes everything.
///
///     [ clients  10.77.0.1 ]--- delay, loss each way ---[ 10.77.0.2  servers ]
class Link {
 public:
  static Result<Link> make(const LinkSpec& spec, LinkDevice device, std::uint64_t seed);

  [[nodiscard]] int client_ns() const { return client_.get(); }
  /// The same namespace on loopback.
  [[nodiscard]] int server_ns() const { return server_ ? server_.get() : client_.get(); }
  /// In dotted notation.
  [[nodiscard]] const char* server_address() const {
    return spec_.loopback() ? "127.0.0.1" : "10.77.0.2";
  }
  /// The device through which the clients' packets leave, in the clients' namespace.
  [[nodiscard]] const char* client_device() const { return spec_.loopback() ? "lo" : device_name; }
  /// The delay on that device is a netem qdisc with handle 1:; others may be attached below it.
  [[nodiscard]] bool has_netem() const { return !spec_.loopback() && !relay_; }
  [[nodiscard]] std::int64_t rtt_ns() const { return spec_.rtt_ns; }
  /// `lo`, `veth` or `tun`.
  [[nodiscard]] const char* device() const {
    return spec_.loopback() ? "lo" : relay_ ? "tun" : "veth";
  }

 private:
  static constexpr const char* device_name = "lab0";

  Link() = default;
  [[nodiscard]] Result<void> make_veth() const;
  Result<void> make_tun(std::uint64_t seed);

  LinkSpec spec_;
  Fd client_;
  Fd server_;
  std::unique_ptr<Relay> relay_;
};

}  // namespace lab

#endif  // LAB_NET_LINK_HPP
