// SPDX-License-Identifier: Apache-2.0
//
// restart-lab: what clients see while a server with SO_REUSEPORT listeners is restarted.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "clock.hpp"
#include "commands.hpp"
#include "link.hpp"

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

/// Accepts only a link parse_link() understands, and says why otherwise.
std::string check_link(const std::string& text) {
  const auto link = parse_link(text);
  return link ? std::string{} : link.error().text;
}

std::string check_method(const std::string& text) {
  return lab::parse_method(text) ? std::string{}
                                 : fmt::format("method '{}': see restart-lab methods", text);
}

int list_methods() {
  for (const auto& method : methods) {
    fmt::print("{:<14} {}\n{:<14} privileges: {}; extra processes: {}\n", method.name, method.what,
               "", method.privileges, method.extra_processes);
  }
  return exit_held;
}

struct CommonOptions {
  std::string rtt = "20";
  double duration_s = 10;
  double timeout_s = 5;
  std::string wire = "auto";
};

void add_common(CLI::App& app, ExperimentSpec& spec, CommonOptions& common, Output& output) {
  app.add_option("--restarts", spec.restarts, "restarts of each method")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--rate", spec.rate, "new connections a second, open loop")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--listeners", spec.listeners, "listeners a generation opens")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--duration", common.duration_s, "seconds of load for each method")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  app.add_option("--timeout", common.timeout_s, "seconds until a connection counts as timed out")
      ->check(CLI::Range(0.1, 120.0))
      ->capture_default_str();
  app.add_option("--seed", spec.seed, "seed of the arrivals")->capture_default_str();
  app.add_option("--wire", common.wire,
                 "auto: netem where the kernel has it, else a relay over TUN")
      ->check(CLI::IsMember({"auto", "netem", "tun"}))
      ->capture_default_str();
  app.add_option("--json", output.json, "write everything measured to this file");
}

void take_common(ExperimentSpec& spec, const CommonOptions& common) {
  spec.duration_ns = static_cast<std::int64_t>(common.duration_s * static_cast<double>(one_second));
  spec.timeout_ns = static_cast<std::int64_t>(common.timeout_s * static_cast<double>(one_second));
  spec.wire = common.wire == "netem" ? Link::Wire::netem
              : common.wire == "tun" ? Link::Wire::tun
                                     : Link::Wire::automatic;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Restart a server with SO_REUSEPORT listeners under load and count what clients lose."};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 what had to hold held, 1 it did not, 2 usage, 3 not the kernel --expect "
      "named,\n4 not root, 5 nothing could be measured, 130 interrupted.");

  DemoOptions demo;
  CommonOptions demo_common;
  std::string expect;
  auto* demo_command = app.add_subcommand("demo", "plain close against the library's drain");
  add_common(*demo_command, demo.spec, demo_common, demo.output);
  demo_command->add_option("--rtt", demo_common.rtt, "link: RTT in ms[/loss in %], or loopback")
      ->check(check_link)
      ->capture_default_str();
  demo_command->add_option("--expect", expect, "fail with 3 unless the kernel is of this kind")
      ->check(CLI::IsMember({"supported", "not-in-kernel"}));

  RunOptions run;
  run.spec.restarts = 100;
  CommonOptions run_common;
  run_common.duration_s = 60;
  run_common.timeout_s = 30;
  std::vector<std::string> method_names;
  std::vector<std::string> link_names{"loopback", "1ms",     "20ms",    "100ms",
                                      "1ms/1%",   "20ms/1%", "100ms/1%"};
  auto* run_command = app.add_subcommand("run", "every method on the same work, in one table");
  run_command->add_option("--method", method_names, "which, separated by commas (default: all)")
      ->delimiter(',')
      ->check(check_method);
  run_command
      ->add_option("--link", link_names,
                   "loopback, or RTT in ms and loss in % each way, separated by commas")
      ->delimiter(',')
      ->check(check_link)
      ->capture_default_str();
  add_common(*run_command, run.spec, run_common, run.output);
  run_command
      ->add_option("--connections", run.spec.connections,
                   "connections of each method, spread over the links, instead of --duration")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40U));
  bool closed_loop = false;
  auto* closed = run_command->add_flag("--closed-loop", closed_loop,
                                       "each client begins anew when its last connection ended");
  run_command->add_option("--concurrency", run.spec.concurrency, "clients of the closed loop")
      ->check(CLI::Range(1, 100000))
      ->needs(closed)
      ->capture_default_str();
  run_command
      ->add_option(
          "--rounds", run.rounds,
          "the methods take turns so often on each link, in an order drawn from the seed;\n"
          "what disturbs the machine for a while then meets all of them")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  run_command->add_option("--svg", run.output.svg, "draw losses and latency into this file");
  run_command->add_option("--expect", expect, "fail with 3 unless the kernel is of this kind")
      ->check(CLI::IsMember({"supported", "not-in-kernel"}));
  SoakOptions soak;
  soak.spec.rate = 100;
  soak.spec.timeout_ns = 60 * one_second;
  double hours = 1;
  auto* soak_command =
      app.add_subcommand("soak", "listen-off at random with churn and faults, to the first loss");
  soak_command->add_option("--hours", hours, "how long; the last round is finished")
      ->check(CLI::Range(0.0001, 10000.0))
      ->capture_default_str();
  soak_command->add_option("--seed", soak.spec.seed, "of the first round; the next has one more")
      ->capture_default_str();
  soak_command->add_option("--rate", soak.spec.rate, "connections a second in the open loop")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  soak_command->add_option("--json", soak.output.json, "write every round to this file");
  SumOptions sum;
  auto* sum_command = app.add_subcommand("sum", "add up the counts of several runs (JSON files)");
  sum_command->add_option("--connections", sum.connections, "listen-off must have had so many");
  sum_command->add_option("--restarts", sum.restarts, "and so many restarts");
  sum_command->add_option("files", sum.files, "what run --json wrote")->required();
  WireOptions wire;
  std::string wire_link;
  auto* wire_command = app.add_subcommand(
      "wire",
      "run a command in a namespace of its own, behind a link\n"
      "to another: nsenter --net=$LAB_SERVER_NS starts what $LAB_ADDRESS reaches");
  wire_command->add_option("--seed", wire.seed, "of the losses")->capture_default_str();
  wire_command->add_option("link", wire_link, "as in run --link")->required()->check(check_link);
  wire_command->add_option("command", wire.command, "-- CMD ARG...")->required();
  auto* methods_command = app.add_subcommand("methods", "list the methods and what each needs");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_held : exit_usage;
  }

  if (methods_command->parsed()) {
    return list_methods();
  }
  if (wire_command->parsed()) {
    wire.link = *parse_link(wire_link);
    return run_wire(wire);
  }
  if (sum_command->parsed()) {
    return run_sum(sum);
  }
  const auto wanted = expect == "supported"       ? Expect::supported
                      : expect == "not-in-kernel" ? Expect::not_in_kernel
                                                  : Expect::anything;
  watch_signals();
  if (soak_command->parsed()) {
    soak.output.command.assign(argv, argv + argc);
    soak.duration_ns = static_cast<std::int64_t>(hours * 3600 * static_cast<double>(one_second));
    return run_soak(soak);
  }
  if (run_command->parsed()) {
    run.output.command.assign(argv, argv + argc);
    run.expect = wanted;
    take_common(run.spec, run_common);
    if (closed_loop) {
      run.spec.rate = 0;
    }
    for (const auto& name : method_names) {
      run.methods.push_back(*parse_method(name));
    }
    if (run.methods.empty()) {
      for (const auto& method : methods) {
        run.methods.push_back(method.method);
      }
    }
    for (const auto& name : link_names) {
      run.links.push_back(*parse_link(name));
    }
    return run_methods(run);
  }
  demo.output.command.assign(argv, argv + argc);
  demo.expect = wanted;
  demo.spec.link = *parse_link(demo_common.rtt);
  take_common(demo.spec, demo_common);
  return run_demo(demo);
}
