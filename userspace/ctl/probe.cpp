// SPDX-License-Identifier: Apache-2.0
#include "probe.hpp"

#include <fmt/format.h>

#include <fstream>

#include "host/process.hpp"
#include "host/sockdiag.hpp"
#include "option/option.hpp"
#include "reuseport/probe.hpp"

namespace reuseport::ctl {

using nlohmann::json;

namespace {

struct Answer {
  const char* name;
  bool works;
  std::string why;
};

Answer from(const char* name, const Status& status) {
  return {name, status.has_value(), status ? "" : status.error().message()};
}

Status try_sock_diag(Protocol protocol) {
  auto diag = SockDiag::open();
  if (!diag) {
    return tl::unexpected(diag.error());
  }
  // port 1: a short answer that still needs the handler
  const auto found = diag->listeners(protocol, 1);
  return found ? Status{} : Status{tl::unexpected(found.error())};
}

Status try_pidfd_getfd() {
  const auto self = Process::open(::getpid());
  if (!self) {
    return tl::unexpected(self.error());
  }
  // no process has this descriptor: a kernel that has the call answers EBADF
  const auto copy = self->duplicate(1 << 30, 0);
  return copy || copy.error().errnum == EBADF ? Status{} : Status{tl::unexpected(copy.error())};
}

}  // namespace

bool migrates_requests() {
  std::ifstream file("/proc/sys/net/ipv4/tcp_migrate_req");
  int value = 0;
  return (file >> value) && value != 0;
}

Expected<Exit> probe_command(bool behaviour, const Output& out) {
  const ProbeResult option = behaviour ? probe_behaviour() : probe();
  const bool migrate = migrates_requests();
  const std::array<Answer, 6> answers = {{
      {"option", option.supported(), option.supported() ? "" : option.why()},
      from("option_bpf", option.supported() ? Status{} : option::probe()),
      {"migrate", migrate, migrate ? "" : "net.ipv4.tcp_migrate_req is 0 or missing"},
      from("sock_diag_tcp", try_sock_diag(Protocol::tcp)),
      from("sock_diag_udp", try_sock_diag(Protocol::udp)),
      from("pidfd_getfd", try_pidfd_getfd()),
  }};
  const char* method = option.supported() ? "option"
                       : answers[1].works ? "option-bpf"
                       : migrate          ? "migrate"
                                          : "close";
  if (out.json) {
    json doc = {{"support", to_string(option.support)},
                {"step", to_string(option.step)},
                {"method", method}};
    for (const Answer& a : answers) {
      doc["works"][a.name] =
          a.works ? json{{"works", true}} : json{{"works", false}, {"why", a.why}};
    }
    out.document(doc);
  } else {
    std::string text = fmt::format("SO_REUSEPORT_LISTEN_OFF: {}\n", to_string(option.support));
    for (const Answer& a : answers) {
      fmt::format_to(std::back_inserter(text), "  {:<14}{}\n", a.name,
                     a.works ? "yes" : "no: " + a.why);
    }
    fmt::format_to(std::back_inserter(text), "drain uses: {}\n", method);
    out.text(text);
  }
  switch (option.support) {
    case Support::supported:
    case Support::supported_by_bpf: return Exit::done;
    case Support::blocked: return Exit::permission;
    case Support::error: return Exit::error;
    default: return Exit::unsupported;
  }
}

}  // namespace reuseport::ctl
