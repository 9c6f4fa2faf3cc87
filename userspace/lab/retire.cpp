// SPDX-License-Identifier: Apache-2.0
#include "retire.hpp"

#include <algorithm>
#include <chrono>
#include <string>

#include <reuseport/drain.hpp>
#include <reuseport/listener.hpp>
#include "host/sockdiag.hpp"
#include "host/steer.hpp"

#include "clock.hpp"

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

  CloseAll(std::vector<Fd> listeners, Accept accept, First first, std::string really)
      : listeners_(std::move(listeners)),
        accept_(std::move(accept)),
        first_(first),
        really_(std::move(really)) {}

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
    turn.done = nlohmann::json{{"really", really_}, {"swept", swept}};
    return turn;
  }

 private:
  std::vector<Fd> listeners_;
  Accept accept_;
  First first_;
  std::string really_;
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
      if (auto added = drain_.add(listener.get()); !added) {
        return error(added.error().message());
      }
    }
    if (auto began = drain_.start(); !began) {
      return error(began.error().message());
    }
    for (auto& listener : listeners_) {
      static_cast<void>(listener.release());  // the drain closes them
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
      const auto info = reuseport::Listener{fd}.info();
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
    const auto& report = drain_.report();
    const auto left = report.left();
    const bool unsettled = report.outcome == reuseport::Outcome::deadline_hit &&
                           report.method == reuseport::Method::option && !cut_over_;
    turn.done = nlohmann::json{
        {"really", words(reuseport::to_string(report.outcome)) + (unsettled ? ", unsettled" : "")},
        {"method", reuseport::to_string(report.method)},
        {"left", left.handshakes.value_or(0) + left.queued.value_or(0)},
    };
  }

  std::vector<Fd> listeners_;
  Accept accept_;
  reuseport::Drain drain_{};
  bool started_ = false;
  bool cut_over_ = false;
};

/// `steer`: the library's eBPF program sends everything new to the listeners that stay; the old
/// ones are closed when nothing is half-open or queued there.
class Steered final : public Retire {
 public:
  Steered(std::vector<Fd> listeners, std::vector<Fd> stay, Accept accept)
      : listeners_(std::move(listeners)), stay_(std::move(stay)), accept_(std::move(accept)) {}

  Result<Turn> turn() override {
    Turn turn;
    if (!program_) {
      if (auto began = start(); !began) {
        return tl::unexpected(began.error());
      }
      turn.cut_over_ns = now_ns();
    }
    if (now_ns() >= renew_at_) {
      if (auto renewed = program_->renew(); !renewed) {
        return error(renewed.error().message());
      }
      renew_at_ = now_ns() + one_second;
    }
    accept_each();
    auto left = watch_->step(*diag_);
    if (!left) {
      return error(left.error().message());
    }
    if (!left->none() && now_ns() < give_up_at_) {
      turn.next_ns = now_ns() + poll_ns;
      return turn;
    }
    accept_each();
    for (auto& listener : listeners_) {
      listener.reset();
    }
    if (auto stopped = program_->stop(stay_.front().get()); !stopped) {
      return error(stopped.error().message());
    }
    stay_.clear();
    turn.done = nlohmann::json{{"really", left->none() ? "steered" : "deadline hit"},
                               {"left", left->handshakes + left->queued}};
    return turn;
  }

 private:
  static constexpr std::int64_t poll_ns = 5 * one_ms;

  void accept_each() {
    for (auto& listener : listeners_) {
      accept_(listener.get());
    }
  }

  Result<void> start() {
    std::vector<int> stay;
    for (const auto& fd : stay_) {
      stay.push_back(fd.get());
    }
    auto diag = reuseport::SockDiag::open();
    if (!diag) {
      return error(diag.error().message());
    }
    diag_.emplace(std::move(*diag));
    std::vector<reuseport::DiagSocket> old;
    if (auto found = find_own(old); !found) {
      return found;
    }
    if (stay.empty()) {
      return error("steer: the newcomer's listeners did not come along");
    }
    auto program =
        reuseport::SteerProgram::start(reuseport::Protocol::tcp, listeners_.front().get(), stay);
    if (!program) {
      return error(program.error().message());
    }
    program_.emplace(std::move(*program));
    // One is kept to take the program off by. No longer: a copy here would outlive its owner's.
    stay_.resize(1);
    renew_at_ = now_ns() + one_second;
    give_up_at_ = now_ns() + 30 * one_second;
    auto watch = reuseport::QueueWatch::start(*diag_, std::move(old));
    if (!watch) {
      return error(watch.error().message());
    }
    watch_.emplace(std::move(*watch));
    return {};
  }

  /// This generation's listeners as sock_diag knows them.
  Result<void> find_own(std::vector<reuseport::DiagSocket>& own) {
    auto all = diag_->listeners(reuseport::Protocol::tcp);
    if (!all) {
      return error(all.error().message());
    }
    for (const auto& listener : listeners_) {
      auto cookie = reuseport::socket_cookie(listener.get());
      if (!cookie) {
        return error(cookie.error().message());
      }
      for (const auto& socket : *all) {
        if (socket.cookie == *cookie) {
          own.push_back(socket);
        }
      }
    }
    return {};
  }

  std::vector<Fd> listeners_;
  std::vector<Fd> stay_;
  Accept accept_;
  std::optional<reuseport::SockDiag> diag_;
  std::optional<reuseport::SteerProgram> program_;
  std::optional<reuseport::QueueWatch> watch_;
  std::int64_t renew_at_ = 0;
  std::int64_t give_up_at_ = 0;
};

}  // namespace

std::unique_ptr<Retire> Retire::make(Method method, std::vector<Fd> listeners, std::vector<Fd> stay,
                                     Accept accept) {
  const auto close_all = [&](CloseAll::First first, std::string really) {
    return std::make_unique<CloseAll>(std::move(listeners), std::move(accept), first,
                                      std::move(really));
  };
  switch (method) {
    case Method::close: return close_all(CloseAll::First::nothing, "closed");
    case Method::migrate: return close_all(CloseAll::First::nothing, "closed, kernel migrates");
    case Method::sweep:
    case Method::qdisc_plug:
    case Method::syncookies:
    case Method::uds_rename: return close_all(CloseAll::First::sweep, "swept and closed");
    case Method::fd_pass:
    case Method::socket_server: return close_all(CloseAll::First::nothing, "left to the newcomer");
    case Method::steer:
      return std::make_unique<Steered>(std::move(listeners), std::move(stay), std::move(accept));
    case Method::listen_off: break;
  }
  return std::make_unique<LibraryDrain>(std::move(listeners), std::move(accept));
}

}  // namespace lab
