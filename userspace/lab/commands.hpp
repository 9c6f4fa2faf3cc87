// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "experiment.hpp"
#include "kernel.hpp"
#include "result.hpp"

namespace lab {

/// Exit codes of restart-lab.
enum ExitCode : int {
  exit_held = 0,          ///< what had to hold was measured to hold
  exit_not_held = 1,      ///< it was measured, and did not hold
  exit_usage = 2,         ///< wrong command line
  exit_unexpected = 3,    ///< the kernel is not the one --expect named
  exit_permission = 4,    ///< not root
  exit_not_measured = 5,  ///< the lab itself failed, so nothing can be said
  exit_interrupted = 130,
};

enum class Expect { anything, supported, not_in_kernel };

struct Output {
  std::string json;  ///< file, or empty
  std::string svg;   ///< file, or empty
  std::vector<std::string> command;
};

struct DemoOptions {
  ExperimentSpec spec;  ///< the method is the demo's
  Expect expect = Expect::anything;
  Output output;
};

struct RunOptions {
  ExperimentSpec spec;  ///< restarts, connections and duration are totals of each method
  std::vector<Method> methods;
  std::vector<LinkSpec> links;
  unsigned rounds = 1;  ///< on each link the methods take turns so often, each time in a new order
  Expect expect = Expect::anything;
  Output output;
};

struct SoakOptions {
  ExperimentSpec
      spec;  ///< first seed, rate of the open loop, timeout; the rest follows from the seed
  std::int64_t duration_ns = 0;
  Output output;
};

/// Root makes the namespaces of a link. An error is said on stderr.
[[nodiscard]] tl::expected<void, ExitCode> require_root();

/// What every command begins with: asks the kernel, says what it answers, and sees that it is the
/// expected one and that this is root. An error is said on stderr.
[[nodiscard]] tl::expected<KernelAnswer, ExitCode> preflight(Expect expect);

struct SumOptions {
  std::vector<std::string> files;  ///< what --json wrote
  std::uint64_t connections = 0;   ///< listen-off must have had so many in all ...
  std::uint64_t restarts = 0;      ///< ... and so many of these
};

struct WireOptions {
  LinkSpec link;
  std::uint64_t seed = 1;
  std::vector<std::string> command;
};

int run_demo(const DemoOptions& options);
int run_methods(const RunOptions& options);
/// Rounds of listen-off at random, with churn and faults, until the time is up or something is
/// wrong.
int run_soak(const SoakOptions& options);
/// Runs a command at the client's end of a link. Its environment names the server's namespace
/// (LAB_SERVER_NS, for nsenter --net=) and address (LAB_ADDRESS). @return its exit code
int run_wire(const WireOptions& options);
/// Adds up the counts of several runs and judges the sum.
int run_sum(const SumOptions& options);

}  // namespace lab
