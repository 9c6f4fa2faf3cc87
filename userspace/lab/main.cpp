// SPDX-License-Identifier: Apache-2.0
//
// restart-lab: what clients see while a server with SO_REUSEPORT listeners restarts.
#include <fmt/core.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

#include "net/link.hpp"
#include "process.hpp"
#include "report/report.hpp"
#include "run.hpp"

namespace {

using namespace lab;

void on_signal(int /*signal*/) {
  interrupt_experiments();
}

void watch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGHUP, &action, nullptr);
}

/// Accepts only links that parse_link() understands; otherwise reports the reason.
std::string check_link(const std::string& text) {
  const auto link = parse_link(text);
  return link ? std::string{} : link.error().text;
}

std::string check_method(const std::string& text) {
  return parse_method(text) ? std::string{}
                            : fmt::format("method '{}': see restart-lab methods", text);
}

int list_methods() {
  for (const auto& method : methods) {
    fmt::print("{:<14} {}\n{:<14} privileges: {}; extra processes: {}\n", method.name, method.what,
               "", method.privileges, method.extra_processes);
  }
  return exit_passed;
}

/// Prints an error, if any, on stderr.
int done_or_say(const Result<void>& done) {
  if (!done) {
    fmt::print(stderr, "restart-lab: {}\n", done.error().text);
  }
  return done ? exit_passed : exit_not_measured;
}

/// Runs a command at the client's end of a link. @return its exit code
Result<int> run_behind(const LinkSpec& spec, std::uint64_t seed,
                       const std::vector<std::string>& command) {
  const auto link = Link::make(spec, LinkDevice::automatic, seed);
  if (!link) {
    return tl::unexpected(link.error());
  }
  ChildSpec child;
  child.program = command.front();
  child.arguments.assign(command.begin() + 1, command.end());
  child.fds = {link->server_ns()};
  child.ns = link->client_ns();
  child.environment = {fmt::format("LAB_ADDRESS={}", link->server_address()),
                       "LAB_SERVER_NS=/proc/self/fd/3"};
  const auto pid = spawn(child);
  if (!pid) {
    return tl::unexpected(pid.error());
  }
  int status = 0;
  while (waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Options of `run` and its presets `demo`, `udp` and `soak`, before they are converted to
/// RunOptions.
struct RunWords {
  std::vector<std::string> methods;
  std::vector<std::string> links;
  double duration_s = 60;
  double timeout_s = 30;
  double hours = 0;
  std::string device = "auto";
  std::string expect;
  bool closed_loop = false;
};

void add_common(CLI::App& app, RunOptions& run, RunWords& words) {
  app.add_option("--rate", run.spec.rate, "new connections per second, open loop")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--timeout", words.timeout_s, "seconds until a connection counts as timed out")
      ->check(CLI::Range(0.1, 120.0))
      ->capture_default_str();
  app.add_option("--seed", run.spec.seed, "seed of everything random")->capture_default_str();
  app.add_option("--device", words.device,
                 "for links with delay; auto: veth with netem if the kernel has it, else tun")
      ->check(CLI::IsMember({"auto", "veth", "tun"}))
      ->capture_default_str();
  app.add_option("--attempts", run.attempts, "attempts for a run that the machine disturbs")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--json", run.json, "write everything measured to this file");
}

/// For a run of known length.
void add_planned(CLI::App& app, RunOptions& run, RunWords& words) {
  add_common(app, run, words);
  app.add_option("--link", words.links,
                 "loopback, or RTT in ms and loss in % per direction (20ms, 20ms/1%); a list")
      ->delimiter(',')
      ->check(check_link)
      ->capture_default_str();
  app.add_option("--restarts", run.spec.restarts, "restarts for each method")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--listeners", run.spec.listeners, "listeners of each generation")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--duration", words.duration_s, "seconds of load for each method")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  app.add_option("--expect", words.expect, "exit with 3 unless the kernel is of this kind")
      ->check(CLI::IsMember({"supported", "not-in-kernel"}));
}

void add_run(CLI::App& app, RunOptions& run, RunWords& words) {
  words.links = {"loopback", "1ms", "20ms", "100ms", "1ms/1%", "20ms/1%", "100ms/1%"};
  run.spec.restarts = 100;
  add_planned(app, run, words);
  app.add_option("--method", words.methods, "methods, separated by commas (default: all)")
      ->delimiter(',')
      ->check(check_method);
  app.add_option("--connections", run.spec.connections,
                 "connections for each method, spread over the links, instead of --duration")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40U));
  auto* closed = app.add_flag("--closed-loop", words.closed_loop,
                              "each client connects again when its last connection has ended");
  app.add_option("--concurrency", run.spec.concurrency, "clients of the closed loop")
      ->check(CLI::Range(1, 100000))
      ->needs(closed)
      ->capture_default_str();
  app.add_option("--rounds", run.rounds,
                 "how often the methods take turns on each link, in an order drawn from the seed,\n"
                 "so that a disturbance of the machine affects all of them")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
}

void add_demo(CLI::App& app, RunOptions& demo, RunWords& words) {
  words.links = {"20ms"};
  words.duration_s = 10;
  words.timeout_s = 5;
  demo.brief = true;
  // Latencies are not judged, so only what may cause a timeout counts as a disturbance.
  demo.spec.limits.late_p99_ns = one_second;
  demo.spec.limits.stall_ns = 2 * one_second;
  demo.spec.limits.overrun = 8;
  add_planned(app, demo, words);
}

void add_udp(CLI::App& app, RunOptions& udp, RunWords& words) {
  words.links = {"loopback", "20ms"};
  words.duration_s = 20;
  words.timeout_s = 5;
  udp.spec.udp = true;
  udp.spec.rate = 100;
  add_planned(app, udp, words);
  app.add_option(
         "--method", words.methods,
         "which of close, listen-off, option-bpf, option-flows (default: close, the option,\n"
         "option-flows)")
      ->delimiter(',')
      ->check(check_method);
}

void add_soak(CLI::App& app, RunOptions& soak, RunWords& words) {
  words.methods = {"listen-off"};
  words.expect = "supported";
  words.timeout_s = 60;
  words.hours = 1;
  soak.spec.rate = 100;
  // Latencies are not judged, so only what may cause a timeout counts as a disturbance.
  soak.spec.limits.late_p99_ns = one_second;
  soak.spec.limits.stall_ns = 10 * one_second;
  add_common(app, soak, words);
  app.add_option("--hours", words.hours, "how long; finishes the last round")
      ->check(CLI::Range(0.0001, 10000.0))
      ->capture_default_str();
}

int start(RunOptions run, const RunWords& words) {
  run.spec.duration_ns = static_cast<std::int64_t>(words.duration_s * 1e9);
  run.spec.timeout_ns = static_cast<std::int64_t>(words.timeout_s * 1e9);
  run.soak_ns = static_cast<std::int64_t>(words.hours * 3600e9);
  run.spec.device = words.device == "veth"  ? LinkDevice::veth
                    : words.device == "tun" ? LinkDevice::tun
                                            : LinkDevice::automatic;
  run.expect = words.expect == "supported"       ? Expect::supported
               : words.expect == "not-in-kernel" ? Expect::not_in_kernel
                                                 : Expect::anything;
  if (words.closed_loop) {
    run.spec.rate = 0;
  }
  for (const auto& method : methods) {
    const bool serves = run.spec.udp ? serves_udp(method.method) : serves_tcp(method.method);
    const bool named =
        std::find(words.methods.begin(), words.methods.end(), method.name) != words.methods.end();
    if (named && !serves) {
      fmt::print(stderr, "restart-lab: {} is not for {}\n", method.name,
                 run.spec.udp ? "UDP" : "TCP: see restart-lab udp");
      return exit_usage;
    }
    if (named || (words.methods.empty() && !run.brief && !run.spec.udp && serves)) {
      run.methods.push_back(method.method);
    }
  }
  for (const auto& name : words.links) {
    run.links.push_back(*parse_link(name));
    if (run.spec.udp && run.links.back().loss > 0) {
      fmt::print(stderr, "restart-lab: udp: losses on {} would not be the method's\n", name);
      return exit_usage;
    }
  }
  if (run.soak_ns > 0) {
    run.spec.method = run.methods.front();
  }
  return lab::run(run);
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): without memory there is nothing to save
int main(int argc, char** argv) {
  CLI::App app{
      "Restart a server with SO_REUSEPORT listeners under load and count what clients lose."};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 all checks passed, 1 a check failed, 2 usage, 3 not the kernel --expect "
      "named,\n"
      "4 not root, 5 not measured: a method could not be set up, or the machine disturbed every\n"
      "attempt; 130 interrupted.");

  struct Preset {
    CLI::App* command = nullptr;
    RunOptions options;
    RunWords words;
  };
  std::array<Preset, 4> presets{};
  auto& [run, demo, udp, soak] = presets;
  run.command = app.add_subcommand("run", "run every method under the same load, in one table");
  add_run(*run.command, run.options, run.words);
  demo.command =
      app.add_subcommand("demo", "run only plain close and the drain by the option, 20 s");
  add_demo(*demo.command, demo.options, demo.words);
  udp.command = app.add_subcommand(
      "udp", "run UDP flows: plain close, the option, and the option with flows; 3 minutes");
  add_udp(*udp.command, udp.options, udp.words);
  soak.command = app.add_subcommand(
      "soak", "run listen-off in random rounds with churn and faults, until the first loss");
  add_soak(*soak.command, soak.options, soak.words);

  std::vector<std::string> files;
  std::uint64_t connections = 0;
  std::uint64_t restarts = 0;
  auto* sum_command = app.add_subcommand("sum", "add up the counts of several runs");
  sum_command->add_option("--connections", connections, "listen-off must have had at least N");
  sum_command->add_option("--restarts", restarts, "and so many restarts");
  sum_command->add_option("files", files, "output of run --json")->required();

  std::string json;
  std::string svg;
  auto* plot_command = app.add_subcommand("plot", "draw losses and latency of a run with gnuplot");
  plot_command->add_option("json", json, "output of run --json")->required();
  plot_command->add_option("svg", svg, "the picture")->required();

  std::string link;
  std::uint64_t seed = 1;
  std::vector<std::string> command;
  auto* link_command = app.add_subcommand(
      "link",
      "run a command in its own namespace, behind a link\n"
      "to another: nsenter --net=$LAB_SERVER_NS starts what $LAB_ADDRESS reaches");
  link_command->add_option("--seed", seed, "of the losses")->capture_default_str();
  link_command->add_option("link", link, "as in run --link")->required()->check(check_link);
  link_command->add_option("command", command, "-- CMD ARG...")->required();
  const auto* methods_command =
      app.add_subcommand("methods", "list the methods and what each needs");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_passed : exit_usage;
  }

  if (methods_command->parsed()) {
    return list_methods();
  }
  if (sum_command->parsed()) {
    return sum_files(files, connections, restarts);
  }
  if (plot_command->parsed()) {
    return done_or_say(plot(json, svg));
  }
  if (link_command->parsed()) {
    const auto code = run_behind(*parse_link(link), seed, command);
    return code ? *code : done_or_say(tl::unexpected(code.error()));
  }
  watch_signals();
  for (auto& preset : presets) {
    if (preset.command->parsed()) {
      preset.options.command.assign(argv, argv + argc);
      return start(preset.options, preset.words);
    }
  }
  return exit_usage;
}
