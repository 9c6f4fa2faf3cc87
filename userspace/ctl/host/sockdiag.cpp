// SPDX-License-Identifier: Apache-2.0
#include "host/sockdiag.hpp"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <tuple>
#include <unordered_map>

#include "host/netlink.hpp"
#include "sockdiag_parse.hpp"

namespace reuseport {

namespace {

constexpr int max_interrupted = 10;         // each retry starts over; give up in a storm of changes
constexpr std::size_t dump_buffer = 32768;  // the kernel fills at most this much at a time
constexpr ssize_t nearly_full = 7000;       // the first datagram may have 8 KB
constexpr std::uint32_t states_listen = 1U << TCP_LISTEN;
constexpr std::uint32_t states_unconnected = 1U << TCP_CLOSE;
constexpr std::uint32_t states_half_open = 1U << TCP_SYN_RECV;
constexpr std::uint32_t states_connected = (1U << TCP_ESTABLISHED) | (1U << TCP_CLOSE_WAIT);
constexpr std::size_t chunk = 16;  // SKARR_SZ: connections of a bucket taken under one lock

std::string missing_hint(Protocol protocol) {
  return protocol == Protocol::udp ? "load the module udp_diag (CONFIG_INET_UDP_DIAG)"
                                   : "load the module tcp_diag (CONFIG_INET_TCP_DIAG)";
}

std::uint32_t listening_states(Protocol protocol) {
  return protocol == Protocol::udp ? states_unconnected : states_listen;
}

Status send_request(mnl_socket* socket, std::uint32_t seq, std::uint16_t flags,
                    const inet_diag_req_v2& req) {
  std::array<char, MNL_NLMSG_HDRLEN + MNL_ALIGN(sizeof(inet_diag_req_v2))> buf{};
  nlmsghdr* nlh = mnl_nlmsg_put_header(buf.data());

  nlh->nlmsg_type = SOCK_DIAG_BY_FAMILY;
  nlh->nlmsg_flags = NLM_F_REQUEST | flags;
  nlh->nlmsg_seq = seq;
  std::memcpy(mnl_nlmsg_put_extra_header(nlh, sizeof(req)), &req, sizeof(req));
  if (mnl_socket_sendto(socket, nlh, nlh->nlmsg_len) < 0) {
    return fail("sendto(NETLINK_SOCK_DIAG)", errno);
  }
  return {};
}

/// @param split  set if the sockets do not fit in one datagram: between two, a socket that leaves
///               the list makes the kernel skip another, of any port in the same bucket
detail::Reply receive_all(mnl_socket* socket, std::uint32_t seq, detail::ReplyState& state,
                          std::size_t buffer, bool* split) {
  std::vector<std::byte> buf(buffer);
  detail::Reply reply = detail::Reply::more;

  while (reply == detail::Reply::more) {
    const ssize_t n = receive(socket, buf);
    if (n < 0) {
      state.errnum = errno;
      return detail::Reply::failed;
    }
    const std::size_t before = state.out->size();
    reply = detail::parse_reply({buf.data(), static_cast<std::size_t>(n)}, seq,
                                mnl_socket_get_portid(socket), state);
    if (split != nullptr && (n > nearly_full || (before > 0 && state.out->size() > before))) {
      *split = true;  // nearly full: the one that was skipped may have been the last
    }
  }
  return reply;
}

inet_diag_req_v2 make_request(Protocol protocol, sa_family_t family, std::uint32_t states) {
  inet_diag_req_v2 req{};
  req.sdiag_family = static_cast<std::uint8_t>(family);
  req.sdiag_protocol = static_cast<std::uint8_t>(protocol);
  req.idiag_states = states;
  req.id.idiag_cookie[0] = INET_DIAG_NOCOOKIE;
  req.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  return req;
}

}  // namespace

std::string_view to_string(Protocol protocol) noexcept {
  return protocol == Protocol::udp ? "udp" : "tcp";
}

bool DiagSocket::same_address(const DiagSocket& other) const noexcept {
  return protocol == other.protocol && local == other.local;
}

void SockDiag::Close::operator()(mnl_socket* s) const noexcept {
  mnl_socket_close(s);
}

Result<SockDiag> SockDiag::open() {
  SockDiag diag{Socket{}};
  if (auto ok = diag.reopen(); !ok) {
    return tl::unexpected(ok.error());
  }
  return diag;
}

Status SockDiag::reopen() {
  socket_.reset(mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC));
  if (!socket_) {
    const int err = errno;
    return fail("socket(NETLINK_SOCK_DIAG)", err,
                err == EPROTONOSUPPORT ? "this kernel lacks sock_diag (CONFIG_INET_DIAG)" : "");
  }
  if (mnl_socket_bind(socket_.get(), 0, MNL_SOCKET_AUTOPID) < 0) {
    return fail("bind(NETLINK_SOCK_DIAG)", errno);
  }
  return {};
}

Status SockDiag::dump(Protocol protocol, sa_family_t family, std::uint32_t states,
                      std::uint16_t port, std::vector<DiagSocket>& out, std::size_t buffer,
                      bool* split) {
  inet_diag_req_v2 req = make_request(protocol, family, states);
  req.id.idiag_sport = htons(port);

  for (int attempt = 0; attempt < max_interrupted; attempt++) {
    std::vector<DiagSocket> found;
    detail::ReplyState state{protocol, &found, 0};
    if (auto sent = send_request(socket_.get(), ++seq_, NLM_F_DUMP, req); !sent) {
      return sent;
    }
    switch (receive_all(socket_.get(), seq_, state, buffer, split)) {
      case detail::Reply::done:
        if (out.empty()) {
          out = std::move(found);
        } else {
          out.insert(out.end(), found.begin(), found.end());
        }
        return {};
      case detail::Reply::interrupted: {
        // the rest of the broken dump may still arrive: a new socket does not see it
        if (auto ok = reopen(); !ok) {
          return ok;
        }
        break;
      }
      default:
        return fail("sock_diag dump", state.errnum,
                    state.errnum == ENOENT ? missing_hint(protocol) : "");
    }
  }
  return fail("sock_diag dump", EAGAIN, "the socket tables change too fast; try again");
}

Status SockDiag::dump_whole(Protocol protocol, sa_family_t family, std::uint32_t states,
                            std::uint16_t port, std::vector<DiagSocket>& out) {
  // Each buffer size splits the answer elsewhere, so that the others have what one dump skips.
  constexpr std::array<std::size_t, 8> buffers = {dump_buffer, 11000, 26000, 14000,
                                                  31000,       19000, 9000,  23000};
  std::unordered_map<std::uint64_t, DiagSocket> seen;  // by cookie, as last seen
  for (std::size_t turn = 0; turn < buffers.size(); turn++) {
    // the kernel remembers the largest buffer of a socket
    if (auto ok = reopen(); !ok) {
      return ok;
    }
    std::vector<DiagSocket> found;
    bool split = false;
    if (auto ok = dump(protocol, family, states, port, found, buffers[turn], &split); !ok) {
      return ok;
    }
    split = split || (states == states_connected && found.size() >= chunk);
    if (turn == 0 && !split) {
      out.insert(out.end(), found.begin(), found.end());
      return {};
    }
    std::size_t known = 0;
    for (const DiagSocket& s : found) {
      known += seen.contains(s.cookie) ? 1 : 0;
    }
    const bool same = turn > 0 && known == seen.size() && found.size() == seen.size();
    for (DiagSocket& s : found) {
      seen[s.cookie] = s;
    }
    if (same) {
      break;  // nothing came or went
    }
  }
  for (auto& [cookie, s] : seen) {
    out.push_back(s);
  }
  return reopen();
}

Result<std::vector<DiagSocket>> SockDiag::listeners(Protocol protocol, std::uint16_t port) {
  std::vector<DiagSocket> out;
  for (const sa_family_t family : {sa_family_t{AF_INET}, sa_family_t{AF_INET6}}) {
    if (auto ok = dump_whole(protocol, family, listening_states(protocol), port, out); !ok) {
      if (family == AF_INET6 && ok.error().errnum == ENOENT) {
        continue;  // a kernel without IPv6 has no IPv6 sockets
      }
      return tl::unexpected(ok.error());
    }
  }
  const auto key = [](const DiagSocket& s) { return std::tie(s.local, s.inode, s.cookie); };
  std::sort(out.begin(), out.end(),
            [&](const DiagSocket& a, const DiagSocket& b) { return key(a) < key(b); });
  // a table that grows during the dump can show a socket twice
  out.erase(
      std::unique(out.begin(), out.end(),
                  [](const DiagSocket& a, const DiagSocket& b) { return a.cookie == b.cookie; }),
      out.end());
  // only bound UDP sockets are in the tables, so port 0 is none of them
  std::erase_if(out, [](const DiagSocket& s) { return s.local.port == 0; });
  return out;
}

Result<std::vector<DiagSocket>> SockDiag::connections() {
  std::vector<DiagSocket> out;
  for (const sa_family_t family : {sa_family_t{AF_INET}, sa_family_t{AF_INET6}}) {
    if (auto ok = dump_whole(Protocol::tcp, family, states_connected, 0, out); !ok) {
      if (family == AF_INET6 && ok.error().errnum == ENOENT) {
        continue;
      }
      return tl::unexpected(ok.error());
    }
  }
  return out;
}

Result<std::vector<DiagSocket>> SockDiag::half_open(const Endpoint& listener) {
  std::vector<DiagSocket> out;
  if (auto ok = dump(Protocol::tcp, listener.family, states_half_open, listener.port, out,
                     dump_buffer, nullptr);
      !ok) {
    return tl::unexpected(ok.error());
  }
  if (!listener.is_any()) {
    std::erase_if(out, [&](const DiagSocket& s) { return s.local.addr != listener.addr; });
  }
  return out;
}

Result<std::optional<DiagSocket>> SockDiag::query(const DiagSocket& known) {
  inet_diag_req_v2 req =
      make_request(known.protocol, known.local.family, listening_states(known.protocol));
  std::vector<DiagSocket> found;

  req.id.idiag_sport = htons(known.local.port);
  req.id.idiag_if = known.local.ifindex;
  req.id.idiag_cookie[0] = static_cast<std::uint32_t>(known.cookie);
  req.id.idiag_cookie[1] = static_cast<std::uint32_t>(known.cookie >> 32);
  std::memcpy(req.id.idiag_src, known.local.addr.data(), known.local.family == AF_INET ? 4 : 16);

  detail::ReplyState state{known.protocol, &found, 0};
  if (auto sent = send_request(socket_.get(), ++seq_, 0, req); !sent) {
    return tl::unexpected(sent.error());
  }
  const auto reply = receive_all(socket_.get(), seq_, state, dump_buffer, nullptr);
  if (reply == detail::Reply::done && !found.empty() && found.front().cookie == known.cookie) {
    return found.front();
  }
  // The kernel looks up the address and then compares the cookie: it may find another member of the
  // group (ESTALE), and it never finds an OFF member (ENOENT).
  if (reply == detail::Reply::failed && state.errnum != ESTALE && state.errnum != ENOENT) {
    return fail("sock_diag query", state.errnum);
  }
  found.clear();
  if (auto ok = dump_whole(known.protocol, known.local.family, listening_states(known.protocol),
                           known.local.port, found);
      !ok) {
    return tl::unexpected(ok.error());
  }
  for (const DiagSocket& s : found) {
    if (s.cookie == known.cookie) {
      return s;
    }
  }
  return std::optional<DiagSocket>{};
}

}  // namespace reuseport
