// SPDX-License-Identifier: Apache-2.0
#include "server/retire.hpp"

#include <algorithm>
#include <chrono>
#include <string>

#include <reuseport/reuseport.hpp>

namespace lab {
namespace {

/// The library's names, for people: `swept_and_closed` as `swept and closed`.
std::string words(std::string_view name) {
  std::string text{name};
  std::replace(text.begin(), text.end(), '_', ' ');
  return text;
}

/// One turn does all: takes what is queued, if asked to, and closes.
class CloseAll final : public Retire {
 public:
  enum class First : std::uint8_t { nothing, sweep };

  CloseAll(std::vector<Fd> listeners, Accept accept, First first, std::string outcome)
      : listeners_(std::move(listeners)),
        accept_(std::move(accept)),
        first_(first),
        outcome_(std::move(outcome)) {}

  Result<Turn> turn() override {
    int swept = 0;
    for (auto& listener : listeners_) {
      if (first_ == First::sweep) {
        swept += accept_(listener.get());
      }
      listener.reset();
    }
    Turn turn;
    turn.cut_over_ns = now_ns();
    turn.done = nlohmann::json{{"outcome", outcome_}, {"swept", swept}};
    return turn;
  }

 private:
  std::vector<Fd> listeners_;
  Accept accept_;
  First first_;
  std::string outcome_;
};

/// `listen-off`: the library, with its fallbacks allowed.
class LibraryDrain final : public Retire {
 public:
  LibraryDrain(std::vector<Fd> listeners, Accept accept)
      : listeners_(std::move(listeners)), accept_(std::move(accept)) {}

  Result<Turn> turn() override {
    if (!started_) {
      if (auto began = start(); !began) {
        return tl::unexpected(began.error());
      }
    }
    Turn turn;
    for (;;) {
      look_settled(turn);
      const auto step = drain_.step();
      if (step.action == reuseport::Action::accept_more) {
        for (const int fd : step.fds) {
          accept_(fd);
        }
        continue;
      }
      if (step.action == reuseport::Action::done) {
        finish(turn);
        return turn;
      }
      turn.next_ns = std::chrono::nanoseconds{step.when.time_since_epoch()}.count();
      return turn;
    }
  }

 private:
  Result<void> start() {
    for (auto& listener : listeners_) {
      if (auto added = drain_.add(std::move(listener)); !added) {
        return error(added.error().message());
      }
    }
    if (auto began = drain_.start(); !began) {
      return error(began.error().message());
    }
    started_ = true;
    return {};
  }

  /// The instant from which the kernel promises that nothing new arrives.
  void look_settled(Turn& turn) {
    if (cut_over_ || drain_.report().method != reuseport::Method::option) {
      return;
    }
    const auto fds = drain_.open_fds();
    const bool settled = std::all_of(fds.begin(), fds.end(), [](int fd) {
      const auto info = reuseport::get_info(fd);
      return info && info->settled();
    });
    if (settled) {
      cut_over_ = true;
      turn.cut_over_ns = now_ns();
    }
  }

  void finish(Turn& turn) {
    if (!cut_over_) {
      turn.cut_over_ns = now_ns();
    }
    const auto report = drain_.report();
    const bool unsettled = report.outcome == reuseport::Outcome::deadline_hit &&
                           report.method == reuseport::Method::option && !cut_over_;
    turn.done = nlohmann::json{
        {"outcome", words(reuseport::to_string(report.outcome)) + (unsettled ? ", unsettled" : "")},
        {"method", reuseport::to_string(report.method)},
        {"left", report.left.handshakes.value_or(0) + report.left.queued.value_or(0)},
    };
  }

  std::vector<Fd> listeners_;
  Accept accept_;
  reuseport::Drain drain_{{.last_on = reuseport::LastOn::leave}};
  bool started_ = false;
  bool cut_over_ = false;
};

}  // namespace

std::unique_ptr<Retire> Retire::make(RestartMethod method, std::vector<Fd> listeners,
                                     Accept accept) {
  const auto close_all = [&](CloseAll::First first, std::string outcome) {
    return std::make_unique<CloseAll>(std::move(listeners), std::move(accept), first,
                                      std::move(outcome));
  };
  switch (method) {
    case RestartMethod::close: return close_all(CloseAll::First::nothing, "closed");
    case RestartMethod::migrate:
      return close_all(CloseAll::First::nothing, "closed, kernel migrates");
    case RestartMethod::sweep:
    case RestartMethod::qdisc_plug:
    case RestartMethod::syncookies:
    case RestartMethod::uds_rename: return close_all(CloseAll::First::sweep, "swept and closed");
    case RestartMethod::fd_pass:
    case RestartMethod::socket_server:
      return close_all(CloseAll::First::nothing, "left to the newcomer");
    case RestartMethod::listen_off: break;
  }
  return std::make_unique<LibraryDrain>(std::move(listeners), std::move(accept));
}

}  // namespace lab
