// SPDX-License-Identifier: Apache-2.0
// reuseportctl: the command line.
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>

#include "drain.hpp"
#include "enable.hpp"
#include "limits.hpp"
#include "list.hpp"
#include "mode.hpp"
#include "option/option.hpp"
#include "output.hpp"
#include "probe.hpp"
#include "status.hpp"
#include "supervise.hpp"
#include "text.hpp"

namespace reuseport::ctl {
namespace {

/// "30", "1.5", "500ms", "2m": seconds unless a unit is named. Only 0 is 0, which may mean for
/// ever.
std::optional<std::chrono::milliseconds> parse_duration(std::string_view text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, ec] = std::from_chars(text.data(), end, value);
  const std::string_view unit(stop, static_cast<std::size_t>(end - stop));
  const double factor = unit.empty() || unit == "s" ? 1e3
                        : unit == "ms"              ? 1
                        : unit == "m"               ? 6e4
                        : unit == "h"               ? 3.6e6
                                                    : 0;
  if (ec != std::errc{} || factor == 0 || !(value >= 0) || value * factor > 1e10) {
    return std::nullopt;
  }
  const auto least = static_cast<std::int64_t>(value > 0 ? 1 : 0);
  return std::chrono::milliseconds(std::max(static_cast<std::int64_t>(value * factor), least));
}

template <typename T, typename Parse>
void option(CLI::App* app, const std::string& name, T& into, Parse parse, const std::string& what,
            const std::string& type) {
  app->add_option_function<std::string>(
         name,
         [&into, parse, name](const std::string& text) {
           const auto value = parse(text);
           if (!value) {
             throw CLI::ValidationError(name, "\"" + text + "\" is not valid");
           }
           into = *value;
         },
         what)
      ->type_name(type);
}

template <typename T>
std::optional<T> positive(std::string_view text) {
  T value{};
  const auto [stop, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  return ec == std::errc{} && stop == text.data() + text.size() && value > 0 ? std::optional(value)
                                                                             : std::nullopt;
}

/// A number, including 0.
std::optional<std::optional<std::size_t>> count(std::string_view text) {
  std::size_t value = 0;
  const auto [stop, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = !text.empty() && ec == std::errc{} && stop == text.data() + text.size();
  return whole ? std::optional<std::optional<std::size_t>>(std::in_place, value) : std::nullopt;
}

void add_selection(CLI::App* app, Selection& s) {
  option(app, "--pid", s.pid, positive<pid_t>, "listeners of this process and its descendants",
         "PID");
  option(app, "--port", s.port, parse_port, "listeners on this port", "N");
  option(app, "--addr", s.address, EndpointPattern::parse,
         "listeners on this address, e.g. 127.0.0.1, [::1]:80, *:80", "ADDR[:PORT]");
  option(app, "--inode", s.inode, positive<std::uint64_t>, "the socket with this inode number",
         "N");
  app->add_flag("--tcp", s.tcp, "only TCP");
  app->add_flag("--udp", s.udp, "only UDP");
}

const std::map<std::string, DrainMethod> methods = {{"auto", DrainMethod::automatic},
                                                    {"option", DrainMethod::option},
                                                    {"close", DrainMethod::close}};

/// What drain and restart have in common.
template <typename Options>
void add_method(CLI::App* app, Options& options, bool& reuseport_only) {
  app->add_flag("--reuseport-only", reuseport_only,
                "skip listeners without SO_REUSEPORT, such as an admin port");
  option(
      app, "--method", options.method,
      [](const std::string& text) {
        const auto it = methods.find(text);
        return it == methods.end() ? std::nullopt : std::optional(it->second);
      },
      "auto (the best that works here), option or close", "METHOD");
  app->add_flag("--require", options.require, "drain or change nothing: do not fall back to close");
  app->add_option("--before-signal", options.before_signal,
                  "shell command to run after the drain, before the signal ($REUSEPORT_PID)")
      ->type_name("COMMAND");
  option(app, "--connections", options.connections, count,
         "then wait until the old server has at most N connections", "N");
  option(app, "--flows", options.flows, count, "and at most N UDP flows (needs enable --udp-flows)",
         "N");
}

struct Arguments {
  Output out;
  bool behaviour = false;
  Selection selection;
  ModeOptions mode;
  WatchOptions watch;
  DrainCommandOptions drain;
  RestartOptions restart;
  std::string topic;
  EnableOptions enable;
  bool force = false;
};

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    out.push_back(command->get_name());
  }
  return out;
}

Failure unknown(std::string_view kind, std::string_view word,
                const std::vector<std::string>& known) {
  const std::string meant = nearest(word, known);
  return {Exit::usage, fmt::format("no {} \"{}\"", kind, word),
          (meant.empty() ? "" : "did you mean " + meant + "? ") + std::string("see --help")};
}

/// The first unknown option or command. CLI11 would first complain about what is missing.
std::optional<Failure> misspelt(const CLI::App& app, int argc, char** argv) {
  const CLI::App* command = nullptr;
  for (int i = 1; i < argc; i++) {
    const std::string_view word(argv[i]);
    if (word == "--") {
      break;
    }
    if (!word.starts_with('-') || word.size() < 2) {
      if (command != nullptr) {
        if (command->get_name() == "restart") {
          break;  // a server's own command line
        }
        continue;
      }
      const auto names = names_of(app);
      if (std::find(names.begin(), names.end(), word) == names.end()) {
        return unknown("command", word, names);
      }
      command = app.get_subcommand(std::string(word));
      continue;
    }
    const std::string_view name = word.substr(0, word.find('='));
    std::vector<std::string> known;
    const CLI::Option* found = nullptr;
    for (const CLI::App* where : {command, &app}) {
      for (const CLI::Option* o :
           where != nullptr ? where->get_options() : std::vector<const CLI::Option*>{}) {
        for (const std::string& n : o->get_lnames()) {
          known.push_back("--" + n);
          found = known.back() == name ? o : found;
        }
        for (const std::string& n : o->get_snames()) {
          found = name.substr(0, 2) == "-" + n ? o : found;
        }
      }
    }
    if (found == nullptr) {
      return unknown(command == nullptr ? "option" : "option of " + command->get_name(), name,
                     known);
    }
    if (found->get_items_expected_max() > 0 && name.size() == word.size()) {
      i++;  // its value, whatever that begins with
    }
  }
  return std::nullopt;
}

/// Changing everything at once is never intended.
Done require_selection(const Selection& s, const char* command) {
  if (s.everything()) {
    return failed(
        Failure(Exit::usage, fmt::format("{} needs --pid, --port, --addr or --inode", command)));
  }
  return {};
}

/// `close` never drains.
template <typename Options>
Done require_drain(const Options& options) {
  if (options.require && options.method == DrainMethod::close) {
    return failed(Failure(Exit::usage, "--require excludes --method close",
                          "close does not drain: leave out one of them"));
  }
  return {};
}

/// The commands of the option by BPF.
void declare_option(CLI::App& app, Arguments& a, std::function<Expected<int>()>& run) {
  const auto code = [](const Done& done) -> Expected<int> {
    return done ? Expected<int>(0) : Expected<int>(tl::unexpected(done.error()));
  };
  auto* enable = app.add_subcommand(
      "enable",
      "provide SO_REUSEPORT_LISTEN_OFF by BPF on a kernel that lacks it, and UDP flows on any");
  enable->add_option("--cgroup", a.enable.cgroup, "for processes of this cgroup2 directory")
      ->type_name("DIR");
  enable->add_option("--netns", a.enable.netns, "in this network namespace (default: the caller's)")
      ->type_name("PATH|PID");
  option(enable, "--pid", a.enable.pid, positive<pid_t>,
         "for the cgroup and network namespace of this process", "PID");
  enable->add_flag("--large-groups", a.enable.large_groups,
                   "groups of up to 4096 members instead of 512");
  enable->add_flag("--udp-flows", a.enable.udp_flows,
                   "UDP: a client stays with the socket that answered it");
  option(
      enable, "--idle", a.enable.idle,
      [](const std::string& text) {
        const auto time = parse_duration(text);
        return time && time->count() > 0 ? std::optional(time) : std::nullopt;
      },
      "idle timeout of a flow (120 s)", "SECONDS");
  option(
      enable, "--flows-max", a.enable.flows_max,
      [](const std::string& text) {
        const auto n = positive<std::uint32_t>(text);
        const bool fits = n && *n >= option::least_flows && *n <= option::most_flows;
        return fits ? std::optional(n) : std::nullopt;
      },
      "room for N flows (131072; at most half for one user); 1024 to 4194304", "N");
  enable->callback(
      [&, code] { run = [&, code] { return code(enable_command(a.enable, a.out)); }; });

  auto* disable = app.add_subcommand("disable", "remove what enable has loaded");
  disable->add_flag("--force", a.force, "even if a listener is not ON");
  disable->callback(
      [&, code] { run = [&, code] { return code(disable_command(a.force, a.out)); }; });

  auto* status = app.add_subcommand("status", "what enable has set up: scope, start time, groups");
  status->callback([&, code] { run = [&, code] { return code(status_command(a.out)); }; });
}

/// Declares all commands; the chosen one sets @p run.
void declare(CLI::App& app, Arguments& a, std::function<Expected<int>()>& run) {
  const auto code = [](const Done& done) -> Expected<int> {
    return done ? Expected<int>(0) : Expected<int>(tl::unexpected(done.error()));
  };
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("-V,--version", std::string("reuseportctl ") + REUSEPORT_VERSION);
  app.add_flag("--json", a.out.json, "print JSON, also for errors");
  app.add_flag_callback(
      "--pretty", [&a] { a.out.json = a.out.pretty = true; }, "print indented JSON");
  app.add_flag("-q,--quiet", a.out.quiet, "show no progress");

  auto* probe = app.add_subcommand("probe", "what this kernel supports");
  probe->add_flag("--behaviour", a.behaviour, "also test on loopback that OFF means off");
  probe->callback([&] {
    run = [&]() -> Expected<int> {
      const auto exit = probe_command(a.behaviour, a.out);
      return exit ? Expected<int>(static_cast<int>(*exit)) : tl::unexpected(exit.error());
    };
  });

  declare_option(app, a, run);

  auto* list = app.add_subcommand("list", "list listeners: address, mode, queue, group, process");
  add_selection(list, a.selection);
  list->callback([&, code] { run = [&, code] { return code(ctl::list(a.selection, a.out)); }; });

  auto* show = app.add_subcommand("show", "show everything about some listeners");
  add_selection(show, a.selection);
  show->callback([&, code] { run = [&, code] { return code(ctl::show(a.selection, a.out)); }; });

  auto* watch = app.add_subcommand("watch", "repeat list at an interval");
  add_selection(watch, a.selection);
  option(watch, "--interval", a.watch.interval, parse_duration, "time between two tables",
         "SECONDS");
  option(watch, "--count", a.watch.count, positive<unsigned>, "end after N tables", "N");
  watch->callback(
      [&, code] { run = [&, code] { return code(ctl::watch(a.selection, a.watch, a.out)); }; });

  struct ModeCommand {
    const char* name;
    Mode mode;
    const char* what;
  };
  for (const ModeCommand& m :
       {ModeCommand{"on", Mode::on, "give listeners new connections"},
        ModeCommand{"off", Mode::off, "give listeners nothing new; they keep what they have"},
        ModeCommand{"standby", Mode::standby,
                    "give listeners new connections only while no other is ON"}}) {
    auto* command = app.add_subcommand(m.name, m.what);
    add_selection(command, a.selection);
    command->add_flag("--allow-shared", a.mode.allow_shared,
                      "even if another process holds the socket");
    command->add_flag("--allow-last", a.mode.allow_last, "even the last ON listener of an address");
    command->add_flag("--dry-run", a.mode.dry_run, "only print what would be done");
    command->callback([&, code, m] {
      run = [&, code, m] {
        const auto named = require_selection(a.selection, m.name);
        return code(named ? ctl::set_mode(m.mode, a.selection, a.mode, a.out) : named);
      };
    });
  }

  auto* drain =
      app.add_subcommand("drain", "retire an old server's listeners beside those of a new one");
  add_selection(drain, a.drain.selection);
  drain->get_option("--pid")->required();
  option(drain, "--timeout", a.drain.timeout, parse_duration, "give up after this (30 s)",
         "SECONDS");
  option(drain, "--signal", a.drain.signal, parse_signal, "then send this signal", "NAME");
  add_method(drain, a.drain, a.drain.selection.reuseport_only);
  drain
      ->add_option("--ready", a.drain.ready,
                   "shell command that exits 0 when the new server is ready ($REUSEPORT_PID)")
      ->type_name("COMMAND");
  drain->add_flag("--wait", a.drain.wait, "after the signal, wait until the process has ended")
      ->needs(drain->get_option("--signal"));
  drain->add_flag("--await-newcomer", a.drain.await_newcomer,
                  "wait for a newcomer instead of refusing");
  option(
      drain, "--on-deadline", a.drain.on_deadline,
      [](const std::string& text) {
        return text == "standby"   ? std::optional(OnDeadline::standby)
               : text == "restore" ? std::optional(OnDeadline::restore)
               : text == "signal"  ? std::optional(OnDeadline::signal)
                                   : std::nullopt;
      },
      "if connections are left: standby (default), restore, or signal anyway", "WHAT");
  drain->add_flag("--allow-shared", a.drain.allow_shared,
                  "even if another process holds the socket");
  drain->add_flag("--allow-last", a.drain.allow_last, "even the last ON listener of an address");
  drain->add_flag("--dry-run", a.drain.dry_run, "only print what would be done");
  drain->callback([&] {
    run = [&]() -> Expected<int> {
      if (const auto ok = require_drain(a.drain); !ok) {
        return tl::unexpected(ok.error());
      }
      const auto exit = drain_command(a.drain, a.out);
      return exit ? Expected<int>(static_cast<int>(*exit)) : tl::unexpected(exit.error());
    };
  });

  auto* restart = app.add_subcommand(
      "restart", "run a server; SIGHUP replaces it with a new one without losing a connection");
  restart->add_option("command", a.restart.command, "the server, in the foreground")
      ->required()
      ->type_name("-- CMD ARG...");
  restart
      ->add_option("--ready", a.restart.ready,
                   "shell command that exits 0 when the new server is ready ($REUSEPORT_PID)")
      ->type_name("COMMAND");
  option(restart, "--ready-timeout", a.restart.ready_timeout, parse_duration,
         "how long a new server may take to get ready (30 s)", "SECONDS");
  option(restart, "--timeout", a.restart.drain_timeout, parse_duration,
         "how long the old one may drain (30 s)", "SECONDS");
  option(restart, "--stop-timeout", a.restart.stop_timeout, parse_duration,
         "kill the old one this long after the signal (90 s), 0: never", "SECONDS");
  option(restart, "--signal", a.restart.signal, parse_signal, "signal that ends the server (TERM)",
         "NAME");
  add_method(restart, a.restart, a.restart.reuseport_only);
  restart->add_flag("--allow-shared", a.restart.allow_shared,
                    "even if another process holds the socket");
  restart->add_flag("--allow-last", a.restart.allow_last,
                    "even if the new server does not serve every address");
  restart->add_flag("--unit", a.restart.unit,
                    "in a systemd unit: start its server, or replace it; return when it serves");
  restart->add_flag("--dry-run", a.restart.dry_run, "only print what would be done");
  restart->callback([&] {
    run = [&] {
      const auto ok = require_drain(a.restart);
      return ok ? supervise(a.restart, a.out) : tl::unexpected(ok.error());
    };
  });

  auto* help = app.add_subcommand("help", "describe a command and its options");
  help->add_option("topic", a.topic, "the command")->type_name("COMMAND");
  help->callback([&] {
    run = [&]() -> Expected<int> {
      const auto all = names_of(app);
      if (!a.topic.empty() && std::find(all.begin(), all.end(), a.topic) == all.end()) {
        return failed(unknown("command", a.topic, all));
      }
      const std::string all_of_it =
          app.get_formatter()->make_help(&app, app.get_name(), CLI::AppFormatMode::Normal);
      a.out.text(a.topic.empty() ? all_of_it : app.get_subcommand(a.topic)->help(app.get_name()));
      return 0;
    };
  });
}

/// Usage errors occur before CLI11 has parsed --json.
bool wants_json(int argc, char** argv) {
  for (int i = 1; i < argc && std::string_view(argv[i]) != "--"; i++) {
    if (std::string_view(argv[i]) == "--json" || std::string_view(argv[i]) == "--pretty") {
      return true;
    }
  }
  return false;
}

/// A result that could not be written is not a success.
int finish(int code, const Output& out) {
  const auto lost = Output::lost();
  if (lost) {
    out.note(lost->line());
  }
  return lost && code == 0 ? static_cast<int>(Exit::error) : code;
}

int run_tool(int argc, char** argv) try {
  fill_standard_descriptors();
  // Keep freed memory: with many sockets, returning pages and faulting them in again was a third of
  // the work.
  (void)::mallopt(M_MMAP_MAX, 0);
  (void)::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  libbpf_set_print(nullptr);
  raise_open_files();
  CLI::App app("Switch SO_REUSEPORT listeners off, and restart servers without losing connections.",
               "reuseportctl");
  Arguments arguments;
  std::function<Expected<int>()> run;
  declare(app, arguments, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {
      std::ostringstream text;  // --help, --version
      app.exit(e, text, text);
      arguments.out.text(text.str());
      return finish(0, arguments.out);
    }
    arguments.out.json = wants_json(argc, argv);
    const auto wrong = misspelt(app, argc, argv);
    arguments.out.failure(wrong ? *wrong : Failure(Exit::usage, e.what(), "see --help"));
    return static_cast<int>(Exit::usage);
  }
  const auto result = run();
  if (!result) {
    arguments.out.failure(result.error());
    return static_cast<int>(result.error().exit);
  }
  // restart writes a log; its exit code is the server's
  const bool serves = app.got_subcommand("restart") && !arguments.restart.dry_run;
  return serves ? *result : finish(*result, arguments.out);
} catch (const std::exception& e) {
  Output().note(e.what());
  return static_cast<int>(Exit::error);
}

}  // namespace
}  // namespace reuseport::ctl

int main(int argc, char** argv) {
  return reuseport::ctl::run_tool(argc, argv);
}
