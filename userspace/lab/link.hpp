// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <memory>
#include <string>

#include "fd.hpp"
#include "relay.hpp"
#include "result.hpp"

namespace lab {

/// Link between clients and server. Both figures are what the wire adds.
struct LinkSpec {
  std::int64_t rtt_ns = 0;  ///< round trip; 0 with loss 0 is plain loopback in one namespace
  double loss = 0;          ///< 0 to 1, each way

  [[nodiscard]] bool loopback() const { return rtt_ns == 0 && loss == 0; }
  [[nodiscard]] std::string name() const;
};

/// `loopback`, or `RTT` in ms with an optional `/LOSS` in percent: `20`, `20ms`, `100ms/1%`.
Result<LinkSpec> parse_link(const std::string& text);

/// Two namespaces and the wire between them; everything goes with the object.
///
///     [ clients  10.77.0.1 ]--- delay, loss each way ---[ 10.77.0.2  servers ]
class Link {
 public:
  enum class Wire { automatic, netem, tun };

  static Result<Link> make(const LinkSpec& spec, Wire wire, std::uint64_t seed);

  [[nodiscard]] int client_ns() const { return client_.get(); }
  /// The same namespace on loopback.
  [[nodiscard]] int server_ns() const { return server_ ? server_.get() : client_.get(); }
  [[nodiscard]] in_addr server_address() const { return address_; }
  /// The device through which the clients' packets leave, in the clients' namespace.
  [[nodiscard]] const std::string& client_device() const { return device_; }
  /// The delay on that device is a netem qdisc, below which others may hang.
  [[nodiscard]] bool has_netem() const { return netem_; }
  [[nodiscard]] std::int64_t rtt_ns() const { return rtt_ns_; }
  /// `loopback`, `veth+netem` or `tun relay`.
  [[nodiscard]] const std::string& wire() const { return wire_; }

 private:
  Link() = default;
  Result<void> make_netem(const LinkSpec& spec);
  Result<void> make_tun(const LinkSpec& spec, std::uint64_t seed);

  Fd client_;
  Fd server_;
  std::unique_ptr<Relay> relay_;
  in_addr address_{};
  std::string device_;
  std::string wire_;
  bool netem_ = false;
  std::int64_t rtt_ns_ = 0;
};

}  // namespace lab
