// SPDX-License-Identifier: Apache-2.0
#include "server/option_bpf.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <option/option.hpp>

namespace lab {
namespace {

/// Once: a mount namespace for this process and its children, with a private BPF file system.
Result<void> mount_own_bpffs() {
  static bool done = false;
  if (done) {
    return {};
  }
  if (unshare(CLONE_NEWNS) < 0) {
    return sys_error("unshare(CLONE_NEWNS)", errno, "run as root");
  }
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0 ||
      mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700") < 0) {
    return sys_error("mount /sys/fs/bpf", errno, "the kernel needs CONFIG_BPF_SYSCALL");
  }
  done = true;
  return {};
}

}  // namespace

Result<std::unique_ptr<OptionByBpf>> OptionByBpf::enable(
    int server_ns, const std::optional<reuseport::option::FlowOptions>& flows) {
  if (auto mounted = mount_own_bpffs(); !mounted) {
    return tl::unexpected(mounted.error());
  }
  const auto root = reuseport::option::cgroup2_mount();
  if (!root) {
    return error(root.error().message());
  }
  const auto path = fmt::format("{}/restart-lab-{}", *root, getpid());
  if (mkdir(path.c_str(), 0755) < 0 && errno != EEXIST) {
    return sys_error(fmt::format("mkdir {}", path), errno);
  }
  std::unique_ptr<OptionByBpf> made{new OptionByBpf{path}};
  const Fd cgroup{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  made->procs_ = Fd{open((path + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC)};
  if (!cgroup || !made->procs_) {
    return sys_error(fmt::format("open {}", path), errno);
  }
  using reuseport::option::GroupSize;
  if (auto enabled =
          reuseport::option::enable(cgroup.get(), server_ns, GroupSize::normal, {}, flows);
      !enabled) {
    return error(enabled.error().message());
  }
  return made;
}

OptionByBpf::~OptionByBpf() {
  static_cast<void>(reuseport::option::disable(true));
  procs_.reset();
  rmdir(cgroup_.c_str());
}

}  // namespace lab
