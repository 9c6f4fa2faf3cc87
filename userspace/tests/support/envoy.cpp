// SPDX-License-Identifier: Apache-2.0
// envoy -c FILE [OPTION...]: a stand-in for Envoy, to test its restarts. It has the options,
// signals, admin interface and hot restart that matter for a restart, with the names from Envoy's
// documentation (operations/cli, operations/admin, arch_overview/operations), and serves HTTP/1.1
// with its process id as the answer. Like Envoy it
//
//   - ends at once on TERM, with all its connections, and when its parent process ends (hot
//   restart)
//   - in a hot restart shares listeners with its parent by address and worker, takes over the admin
//     interface, tells the parent to drain and, --parent-shutdown-time-s later, to end
//   - leaves a base id unusable for hot restarts if it dies while it initializes
//   - drains a connection with the next response on it
//
// The last line of the program's own file selects its behaviour, so that "a new Envoy was
// installed" is a copy with another last line:
//
//   STANDIN version=V [no-version] [dies] [dies-late] [never-ready] [wrong-admin=ADDRESS]
//
//   no-version   lacks --hot-restart-version
//   dies         before it serves
//   dies-late    in a hot restart, as soon as the parent was told to drain
//   never-ready  always answers 503; in a hot restart it has not requested the listeners yet
//   wrong-admin  writes ADDRESS to --admin-address-path
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "support/http.hpp"

namespace reuseport::test::envoy {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

[[noreturn]] void die(const std::string& why) {
  std::cerr << why << "\n";
  std::_Exit(1);
}

/// The last line of this program's file.
struct Build {
  std::string version = "11.104";
  std::set<std::string> does;
  std::string wrong_admin;

  static Build read() {
    Build build;
    std::ifstream file("/proc/self/exe", std::ios::binary);
    constexpr std::streamoff enough = 512;
    file.seekg(-enough, std::ios::end);
    const std::string tail{std::istreambuf_iterator<char>(file), {}};
    const auto at = tail.rfind("STANDIN ");
    std::istringstream words(at == std::string::npos ? "" : tail.substr(at));
    for (std::string word; words >> word;) {
      if (word.starts_with("version=")) {
        build.version = word.substr(std::strlen("version="));
      } else if (word.starts_with("wrong-admin=")) {
        build.wrong_admin = word.substr(std::strlen("wrong-admin="));
      } else {
        build.does.insert(word);
      }
    }
    return build;
  }
};

struct Options {
  std::map<std::string, std::string> given;

  Options(int argc, char** argv) {
    static const std::set<std::string> switches = {"--use-dynamic-base-id", "--disable-hot-restart",
                                                   "--hot-restart-version"};
    static const std::set<std::string> with_value = {
        "--config-path",   "--concurrency",        "--base-id",      "--base-id-path",
        "--restart-epoch", "--admin-address-path", "--drain-time-s", "--parent-shutdown-time-s",
        "--log-path"};
    for (int i = 1; i < argc; i++) {
      const std::string name = std::string(argv[i]) == "-c" ? "--config-path" : argv[i];
      const bool value = with_value.contains(name);
      if ((!value && !switches.contains(name)) || (value && i + 1 == argc)) {
        die("PARSE ERROR: Argument: " + name);
      }
      if (!given.emplace(name, value ? argv[++i] : "").second) {
        die("PARSE ERROR: Argument already set: " + name);
      }
    }
    if (has("--use-dynamic-base-id") && number("--restart-epoch", 0) > 0) {
      die("error: cannot use --restart-epoch with --use-dynamic-base-id");
    }
  }
  [[nodiscard]] bool has(const std::string& name) const { return given.contains(name); }
  [[nodiscard]] std::string text(const std::string& name) const {
    const auto it = given.find(name);
    return it == given.end() ? "" : it->second;
  }
  [[nodiscard]] int number(const std::string& name, int otherwise) const {
    return has(name) ? std::atoi(text(name).c_str()) : otherwise;
  }
};

Fd listen_at(const json& socket_address, bool reuseport) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(socket_address.at("port_value").get<std::uint16_t>());
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
      (reuseport && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0) ||
      ::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0 ||
      ::listen(fd.get(), 4096) != 0) {
    die(std::string("cannot bind: ") + std::strerror(errno));
  }
  return fd;
}

std::string name_of(int fd) {
  sockaddr_in at{};
  socklen_t length = sizeof(at);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &length);
  return "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
}

// --- hot restart: one datagram per request, over abstract Unix sockets named by base id and epoch
// ---

struct Peer {
  sockaddr_un at{};
  socklen_t length = 0;
  Peer(int base, const std::string& role, int epoch) {
    at.sun_family = AF_UNIX;
    const std::string name =
        "reuseport_stand_in_" + std::to_string(base) + "_" + role + "_" + std::to_string(epoch % 3);
    name.copy(at.sun_path + 1, sizeof(at.sun_path) - 2);
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&at); }
};

Fd domain_socket(const Peer& at) {
  Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return ::bind(fd.get(), at.get(), at.length) == 0 ? std::move(fd) : Fd();
}

void send_to(int fd, const Peer& to, const std::string& text, int pass = -1) {
  msghdr message{};
  iovec data{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  message.msg_name = const_cast<sockaddr_un*>(&to.at);
  message.msg_namelen = to.length;
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (pass >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &pass, sizeof(pass));
  }
  (void)::sendmsg(fd, &message, MSG_NOSIGNAL);
}

struct Received {
  std::string text;
  Fd fd;
};
Received receive(int from) {
  std::array<char, 256> text{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  iovec data{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t n = ::recvmsg(from, &message, MSG_CMSG_CLOEXEC);
  Received got{{text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))}, {}};
  if (const cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    got.fd.reset(fd);
  }
  return got;
}

/// The state that all processes of a base id share: a file beside the configuration. The first one
/// recreates it.
class SharedMemory {
 public:
  SharedMemory(const std::string& config, int base, int epoch, const std::string& version)
      : path_(config + ".shared." + std::to_string(base)) {
    if (epoch == 0) {
      ::unlink(path_.c_str());
      write(version, false);
    }
    std::string theirs;
    bool initializing = false;
    if (!(std::ifstream(path_) >> theirs >> initializing)) {
      die("cannot open shared memory region " + path_);
    }
    if (theirs != version) {
      die("Hot restart version mismatch!");
    }
    if (initializing) {
      die("previous envoy process is still initializing");
    }
    write(version, true);
  }
  void initialized(const std::string& version) const { write(version, false); }

 private:
  void write(const std::string& version, bool initializing) const {
    std::ofstream(path_) << version << " " << initializing << std::flush;
  }
  std::string path_;
};

// --- the server ---

class Server {
 public:
  Server(Options options, Build build)
      : options_(std::move(options)),
        build_(std::move(build)),
        epoch_(options_.number("--restart-epoch", 0)),
        hot_restart_(!options_.has("--disable-hot-restart")) {}

  int run() {
    open_signals();
    reopen_log();
    json config;
    std::ifstream file(options_.text("--config-path"));
    if (!(file >> config)) {
      die("cannot read the configuration");
    }
    if (hot_restart_) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      choose_base();
      shared_.emplace(options_.text("--config-path"), base_, epoch_, build_.version);
    }
    if (epoch_ > 0) {
      send_to(as_child_.get(), parent(), "shutdown-admin");
      if (receive(as_child_.get()).text != "admin-is-shut-down") {
        die("no answer from the parent");
      }
    }
    open_admin(config.at("admin").at("address").at("socket_address"));
    if (does("dies")) {
      die("told to die");
    }
    if (!(does("never-ready") && epoch_ > 0)) {
      open_listeners(config.at("static_resources").at("listeners"));
      live_ = !does("never-ready");
      if (epoch_ > 0) {
        send_to(as_child_.get(), parent(), "drain");
        if (does("dies-late")) {
          die("told to die late");
        }
        terminate_parent_at_ = in(options_.number("--parent-shutdown-time-s", 900));
      }
      if (live_ && shared_) {
        shared_->initialized(build_.version);
      }
    }
    for (;;) {
      serve_once();
    }
  }

 private:
  struct Listener {
    std::string name;
    int worker = 0;
    Fd fd;
  };

  [[nodiscard]] bool does(const std::string& what) const { return build_.does.contains(what); }
  static Clock::time_point in(int seconds) { return Clock::now() + std::chrono::seconds(seconds); }
  [[nodiscard]] Peer parent() const { return {base_, "parent", epoch_ - 1}; }

  void open_signals() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int s : {SIGTERM, SIGHUP, SIGUSR1}) {
      ::sigaddset(&set, s);
    }
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }

  void reopen_log() {
    if (options_.has("--log-path")) {
      log_.close();
      log_.open(options_.text("--log-path"), std::ios::app);
      log_ << ::getpid() << "\n" << std::flush;
    }
  }

  void choose_base() {
    std::random_device random;
    base_ = options_.number("--base-id", 0);
    const bool dynamic = options_.has("--use-dynamic-base-id");
    for (int tries = 0; tries < 100 && !as_parent_; tries++) {
      base_ = dynamic ? static_cast<int>(random() % 1'000'000) : base_;
      as_parent_ = domain_socket({base_, "parent", epoch_});
      if (!dynamic) {
        break;
      }
    }
    as_child_ = domain_socket({base_, "child", epoch_});
    if (!as_parent_ || !as_child_) {
      die("unable to bind domain socket with base_id " + std::to_string(base_));
    }
    if (options_.has("--base-id-path")) {
      std::ofstream(options_.text("--base-id-path")) << base_;
    }
  }

  void open_admin(const json& at) {
    admin_ = listen_at(at, false);
    if (options_.has("--admin-address-path")) {
      std::ofstream(options_.text("--admin-address-path"))
          << (build_.wrong_admin.empty() ? name_of(admin_.get()) : build_.wrong_admin);
    }
  }

  void open_listeners(const json& listeners) {
    for (const json& l : listeners) {
      const json& at = l.at("address").at("socket_address");
      const std::string name = "127.0.0.1:" + std::to_string(at.at("port_value").get<int>());
      for (int worker = 0; worker < options_.number("--concurrency", 2); worker++) {
        Fd fd;
        if (epoch_ > 0) {
          send_to(as_child_.get(), parent(), "pass " + name + " " + std::to_string(worker));
          fd = receive(as_child_.get()).fd;
        }
        listeners_.push_back({name, worker, fd ? std::move(fd) : listen_at(at, true)});
      }
    }
  }

  void serve_once() {
    std::vector<pollfd> polls = {
        {signals_.get(), POLLIN, 0}, {admin_.get(), POLLIN, 0}, {as_parent_.get(), POLLIN, 0}};
    const std::size_t fixed = polls.size();
    for (const Listener& l : listeners_) {
      polls.push_back({l.fd.get(), POLLIN, 0});
    }
    const std::size_t listening = listeners_.size();
    for (const auto& c : connections_) {
      polls.push_back({c->fd(), POLLIN, 0});
    }
    constexpr int tick = 20;
    ::poll(polls.data(), polls.size(), tick);
    for (std::size_t i = fixed + listening; i < polls.size(); i++) {
      if (polls[i].revents != 0) {
        serve(*connections_[i - fixed - listening]);
      }
    }
    std::erase_if(connections_, [](const auto& c) { return c->done(); });
    for (std::size_t i = 0; i < listening; i++) {
      if ((polls[fixed + i].revents & POLLIN) != 0) {
        accept_from(listeners_[i].fd.get(), false);
      }
    }
    if ((polls[1].revents & POLLIN) != 0) {
      accept_from(admin_.get(), true);
    }
    take_signals();
    if ((polls[2].revents & POLLIN) != 0) {
      answer_child();
    }
    if (Clock::now() >= stop_listeners_at_) {
      listeners_.clear();
    }
    if (Clock::now() >= terminate_parent_at_) {
      send_to(as_child_.get(), parent(), "terminate");
      terminate_parent_at_ = Clock::time_point::max();
    }
  }

  void accept_from(int listener, bool admin) {
    for (;;) {
      Fd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!fd) {
        return;
      }
      connections_.push_back(std::make_unique<Connection>(std::move(fd), admin));
    }
  }

  void take_signals() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      if (info.ssi_signo == SIGTERM) {
        std::_Exit(0);  // cuts what there is
      }
      if (info.ssi_signo == SIGUSR1) {
        reopen_log();
      }
    }
  }

  void answer_child() {
    const Peer child(base_, "child", epoch_ + 1);
    std::istringstream words(receive(as_parent_.get()).text);
    std::string what;
    words >> what;
    if (what == "shutdown-admin") {
      admin_.reset();
      if (terminate_parent_at_ != Clock::time_point::max()) {
        send_to(as_child_.get(), parent(), "terminate");  // never three of them
        terminate_parent_at_ = Clock::time_point::max();
      }
      send_to(as_parent_.get(), child, "admin-is-shut-down");
    } else if (what == "pass") {
      std::string name;
      int worker = 0;
      words >> name >> worker;
      const auto it = std::ranges::find_if(
          listeners_, [&](const Listener& l) { return l.name == name && l.worker == worker; });
      send_to(as_parent_.get(), child, "socket", it == listeners_.end() ? -1 : it->fd.get());
    } else if (what == "drain") {
      listeners_.clear();
      draining_ = true;
    } else if (what == "terminate") {
      std::_Exit(0);
    }
  }

  void serve(Connection& c) {
    while (const auto request = c.request()) {
      if (!c.admin()) {
        c.respond(200, std::to_string(::getpid()), draining_);
      } else {
        const auto [status, text] = administer(*request);
        c.respond(status, text, true);
      }
    }
  }

  std::pair<int, std::string> administer(const Request& request) {
    const auto query = request.target.find('?');
    const std::string path = request.target.substr(0, query);
    const std::string how = query == std::string::npos ? "" : request.target.substr(query + 1);
    if ((path == "/drain_listeners" || path == "/quitquitquit") && request.method != "POST") {
      return {405, "Method POST must be used\n"};
    }
    if (path == "/ready") {
      return {live_ ? 200 : 503, live_ ? "LIVE\n" : "PRE_INITIALIZING\n"};
    }
    if (path == "/hot_restart_version") {
      return {200, hot_restart_ ? build_.version : "disabled"};
    }
    if (path == "/server_info") {
      return {200, json{{"state", live_ ? "LIVE" : "PRE_INITIALIZING"},
                        {"command_line_options",
                         {{"base_id", std::to_string(base_)}, {"restart_epoch", epoch_}}}}
                       .dump()};
    }
    if (path == "/stats") {
      const auto open =
          std::ranges::count_if(connections_, [](const auto& c) { return !c->admin(); });
      return {200, "server.total_connections: " + std::to_string(open) + "\n"};
    }
    if (path == "/drain_listeners") {
      return drain(how);
    }
    if (path == "/quitquitquit") {
      std::_Exit(0);
    }
    return {404, "invalid path\n"};
  }

  std::pair<int, std::string> drain(const std::string& how) {
    const bool graceful = how.find("graceful") != std::string::npos;
    const bool skip_exit = how.find("skip_exit") != std::string::npos;
    if (!graceful && skip_exit) {
      return {400, "skip_exit requires graceful\n"};
    }
    if (!graceful) {
      listeners_.clear();
    } else if (!draining_) {
      draining_ = true;
      stop_listeners_at_ =
          skip_exit ? Clock::time_point::max() : in(options_.number("--drain-time-s", 600));
    }
    return {200, "OK\n"};
  }

  Options options_;
  Build build_;
  int epoch_;
  bool hot_restart_;
  int base_ = 0;
  bool live_ = false;
  bool draining_ = false;
  Fd signals_;
  std::ofstream log_;
  Fd as_parent_;
  Fd as_child_;
  std::optional<SharedMemory> shared_;
  Fd admin_;
  std::vector<Listener> listeners_;
  std::vector<std::unique_ptr<Connection>> connections_;
  Clock::time_point stop_listeners_at_ = Clock::time_point::max();
  Clock::time_point terminate_parent_at_ = Clock::time_point::max();
};

}  // namespace
}  // namespace reuseport::test::envoy

int main(int argc, char** argv) try {
  using namespace reuseport::test::envoy;
  const Options options(argc, argv);
  const Build build = Build::read();
  if (options.has("--hot-restart-version")) {
    if (build.does.contains("no-version")) {
      die("PARSE ERROR: Couldn't find match for argument: --hot-restart-version");
    }
    std::cerr << (options.has("--disable-hot-restart") ? "disabled" : build.version);
    return 0;
  }
  return Server(options, build).run();
} catch (const std::exception& e) {
  std::fputs(e.what(), stderr);
  return 1;
}
