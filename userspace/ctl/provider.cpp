// SPDX-License-Identifier: Apache-2.0
#include "provider.hpp"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <string>

#include "datagrams.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

namespace {

/// Whether setsockopt() works here; if not, @p why.
bool works_by_itself(std::string& why, bool& by_bpf) {
  const char* text = "";
  const int support = reuseport_probe(&text);
  why = text;
  by_bpf = support == REUSEPORT_SUPPORTED_BY_BPF;
  return support == REUSEPORT_SUPPORTED || by_bpf;
}

/// How many of @p fds `enable` has taken in scope: the socket's cgroup counts, not the caller's.
std::ptrdiff_t in_scope(const std::vector<int>& fds) {
  return std::ranges::count_if(fds, [](int fd) {
    reuseport_listen_info info{};
    const int got = reuseport_get_info(fd, &info);
    // EAGAIN: a UDP socket that adopt() is to make known
    return got == -EAGAIN || (got == 0 && (info.flags & REUSEPORT_LISTEN_F_BPF) != 0);
  });
}

bool is_datagram(int fd) {
  int type = 0;
  socklen_t len = sizeof(type);
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_DGRAM;
}

Failure neither(const std::string& why, const Error& error) {
  const option::Need need = option::need(error);
  Failure failure(need == option::Need::privilege ? Exit::permission : Exit::unsupported, why,
                  "BPF cannot provide it either: " + error.message());
  if (need == option::Need::nothing) {
    failure.exit = Exit::error;
  }
  failure.errnum = error.errnum;
  return failure;
}

}  // namespace

Expected<Provider> Provider::find(const std::vector<int>& fds, option::GroupSize size) {
  Provider provider;
  std::string why;
  if (works_by_itself(why, provider.scope_)) {
    provider.scope_ = provider.scope_ || option::records_flows();
    return provider;
  }
  if (const auto known = in_scope(fds); known > 0) {
    // A second program beside that of `enable` would not be asked, and see nothing.
    if (known != std::ssize(fds)) {
      return failed(Failure(
          Exit::unsupported,
          fmt::format("`enable` provides the option for {} of {} listeners", known, fds.size()),
          "run `reuseportctl enable` again, for the cgroup of the server"));
    }
    provider.scope_ = true;
    return provider;
  }
  auto session = option::Session::start(-1, size, datagrams_by_cookie);
  if (!session) {
    return failed(neither(why, session.error()));
  }
  provider.session_ = std::make_unique<option::Session>(std::move(*session));
  return provider;
}

Status Provider::adopt(const std::vector<int>& fds) {
  datagrams_ = std::ranges::any_of(fds, is_datagram);
  if (session_) {
    return session_->adopt(fds);
  }
  return scope_ && datagrams_ ? option::adopt_newcomers(datagrams_by_cookie) : Status{};
}

int Provider::set_mode(int fd, int mode) {
  if (!session_) {
    return reuseport_set_mode(fd, mode);
  }
  const auto set = session_->set_mode(fd, mode);
  return set ? 0 : -set.error().errnum;
}

int Provider::get_info(int fd, reuseport_listen_info* info) {
  if (!session_) {
    return reuseport_get_info(fd, info);
  }
  const auto got = session_->get_info(fd);
  if (!got) {
    return -got.error().errnum;
  }
  *info = *got;
  return 0;
}

void Provider::refresh() {
  if (session_) {
    // sockets that could not be adopted are retried; until then SETTLED is not set
    static_cast<void>(session_->refresh());
  } else if (scope_ && datagrams_) {
    static_cast<void>(option::adopt_newcomers(datagrams_by_cookie));
  }
}

Expected<bool> try_provider() {
  std::string why;
  if (bool by_bpf = false; works_by_itself(why, by_bpf)) {
    return false;
  }
  const auto probed = option::probe();
  return probed ? Expected<bool>(true) : failed(neither(why, probed.error()));
}

}  // namespace reuseport::ctl
