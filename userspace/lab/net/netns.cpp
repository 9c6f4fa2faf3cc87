// SPDX-License-Identifier: Apache-2.0
#include "net/netns.hpp"

#include <fcntl.h>
#include <sched.h>

#include <cerrno>

#include "process.hpp"

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
  if (setns(back->get(), CLONE_NEWNET) < 0) {
    return sys_error("setns", errno);
  }
  if (fresh) {
    if (auto up = run_tool({"ip", "link", "set", "lo", "up"}, "", fresh->get()); !up) {
      return tl::unexpected(up.error());
    }
  }
  return fresh;
}

Result<void> set_sysctl(int ns, const std::string& name, const std::string& value) {
  const auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
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

}  // namespace lab
