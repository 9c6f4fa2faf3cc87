// SPDX-License-Identifier: Apache-2.0
#include "served.hpp"

#include <fmt/format.h>

#include <utility>

#include "newcomer.hpp"

namespace reuseport::ctl {

Expected<Served> served_by(const ProcessPtr& server, bool reuseport_only) {
  Selection selection;
  selection.pid = server->pid();
  selection.reuseport_only = reuseport_only;
  auto view = look(selection, server);
  if (!view) {
    return tl::unexpected(view.error());
  }
  Processes processes;
  auto targets = take_selected(selection, *view, processes);
  if (!targets) {
    return tl::unexpected(targets.error());
  }
  std::erase_if(view->sockets, [&](const DiagSocket& s) { return !view->in_tree(s.inode); });
  return Served{std::move(*view), std::move(*targets)};
}

std::string lacks(const Served& old, const Served& now) {
  Processes processes;
  const Newcomers newcomers(now.view, old.targets, processes);
  for (const Target& t : old.targets) {
    const Successor successor = newcomers.of(t);
    if (successor.cover == Cover::none) {
      return fmt::format("does not serve {}{}{}", t.socket.local.str(),
                         successor.why.empty() ? "" : ": ", successor.why);
    }
  }
  return {};
}

}  // namespace reuseport::ctl
