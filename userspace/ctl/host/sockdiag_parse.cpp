// SPDX-License-Identifier: Apache-2.0
#include "sockdiag_parse.hpp"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/reuseport.h>
#include <linux/sock_diag.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

namespace reuseport::detail {

namespace {

void copy_address(Endpoint& e, std::uint8_t family, const __be32 (&addr)[4], __be16 port) {
  e.family = family;
  e.port = ntohs(port);
  std::memcpy(e.addr.data(), addr, family == AF_INET ? 4 : 16);
}

void read_info(const nlattr* attr, DiagSocket& socket) {
  Info info{};
  reuseport_listen_info& raw = info;
  // a later kernel may send more, an earlier one less: use what both have
  std::memcpy(&raw, mnl_attr_get_payload(attr),
              std::min<std::size_t>(sizeof(raw), mnl_attr_get_payload_len(attr)));
  socket.info = info;
}

int on_socket(const nlmsghdr* nlh, void* data) {
  auto* state = static_cast<ReplyState*>(data);
  if (nlh->nlmsg_type != SOCK_DIAG_BY_FAMILY ||
      mnl_nlmsg_get_payload_len(nlh) < sizeof(inet_diag_msg)) {
    errno = EBADMSG;
    return MNL_CB_ERROR;
  }
  inet_diag_msg msg{};
  std::memcpy(&msg, mnl_nlmsg_get_payload(nlh), sizeof(msg));
  if (msg.idiag_family != AF_INET && msg.idiag_family != AF_INET6) {
    errno = EBADMSG;
    return MNL_CB_ERROR;
  }

  DiagSocket socket;
  socket.protocol = state->protocol;
  socket.state = msg.idiag_state;
  copy_address(socket.local, msg.idiag_family, msg.id.idiag_src, msg.id.idiag_sport);
  copy_address(socket.remote, msg.idiag_family, msg.id.idiag_dst, msg.id.idiag_dport);
  socket.local.ifindex = msg.id.idiag_if;
  socket.cookie = (std::uint64_t{msg.id.idiag_cookie[1]} << 32) | msg.id.idiag_cookie[0];
  socket.inode = msg.idiag_inode;
  socket.uid = msg.idiag_uid;
  socket.queued = msg.idiag_rqueue;
  socket.queue_max = msg.idiag_wqueue;

  // mnl_attr_for_each() is C: it converts void * to const struct nlattr * implicitly
  const auto* end = static_cast<const char*>(mnl_nlmsg_get_payload_tail(nlh));
  for (const auto* attr =
           static_cast<const nlattr*>(mnl_nlmsg_get_payload_offset(nlh, sizeof(inet_diag_msg)));
       mnl_attr_ok(attr, static_cast<int>(end - reinterpret_cast<const char*>(attr)));
       attr = mnl_attr_next(attr)) {
    const auto type = mnl_attr_get_type(attr);
    if (type == INET_DIAG_SKV6ONLY && mnl_attr_get_payload_len(attr) >= 1) {
      socket.v6only = mnl_attr_get_u8(attr) != 0;
    } else if (type == INET_DIAG_REUSEPORT &&
               mnl_attr_get_payload_len(attr) >= sizeof(std::uint32_t)) {
      read_info(attr, socket);
    }
  }
  state->out->push_back(socket);
  // a message outside a dump is the whole answer
  return (nlh->nlmsg_flags & NLM_F_MULTI) != 0 ? MNL_CB_OK : MNL_CB_STOP;
}

// libmnl's own handler drops the errno with which the kernel ends a failed dump.
int on_done(const nlmsghdr* nlh, void* /*data*/) {
  if (mnl_nlmsg_get_payload_len(nlh) >= sizeof(int)) {
    int err = 0;
    std::memcpy(&err, mnl_nlmsg_get_payload(nlh), sizeof(err));
    if (err < 0 && err > std::numeric_limits<int>::min()) {
      errno = -err;
      return MNL_CB_ERROR;
    }
  }
  return MNL_CB_STOP;
}

int on_error(const nlmsghdr* nlh, void* /*data*/) {
  nlmsgerr err{};
  if (mnl_nlmsg_get_payload_len(nlh) < sizeof(err)) {
    errno = EBADMSG;
    return MNL_CB_ERROR;
  }
  std::memcpy(&err, mnl_nlmsg_get_payload(nlh), sizeof(err));
  if (err.error == 0) {
    return MNL_CB_STOP;
  }
  errno = err.error < 0 && err.error > std::numeric_limits<int>::min() ? -err.error : EBADMSG;
  return MNL_CB_ERROR;
}

int on_noop(const nlmsghdr* /*nlh*/, void* /*data*/) {
  return MNL_CB_OK;
}

int on_overrun(const nlmsghdr* /*nlh*/, void* /*data*/) {
  errno = ENOBUFS;
  return MNL_CB_ERROR;
}

/// libmnl takes a length of 2 GiB or more for a negative number and walks out of the buffer.
bool lengths_fit(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(nlmsghdr)) {
    return false;
  }
  while (bytes.size() >= sizeof(nlmsghdr)) {
    std::uint32_t len = 0;  // nlmsg_len is the first field
    std::memcpy(&len, bytes.data(), sizeof(len));
    if (len < sizeof(nlmsghdr) || len > bytes.size()) {
      return false;
    }
    bytes = bytes.subspan(std::min<std::size_t>(NLMSG_ALIGN(std::size_t{len}), bytes.size()));
  }
  return true;
}

}  // namespace

Reply parse_reply(std::span<const std::byte> bytes, std::uint32_t seq, std::uint32_t portid,
                  ReplyState& state) {
  std::array<mnl_cb_t, NLMSG_OVERRUN + 1> control = {nullptr, on_noop, on_error, on_done,
                                                     on_overrun};
  if (!lengths_fit(bytes)) {
    state.errnum = EBADMSG;
    return Reply::failed;
  }
  errno = 0;
  const int rc = mnl_cb_run2(bytes.data(), bytes.size(), seq, portid, on_socket, &state,
                             control.data(), control.size());
  if (rc > MNL_CB_STOP) {
    return Reply::more;
  }
  if (rc == MNL_CB_STOP) {
    return Reply::done;
  }
  if (errno == EINTR) {
    return Reply::interrupted;
  }
  state.errnum = errno != 0 ? errno : EBADMSG;
  return Reply::failed;
}

}  // namespace reuseport::detail
