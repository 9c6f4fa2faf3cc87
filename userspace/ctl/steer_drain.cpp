// SPDX-License-Identifier: Apache-2.0
// drain --method steer: for kernels without the option.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "drain.hpp"
#include "host/steer.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;

namespace {

constexpr auto poll_every = 20ms;
constexpr auto newcomers_every = 200ms;  // how often a dump looks for more of them

/// One address: its program, and who is in it.
struct Group {
  DiagSocket address;
  SteerProgram program;
  std::set<std::uint64_t> known;  // cookies of old and staying listeners
};

Outcome<Group> steer_address(const Target& old, DrainContext& context) {
  const auto others = others_at(old.socket, context.view, context.targets);
  std::vector<Target> stay;
  std::vector<int> fds;
  std::set<std::uint64_t> known;
  for (const DiagSocket* s : others) {
    auto target = take(*s, context.view.holders, {});
    if (!target) {
      return tl::unexpected(target.error());
    }
    fds.push_back(target->fd.get());
    known.insert(s->cookie);
    stay.push_back(std::move(*target));
  }
  for (const Target& t : context.targets) {
    known.insert(t.socket.cookie);
  }
  auto program = SteerProgram::start(old.socket.protocol, old.fd.get(), fds);
  if (!program) {
    return failed(program.error(), old.str());
  }
  return Group{old.socket, std::move(*program), std::move(known)};
}

/// Listeners that joined since: without this they would get nothing until the program is gone.
Done add_newcomers(SockDiag& diag, std::vector<Group>& groups) {
  for (Group& g : groups) {
    const auto now = diag.listeners(g.address.protocol, g.address.local.port);
    if (!now) {
      return failed(now.error());
    }
    for (const DiagSocket& s : *now) {
      if (!s.same_address(g.address) || s.v6only != g.address.v6only ||
          g.known.contains(s.cookie)) {
        continue;
      }
      const auto holders = find_holders({s.inode});
      if (!holders) {
        return failed(holders.error());
      }
      // one that is gone again, or still being set up, is looked at again next time
      const auto target = take(s, *holders, {});
      if (target && g.program.add(target->fd.get())) {
        g.known.insert(s.cookie);
      }
    }
  }
  return {};
}

/// Renews all leases; the address that has nobody left, if any.
Outcome<std::optional<std::string>> renew(std::vector<Group>& groups) {
  for (Group& g : groups) {
    const auto alive = g.program.renew();
    if (!alive) {
      return failed(alive.error());
    }
    if (*alive == 0) {
      return std::optional(g.address.local.str());
    }
  }
  return std::optional<std::string>{};
}

/// Any listener of the address that its owner still holds, to detach through.
Fd any_member(SockDiag& diag, const Group& g, const std::vector<Target>& old) {
  const auto now = diag.listeners(g.address.protocol, g.address.local.port);
  for (const DiagSocket& s : now ? *now : std::vector<DiagSocket>{}) {
    if (!s.same_address(g.address) || s.v6only != g.address.v6only ||
        std::any_of(old.begin(), old.end(),
                    [&](const Target& t) { return t.socket.cookie == s.cookie; })) {
      continue;
    }
    if (const auto holders = find_holders({s.inode})) {
      if (auto target = take(s, *holders, {})) {
        return std::move(target->fd);
      }
    }
  }
  return {};
}

/// Once the old listeners are closed.
Done detach(SockDiag& diag, std::vector<Group>& groups, const std::vector<Target>& old) {
  Done result;
  for (Group& g : groups) {
    const Fd via = any_member(diag, g, old);
    if (const auto ok = g.program.stop(via.get()); !ok && result) {
      result = failed(ok.error(), g.address.local.str());
    }
  }
  return result;
}

bool all_closed(const std::vector<Target>& targets) {
  return std::none_of(targets.begin(), targets.end(),
                      [](const Target& t) { return t.still_held(); });
}

}  // namespace

Outcome<DrainResult> drain_by_steering(DrainContext& context) {
  auto& targets = context.targets;
  DrainResult result;
  result.method = Method::steer;
  std::vector<DiagSocket> old;
  for (const Target& t : targets) {
    old.push_back(t.socket);
    result.listeners.push_back(
        {t.str(), t.socket.local.str(), t.socket.inode, {}, {}, 0, t.socket.queued, false});
  }

  auto diag = SockDiag::open();
  if (!diag) {
    return failed(diag.error());
  }
  std::vector<Group> groups;  // leaving this function detaches all of them
  for (const Target& t : targets) {
    if (std::any_of(groups.begin(), groups.end(), [&](const Group& g) {
          return g.address.same_address(t.socket) && g.address.v6only == t.socket.v6only;
        })) {
      continue;
    }
    auto group = steer_address(t, context);
    if (!group) {
      return tl::unexpected(group.error());
    }
    groups.push_back(std::move(*group));
  }
  for (Target& t : targets) {
    t.fd.reset();  // ours would keep them open when the server closes them
  }
  auto watch = QueueWatch::start(*diag, old);
  if (!watch) {
    return failed(watch.error());
  }

  // until nothing is left, then until the server has closed: the program is what keeps new
  // connections away, so it goes last
  bool told = false;
  auto next_look = Clock::now();
  auto renewed = Clock::now();
  for (;;) {
    const bool lapsed = !told && Clock::now() - renewed >= SteerProgram::lease;
    renewed = Clock::now();
    const auto nobody = renew(groups);
    if (!nobody) {
      return tl::unexpected(nobody.error());
    }
    if (lapsed) {
      // held up so long that the hash chose again: what came meanwhile counts as well
      watch = QueueWatch::start(*diag, old);
      if (!watch) {
        return failed(watch.error());
      }
      result.drained = false;
    }
    const bool closed = all_closed(targets);
    if (*nobody && !closed) {
      return failed(Failure(Exit::error,
                            fmt::format("the newcomer is gone: {} has no other listener", **nobody),
                            "the old server serves as before"));
    }
    if (Clock::now() >= next_look) {
      if (auto ok = add_newcomers(*diag, groups); !ok) {
        return tl::unexpected(ok.error());
      }
      next_look = Clock::now() + newcomers_every;
    }
    if (!result.drained) {
      const auto left = watch->step(*diag);
      if (!left) {
        return failed(left.error());
      }
      if (!closed) {
        result.handshakes = left->handshakes;
        result.queued = left->queued;
      }
      result.took = since(context.start);
      result.drained = left->none();
    }
    const bool late = Clock::now() >= context.deadline;
    if (closed && !result.drained) {
      Failure failure(Exit::error,
                      fmt::format("the server closed its listeners with {} left", result.left()));
      failure.detail = result.json();
      return failed(failure);
    }
    if (closed) {
      break;
    }
    if (!told && (result.drained || (late && context.options.at_deadline == AtDeadline::signal))) {
      context.out.end_progress();
      told = true;
      if (context.options.signal) {
        // the wait for the end comes after the program is off
        DrainOptions signal_only = context.options;
        signal_only.wait = false;
        DrainContext now{signal_only,    context.server, context.view,  targets,
                         context.waiter, context.out,    context.start, context.deadline};
        if (auto ok = finish(now, result); !ok) {
          return tl::unexpected(ok.error());
        }
        if (!result.drained) {
          break;
        }
      } else {
        context.out.note("drained; waiting for the server to close its listeners (no --signal)");
      }
    }
    if (late) {
      return failed(result.drained
                        ? Failure(Exit::deadline,
                                  "drained, but the server has not closed its listeners",
                                  "they get new connections again")
                        : deadline_failure(result, "the old listeners get new connections again"));
    }
    context.out.progress(progress_line(result, context.start));
    if (!context.waiter.wait(poll_every)) {
      context.out.end_progress();
      return failed(context.waiter.why());
    }
  }
  context.out.end_progress();
  if (auto ok = detach(*diag, groups, targets); !ok) {
    return tl::unexpected(ok.error());
  }
  if (!result.drained) {
    return failed(deadline_failure(result, "the signal was sent all the same"));
  }
  if (context.options.signal && context.options.wait && !result.ended) {
    // asked already: only wait
    while (!context.server.ended()) {
      if (Clock::now() >= context.deadline) {
        Failure failure(Exit::deadline,
                        fmt::format("process {} has not ended after {}", context.server.pid(),
                                    signal_name(*context.options.signal)),
                        "its listeners are closed");
        failure.detail = result.json();
        return failed(failure);
      }
      if (!context.waiter.wait(poll_every)) {
        return failed(Failure(Exit::error, "stopped; the signal was sent already"));
      }
    }
    result.ended = true;
  }
  return result;
}

}  // namespace reuseport::ctl
