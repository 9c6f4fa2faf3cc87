// SPDX-License-Identifier: Apache-2.0
#include "failure.hpp"

#include <cerrno>
#include <cstring>

namespace reuseport::ctl {

namespace {

Exit exit_of(int errnum) {
  switch (errnum) {
    case EPERM:
    case EACCES: return Exit::permission;
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPROTONOSUPPORT:
    case ENOSYS: return Exit::unsupported;
    default: return Exit::error;
  }
}

}  // namespace

Failure::Failure(const Error& error, const std::string& what)
    : exit(exit_of(error.errnum)),
      message((what.empty() ? "" : what + ": ") + error.call + ": " + error.code().message()),
      call(error.call),
      errnum(error.errnum),
      hint(error.hint) {}

std::string Failure::line() const {
  return hint.empty() ? message : message + ": " + hint;
}

nlohmann::json Failure::json() const {
  nlohmann::json error = {{"exit", static_cast<int>(exit)}, {"message", message}};
  if (!call.empty()) {
    error["call"] = call;
  }
  if (errnum != 0) {
    const char* name = ::strerrorname_np(errnum);
    error["errno"] = name != nullptr ? name : std::to_string(errnum).c_str();
  }
  if (!hint.empty()) {
    error["hint"] = hint;
  }
  if (!detail.is_null()) {
    error["detail"] = detail;
  }
  return {{"error", error}};
}

}  // namespace reuseport::ctl
