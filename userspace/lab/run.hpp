// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_RUN_HPP
#define LAB_RUN_HPP

#include <cstdint>
#include <string>
#include <vector>

#include "experiment.hpp"
#include "process.hpp"

namespace lab {

/// Exit codes of restart-lab.
enum ExitCode : int {
  exit_passed = 0,        ///< all checks passed
  exit_failed = 1,        ///< a check failed
  exit_usage = 2,         ///< usage error
  exit_unexpected = 3,    ///< the kernel is not the one --expect named
  exit_permission = 4,    ///< not root
  exit_not_measured = 5,  ///< a method could not be set up, the machine disturbed every attempt, or
                          ///< a result could not be written
  exit_interrupted = 130,
};

/// The library's probe of the running kernel.
struct KernelAnswer {
  bool supported = false;  ///< by the kernel itself
  bool in_doubt = false;   ///< neither supported nor missing: number taken, blocked, error
  std::string word;        ///< `supported`, `not in this kernel`, ...
  std::string why;
};

enum class Expect : std::uint8_t { anything, supported, not_in_kernel };

/// A series of experiments; `demo`, `udp` and `soak` are presets of it.
struct RunOptions {
  ExperimentSpec spec;  ///< restarts, connections and duration are totals of each method
  std::vector<RestartMethod> methods;  ///< none: close, and the drain by the option, of the kernel
                                       ///< or else by BPF; UDP: with flows, too
  std::vector<LinkSpec> links;
  unsigned rounds = 1;  ///< how often the methods take turns on each link, each time in a new order
  unsigned attempts = 3;     ///< for a disturbed run
  bool brief = false;        ///< demo: a short table, and latencies are not judged
  std::int64_t soak_ns = 0;  ///< soak: not 0; see soak_round()
  Expect expect = Expect::anything;
  std::string json;  ///< file, or empty
  std::vector<std::string> command;
};

/// A method on a link that was not measured, and why, in one line.
struct Gap {
  RestartMethod method;
  LinkSpec link;
  std::string why;
  bool disturbed = false;  ///< by the machine, not by the method or the lab
};

/// Runs all, prints table and checks. @return an ExitCode
int run(const RunOptions& options);

/// A round of the soak: random link, load, listeners, restarts and faults. `base` and the seed
/// determine all of it, so that one number replays it.
ExperimentSpec soak_round(const ExperimentSpec& base, std::uint64_t seed);

/// Checks the rounds of a soak for leaks.
class LeakWatch {
 public:
  LeakWatch() : before_(own_usage()) {}
  /// The problem found after a round; empty: none.
  std::string after(const Measurement& round);

 private:
  unsigned rounds_ = 0;
  Usage before_;
  std::int64_t own_kb_ = 0;     ///< after two rounds
  std::int64_t server_kb_ = 0;  ///< the largest of these
};

/// Adds up the counts of several runs and judges the sum.
/// @param files outputs of --json
/// @param connections,restarts the minimum that a drain must have had in total
int sum_files(const std::vector<std::string>& files, std::uint64_t connections,
              std::uint64_t restarts);

}  // namespace lab

#endif  // LAB_RUN_HPP
