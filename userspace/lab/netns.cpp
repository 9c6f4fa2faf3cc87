// SPDX-License-Identifier: Apache-2.0
#include "netns.hpp"

#include <fcntl.h>
#include <sched.h>

#include <cerrno>

#include "rtnl.hpp"

namespace lab {
namespace {

constexpr const char* own_path = "/proc/thread-self/ns/net";

Result<Fd> own_namespace() {
  Fd fd{open(own_path, O_RDONLY | O_CLOEXEC)};
  if (!fd) {
    return sys_error(fmt::format("open {}", own_path), errno);
  }
  return fd;
}

}  // namespace

Result<InNamespace> InNamespace::enter(int ns) {
  auto back = own_namespace();
  if (!back) {
    return tl::unexpected(back.error());
  }
  if (setns(ns, CLONE_NEWNET) < 0) {
    return sys_error("setns", errno, "run as root");
  }
  return InNamespace{std::move(*back)};
}

InNamespace::~InNamespace() {
  if (back_) {
    static_cast<void>(setns(back_.get(), CLONE_NEWNET));
  }
}

Result<Fd> make_namespace() {
  auto back = own_namespace();
  if (!back) {
    return tl::unexpected(back.error());
  }
  if (unshare(CLONE_NEWNET) < 0) {
    return sys_error("unshare(CLONE_NEWNET)", errno,
                     errno == EPERM ? "run as root" : "the kernel needs CONFIG_NET_NS");
  }
  auto fresh = own_namespace();
  Result<void> up{};
  if (fresh) {
    auto rtnl = Rtnl::open();
    up = rtnl ? rtnl->set_up("lo") : tl::unexpected(rtnl.error());
  }
  if (setns(back->get(), CLONE_NEWNET) < 0) {
    return sys_error("setns", errno);
  }
  if (!fresh) {
    return fresh;
  }
  if (!up) {
    return tl::unexpected(up.error());
  }
  return fresh;
}

Result<void> set_sysctl(const std::string& name, const std::string& value) {
  const auto path = "/proc/sys/" + name;
  const Fd fd{open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!fd) {
    return sys_error(fmt::format("open {}", path), errno);
  }
  if (write(fd.get(), value.data(), value.size()) < 0) {
    return sys_error(fmt::format("write '{}' to {}", value, path), errno);
  }
  return {};
}

Result<std::string> get_sysctl(const std::string& name) {
  const auto path = "/proc/sys/" + name;
  const Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) {
    return sys_error(fmt::format("open {}", path), errno);
  }
  char buffer[256];
  const auto size = read(fd.get(), buffer, sizeof buffer);
  if (size < 0) {
    return sys_error(fmt::format("read {}", path), errno);
  }
  std::string text(buffer, static_cast<size_t>(size));
  while (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return text;
}

}  // namespace lab
