// SPDX-License-Identifier: Apache-2.0
#include "experiment.hpp"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill(), which csignal lacks

#include <algorithm>
#include <atomic>
#include <ctime>
#include <optional>
#include <random>
#include <vector>

#include "server/control.hpp"
#include "server/stage.hpp"

namespace lab {
namespace {

std::atomic<bool> interrupted_flag{false};

constexpr std::uint16_t server_port = 80;  // nobody else uses these namespaces
// Generous: on an emulated, busy machine an exec alone takes seconds.
constexpr std::int64_t ready_bound = 180 * one_second;
constexpr std::int64_t drain_bound = 180 * one_second;
constexpr std::int64_t poll_interval = 20 * one_ms;

class Experiment {
 public:
  Experiment(const ExperimentSpec& spec, const OnProgress& on_progress)
      : on_progress_(on_progress) {
    measured_.spec = spec;
    random_.seed(spec.seed);
  }

  Result<Measurement> run();

 private:
  [[nodiscard]] const ExperimentSpec& spec() const { return measured_.spec; }
  [[nodiscard]] Result<Generation> start_generation(std::uint32_t number);
  Result<void> drain();
  Result<void> start_churn();
  Result<void> end_churn();
  Result<void> make_faults();
  [[nodiscard]] std::vector<double> restart_shares();
  [[nodiscard]] double share_done(const Load& load) const;
  Result<void> wait_for_share(const Load& load, double share);
  Result<void> restart();
  Result<void> collect(bool all);
  void note_usage(const nlohmann::json& bye);
  void report(const Load& load) const {
    if (on_progress_) {
      on_progress_({measured_.restarts, load.begun(), load.lost()});
    }
  }

  Measurement measured_;
  const OnProgress& on_progress_;
  std::optional<Link> link_;
  ServerOptions options_;
  std::unique_ptr<Stage> stage_;
  std::optional<Generation> churn_;
  std::mt19937_64 random_;
  std::optional<Generation> current_;
  std::vector<Generation> leaving_;
  std::map<std::uint32_t, std::int64_t> cut_over_;
  std::int64_t begun_ = 0;
  std::int64_t draining_ns_ = 0;
};

Result<Generation> Experiment::start_generation(std::uint32_t number) {
  options_.generation = number;
  auto generation = stage_->start(options_, *link_);
  if (!generation) {
    return generation;
  }
  if (auto ready = generation->wait_ready(ready_bound); !ready) {
    return tl::unexpected(ready.error());
  }
  return generation;
}

/// How much of the work is done, 0 to 1.
double Experiment::share_done(const Load& load) const {
  if (spec().connections != 0) {
    return static_cast<double>(load.begun()) / static_cast<double>(spec().connections);
  }
  return static_cast<double>(now_ns() - begun_) / static_cast<double>(spec().duration_ns);
}

Result<void> Experiment::wait_for_share(const Load& load, double share) {
  while (share_done(load) < share && !load.done()) {
    if (interrupted()) {
      return error("interrupted");
    }
    if (auto collected = collect(false); !collected) {
      return collected;
    }
    report(load);
    pause_ns(poll_interval);
  }
  return {};
}

/// Reads messages of the leaving generations and reaps those that have ended.
Result<void> Experiment::collect(bool all) {
  const auto bound = now_ns() + (all ? drain_bound : 0);
  do {
    for (auto& old : leaving_) {
      if (old.done()) {
        continue;
      }
      auto event = old.event(now_ns());
      if (!event) {
        return tl::unexpected(event.error());
      }
      if (!*event) {
        continue;
      }
      if ((*event)->json.value("event", "") != "bye") {
        return error(fmt::format("generation {}: '{}' instead of 'bye'", old.number(),
                                 (*event)->json.value("event", "")));
      }
      note_usage((*event)->json);
      measured_.cut_short += (*event)->json.value("cut_short", 0U);
      old.said_bye();
    }
    std::erase_if(leaving_, [](Generation& old) { return old.done() && old.gone(); });
    if (!all || leaving_.empty()) {
      return {};
    }
    pause_ns(poll_interval);
  } while (now_ns() < bound && !interrupted());
  return error(interrupted() ? "interrupted" : "an old generation did not end");
}

/// The resources of a process at its end.
void Experiment::note_usage(const nlohmann::json& bye) {
  measured_.most_descriptors =
      std::max(measured_.most_descriptors, bye.value("descriptors", std::int64_t{0}));
  measured_.most_rss_kb = std::max(measured_.most_rss_kb, bye.value("rss_kb", std::int64_t{0}));
}

/// Tells the current generation to retire its listeners, and waits until it has.
Result<void> Experiment::drain() {
  if (auto told = current_->tell({{"do", "drain"}}); !told) {
    return told;
  }
  const auto bound = now_ns() + drain_bound;
  while (now_ns() < bound) {
    auto event = current_->event(now_ns() + poll_interval);
    if (!event) {
      return tl::unexpected(event.error());
    }
    if (interrupted()) {
      return error("interrupted");
    }
    if (!*event) {
      continue;
    }
    const auto& said = (*event)->json;
    const auto name = said.value("event", "");
    if (name == "may-close") {
      cut_over_[current_->number()] = said.value("cut_over", std::int64_t{0});
      ++measured_.outcomes[said.value("outcome", "?")];
      measured_.left += said.value("left", std::uint64_t{0});
      return {};
    }
  }
  return error(fmt::format("generation {}: drain took more than {} s", current_->number(),
                           drain_bound / one_second));
}

Result<void> Experiment::start_churn() {
  if (!spec().churn) {
    return {};
  }
  auto options = options_;
  options.generation = static_cast<std::uint32_t>(spec().seed);
  auto churn = Generation::spawn(options, link_->server_ns(), "churn");
  if (!churn) {
    return tl::unexpected(churn.error());
  }
  if (auto ready = churn->wait_ready(ready_bound); !ready) {
    return ready;
  }
  churn_.emplace(std::move(*churn));
  return {};
}

Result<void> Experiment::end_churn() {
  if (!churn_) {
    return {};
  }
  if (auto told = churn_->tell({{"do", "drain"}}); !told) {
    return error(fmt::format("churn: {}", told.error().text));
  }
  auto said = churn_->event(now_ns() + ready_bound);
  if (!said || !*said) {
    return error("churn: ended without a message");
  }
  note_usage((*said)->json);
  measured_.stray = (*said)->json.value("accepted", std::uint64_t{0});
  measured_.churn_changes = (*said)->json.value("changes", std::uint64_t{0});
  churn_.reset();
  return {};
}

Result<void> Experiment::make_faults() {
  if (!spec().faults) {
    return {};
  }
  if (random_() % 2 == 0) {
    auto options = options_;
    options.generation = current_->number() + 1;
    options.mode = reuseport::Mode::standby;
    auto newcomer = Generation::spawn(options, link_->server_ns());
    if (!newcomer) {
      return tl::unexpected(newcomer.error());
    }
    if (random_() % 2 == 0) {
      if (auto ready = newcomer->wait_ready(ready_bound); !ready) {
        return ready;
      }
    }
    ++measured_.dead_newcomers;  // SIGKILL at the end of this block
  }
  if (random_() % 3 == 0) {
    kill(current_->pid(), SIGSTOP);
    pause_ns(static_cast<std::int64_t>(random_() % 200) * one_ms);
    kill(current_->pid(), SIGCONT);
    ++measured_.stalls;
  }
  return {};
}

/// When to restart, as fractions of the work. Evenly: in the middle of equal parts, so that there
/// is load before and after every restart.
std::vector<double> Experiment::restart_shares() {
  std::vector<double> shares(spec().restarts);
  for (unsigned i = 0; i < spec().restarts; ++i) {
    shares[i] = spec().random_restarts ? std::uniform_real_distribution<double>{0, 1}(random_)
                                       : (i + 0.5) / spec().restarts;
  }
  std::sort(shares.begin(), shares.end());
  return shares;
}

/// One restart: the newcomer listens on all its sockets before the old generation drains.
Result<void> Experiment::restart() {
  if (auto faults = make_faults(); !faults) {
    return faults;
  }
  auto fresh = start_generation(current_->number() + 1);
  if (!fresh) {
    return tl::unexpected(fresh.error());
  }
  const auto began = now_ns();
  auto done = stage_->before_drain();
  if (done) {
    done = drain();
  }
  if (done) {
    done = stage_->after_drain();
  }
  if (!done) {
    return done;
  }
  measured_.may_close.add(now_ns() - began);
  draining_ns_ += now_ns() - began;
  leaving_.push_back(std::move(*current_));
  current_ = std::move(*fresh);
  ++measured_.restarts;
  return {};
}

Result<Measurement> Experiment::run() {
  auto link = Link::make(spec().link, spec().device, spec().seed);
  if (!link) {
    return tl::unexpected(link.error());
  }
  link_.emplace(std::move(*link));
  measured_.device = link_->device();

  options_.method = spec().method;
  options_.udp = spec().udp;
  options_.address = link_->server_address();
  options_.port = server_port;
  options_.listeners = spec().listeners;
  stage_ = Stage::make(spec().method);
  if (auto prepared = stage_->prepare(*link_, options_); !prepared) {
    return tl::unexpected(prepared.error());
  }
  auto first = start_generation(1);
  if (!first) {
    return tl::unexpected(first.error());
  }
  current_.emplace(std::move(*first));

  if (auto opened = stage_->open(*link_); !opened) {
    return tl::unexpected(opened.error());
  }

  if (auto started = start_churn(); !started) {
    return tl::unexpected(started.error());
  }

  LoadSpec load_spec;
  load_spec.udp = spec().udp;
  load_spec.address = link_->server_address();
  load_spec.port = server_port;
  load_spec.rate = spec().rate;
  load_spec.concurrency = spec().concurrency;
  load_spec.timeout_ns = spec().timeout_ns;
  load_spec.seed = spec().seed;
  auto load = Load::start(load_spec, link_->client_ns());
  if (!load) {
    return tl::unexpected(load.error());
  }

  RunRecord record;
  record.before = sample_machine();
  begun_ = now_ns();
  for (const double share : restart_shares()) {
    auto done = wait_for_share(**load, share);
    if (done && (*load)->done()) {
      break;
    }
    if (done) {
      done = restart();
    }
    if (!done) {
      return tl::unexpected(done.error());
    }
    report(**load);
  }
  if (auto rest = wait_for_share(**load, 1.0); !rest) {
    return tl::unexpected(rest.error());
  }
  record.elapsed_ns = now_ns() - begun_ - draining_ns_;
  auto seen = (*load)->finish(cut_over_);
  record.after = sample_machine();
  if (auto ended = end_churn(); !ended) {
    return tl::unexpected(ended.error());
  }
  measured_.elapsed_ns = now_ns() - begun_;
  if (!seen) {
    return tl::unexpected(seen.error());
  }
  measured_.load = *seen;
  const auto& load_seen = measured_.load;
  record.planned_ns =
      spec().connections == 0 ? spec().duration_ns
      : spec().rate > 0
          ? static_cast<std::int64_t>(static_cast<double>(spec().connections) / spec().rate * 1e9)
          : 0;
  measured_.disturbed = disturbance(record, load_seen, spec().limits);
  measured_.p999.push_back(load_seen.lost() * 1000 > load_seen.connections
                               ? lost_too_many
                               : load_seen.connect.quantile(0.999));
  if (auto gone = collect(true); !gone) {
    return tl::unexpected(gone.error());
  }
  return measured_;
}

}  // namespace

void interrupt_experiments() noexcept {
  interrupted_flag = true;
}
bool interrupted() noexcept {
  return interrupted_flag;
}

Result<Measurement> run_experiment(const ExperimentSpec& spec, const OnProgress& on_progress) {
  return Experiment{spec, on_progress}.run();
}

}  // namespace lab
