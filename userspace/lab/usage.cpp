// SPDX-License-Identifier: Apache-2.0
#include "usage.hpp"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace lab {

Usage own_usage() {
  Usage usage;
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) {
      std::istringstream{line.substr(6)} >> usage.rss_kb;
    }
  }
  status.close();
  std::error_code ignored;
  usage.descriptors =
      std::distance(std::filesystem::directory_iterator{"/proc/self/fd", ignored}, {});
  return usage;
}

}  // namespace lab
