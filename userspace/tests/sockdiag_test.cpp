// SPDX-License-Identifier: Apache-2.0
#include "host/sockdiag.hpp"

#include <gtest/gtest.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/reuseport.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill(), which csignal lacks
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <sstream>

#include "host/attached_bpf.hpp"
#include "host/sockdiag_parse.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using test::address;
using test::open_client;
using test::open_listener;

std::uint64_t inode_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return st.st_ino;
}

class SockDiagTest : public test::NetNsTest {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max;  // 1024 are too few for what comes and goes
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    auto diag = SockDiag::open();
    ASSERT_TRUE(diag) << diag.error().message();
    diag_.emplace(std::move(*diag));
  }

  std::vector<DiagSocket> listeners(Protocol protocol, std::uint16_t port = 0) {
    auto found = diag_->listeners(protocol, port);
    EXPECT_TRUE(found) << found.error().message();
    return found ? *found : std::vector<DiagSocket>{};
  }

  std::optional<SockDiag> diag_;
};

/// A child that calls a function again and again, until this ends. An expectation that fails there
/// is a failure of the test.
class Churn {
 public:
  explicit Churn(const std::function<void()>& turn) : pid_(::fork()) {
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (!::testing::Test::HasFailure()) {
        turn();
      }
      ::_exit(1);
    }
    EXPECT_GT(pid_, 0);
  }
  ~Churn() {
    if (pid_ > 0) {
      EXPECT_EQ(::waitpid(pid_, nullptr, WNOHANG), 0) << "nothing came and went";
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Churn(const Churn&) = delete;
  Churn& operator=(const Churn&) = delete;
  Churn(Churn&&) = delete;
  Churn& operator=(Churn&&) = delete;

 private:
  pid_t pid_;
};

/// Closes and opens listeners on @p at, a hundred at a time: often enough during a dump.
std::function<void()> come_and_go(const test::Address& at) {
  const auto some = std::make_shared<std::vector<Fd>>(800);
  return [some, at, from = std::size_t{0}]() mutable {
    const std::span hundred = std::span(*some).subspan(from, 100);
    std::ranges::for_each(hundred, [](Fd& fd) { fd.reset(); });
    std::ranges::generate(hundred, [&] { return open_listener(at); });
    from = (from + hundred.size()) % some->size();
  };
}

/// How many of @p cookies are not in a dump.
std::size_t count_missing(const std::set<std::uint64_t>& cookies,
                          const std::vector<DiagSocket>& dump) {
  std::set<std::uint64_t> seen;
  for (const DiagSocket& s : dump) {
    EXPECT_TRUE(seen.insert(s.cookie).second) << "twice";
  }
  return static_cast<std::size_t>(
      std::ranges::count_if(cookies, [&](std::uint64_t cookie) { return !seen.contains(cookie); }));
}

TEST_F(SockDiagTest, none_in_a_new_namespace) {
  EXPECT_TRUE(listeners(Protocol::tcp).empty());
  EXPECT_TRUE(listeners(Protocol::udp).empty());
}

TEST_F(SockDiagTest, one_that_stays_is_never_missing_while_others_come_and_go) {
  constexpr int stay = 300;
  const Fd first = open_listener(address("127.0.0.1"));
  const auto at = test::local_address(first.get());
  std::vector<Fd> stable(stay);
  std::set<std::uint64_t> cookies;
  for (Fd& fd : stable) {
    fd = open_listener(at);
    cookies.insert(*socket_cookie(fd.get()));
  }
  const Churn others(come_and_go(at));
  std::size_t missing = 0;
  for (int turn = 0; turn < 60; turn++) {
    missing += count_missing(cookies, listeners(Protocol::tcp, at.port()));
  }
  EXPECT_EQ(missing, 0U);
}

// The kernel's table of listeners has fewer than 32,768 buckets, by address and port.
TEST_F(SockDiagTest, nor_while_those_of_another_port_in_its_bucket_do) {
  constexpr int many = 800;
  Fd first;
  do {
    first = open_listener(address("127.0.0.1"));
  } while (test::local_address(first.get()).port() < 0x8000 + 1024);
  const auto at = test::local_address(first.get());
  std::vector<Fd> stable(many);
  std::set<std::uint64_t> cookies;
  for (Fd& fd : stable) {
    fd = open_listener(address("127.0.0.1", at.port() ^ 0x8000));
    cookies.insert(*socket_cookie(fd.get()));
  }
  const Churn others(come_and_go(at));
  std::size_t missing = 0;
  for (int turn = 0; turn < 200; turn++) {
    missing += count_missing(cookies, listeners(Protocol::tcp));
  }
  EXPECT_EQ(missing, 0U);
}

// A container may have a small table of connections (net.ipv4.tcp_child_ehash_entries, Linux 6.1).
// In this one all share a few buckets.
TEST_F(SockDiagTest, nor_a_connection_while_others_open_and_close) {
  constexpr int stay = 400;
  constexpr std::size_t churn = 300;
  if (test::set_sysctl("net.ipv4.tcp_child_ehash_entries", "8")) {
    SetUp();  // a namespace has the table that the one which made it says
  }
  const Fd listener = open_listener(address("127.0.0.1"));
  const auto at = test::local_address(listener.get());
  const auto accept_one = [&] {
    return test::accept_one(listener.get(), std::chrono::seconds(20));
  };
  std::vector<Fd> stable;
  std::set<std::uint64_t> cookies;
  for (int i = 0; i < stay; i++) {
    stable.push_back(open_client(at));
    stable.push_back(accept_one());
    ASSERT_TRUE(stable.back().valid());
    cookies.insert(*socket_cookie(stable.back().get()));
  }
  std::vector<Fd> some(churn);
  std::size_t i = 0;
  const Churn others([&] {
    Fd& one = some[(i++ * 37) % churn];
    const linger reset{.l_onoff = 1, .l_linger = 0};  // its port is free at once
    (void)::setsockopt(one.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    one.reset();
    one = open_client(at);
    (void)accept_one();
  });
  std::size_t missing = 0;
  for (int turn = 0; turn < 300; turn++) {
    const auto dump = diag_->connections();
    ASSERT_TRUE(dump) << dump.error().message();
    missing += count_missing(cookies, *dump);
  }
  EXPECT_EQ(missing, 0U);
}

/// The port id of the one sock_diag socket of this network namespace.
std::uint32_t port_of_the_netlink_socket() {
  std::ifstream file("/proc/thread-self/net/netlink");
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string address;
    int protocol = 0;
    std::uint32_t port = 0;
    words >> address >> protocol >> port;
    if (protocol == NETLINK_SOCK_DIAG && port != 0) {
      return port;
    }
  }
  return 0;
}

TEST_F(SockDiagTest, what_the_kernel_did_not_send_is_passed_over) {
  const Fd a = open_listener(address("127.0.0.1"));
  nlmsghdr done{};
  done.nlmsg_len = sizeof(done);
  done.nlmsg_type = NLMSG_DONE;
  done.nlmsg_flags = NLM_F_MULTI;
  done.nlmsg_seq = 1;
  done.nlmsg_pid = port_of_the_netlink_socket();
  ASSERT_NE(done.nlmsg_pid, 0U);
  sockaddr_nl to{};
  to.nl_family = AF_NETLINK;
  to.nl_pid = done.nlmsg_pid;
  const Fd liar(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  ASSERT_EQ(::sendto(liar.get(), &done, sizeof(done), 0,
                     static_cast<const sockaddr*>(static_cast<const void*>(&to)), sizeof(to)),
            static_cast<ssize_t>(sizeof(done)))
      << std::strerror(errno);
  EXPECT_EQ(listeners(Protocol::tcp).size(), 1U);
}

TEST_F(SockDiagTest, tcp_listeners_with_address_inode_cookie_queue) {
  const Fd a = open_listener(address("127.0.0.1"), SOCK_STREAM, 0, 7);
  const auto at = test::local_address(a.get());
  const Fd b = open_listener(at);
  const Fd c = open_listener(address("::1"));
  const Fd other = open_listener(address("127.0.0.1"));

  EXPECT_EQ(listeners(Protocol::tcp).size(), 4U);
  const auto same = listeners(Protocol::tcp, at.port());
  ASSERT_EQ(same.size(), 2U);
  EXPECT_TRUE(same[0].same_address(same[1]));
  EXPECT_LT(same[0].inode, same[1].inode);
  const auto& first = same[0].inode == inode_of(a.get()) ? same[0] : same[1];
  EXPECT_EQ(first.inode, inode_of(a.get()));
  EXPECT_EQ(first.cookie, *socket_cookie(a.get()));
  EXPECT_EQ(first.local.str(), "127.0.0.1:" + std::to_string(at.port()));
  EXPECT_EQ(first.queued, 0U);
  EXPECT_EQ(first.queue_max, 7U);
  EXPECT_EQ(first.uid, ::geteuid());
  EXPECT_EQ(first.state, TCP_LISTEN);

  const Fd alone = open_listener(address("127.0.0.3", at.port()));
  const Fd client = open_client(test::local_address(alone.get()));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  ASSERT_TRUE(test::wait_queued(alone.get(), 1));
  const auto all = listeners(Protocol::tcp, at.port());
  const auto it = std::find_if(all.begin(), all.end(), [&](const DiagSocket& s) {
    return s.inode == inode_of(alone.get());
  });
  ASSERT_NE(it, all.end());
  EXPECT_EQ(it->queued, 1U);
}

TEST_F(SockDiagTest, v6only_is_told_apart_from_dual_stack) {
  const Fd dual = open_listener(address("::"));
  const Fd only(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  ASSERT_EQ(::setsockopt(only.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)), 0);
  const auto any = address("::");
  ASSERT_EQ(::bind(only.get(), any.get(), any.len), 0);
  ASSERT_EQ(::listen(only.get(), 1), 0);
  for (const DiagSocket& s : listeners(Protocol::tcp)) {
    EXPECT_EQ(s.v6only, s.inode == inode_of(only.get())) << s.local.str();
  }
}

TEST_F(SockDiagTest, udp_unconnected_only) {
  const Fd server = open_listener(address("127.0.0.1"), SOCK_DGRAM);
  const Fd unbound(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Fd connected = open_client(test::local_address(server.get()), SOCK_DGRAM);
  ASSERT_EQ(::send(connected.get(), "x", 1, 0), 1);

  std::vector<DiagSocket> found;
  EXPECT_TRUE(test::eventually([&] {  // what was sent need not have come yet
    found = listeners(Protocol::udp);
    return found.empty() || found[0].queued > 0;
  }));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].inode, inode_of(server.get()));
  EXPECT_EQ(found[0].protocol, Protocol::udp);
}

TEST_F(SockDiagTest, mode_and_group_exactly_where_the_kernel_has_them) {
  const bool in_kernel = test::expected_support() == "supported";
  const Fd a = open_listener(address("127.0.0.1"));
  const Fd b = open_listener(test::local_address(a.get()));
  const Fd u = open_listener(address("::1"), SOCK_DGRAM);
  for (const Protocol protocol : {Protocol::tcp, Protocol::udp}) {
    for (const DiagSocket& s : listeners(protocol)) {
      ASSERT_EQ(s.info.has_value(), in_kernel) << s.local.str();
      if (s.info) {
        EXPECT_EQ(Mode{s.info->mode}, Mode::on);
        EXPECT_EQ(s.info->group_on, protocol == Protocol::tcp ? 2U : 1U);
      }
    }
  }
  if (in_kernel) {
    ASSERT_TRUE(set_mode(a.get(), Mode::off));
    const auto now = listeners(Protocol::tcp);
    ASSERT_EQ(now.size(), 2U);
    EXPECT_EQ(now[0].info->group_id, now[1].info->group_id);
    for (const DiagSocket& s : now) {
      EXPECT_EQ(Mode{s.info->mode}, s.inode == inode_of(a.get()) ? Mode::off : Mode::on);
      EXPECT_EQ(s.info->group_off, 1U);
    }
  }
}

// TCP_DEFER_ACCEPT keeps a request half-open until the client sends something.
class HalfOpenTest : public SockDiagTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(HalfOpenTest, requests_of_an_address) {
  const std::string ip = GetParam();
  const Fd server = open_listener(address(ip == "::ffff" ? "::" : ip));
  const int seconds = 30;
  ASSERT_EQ(::setsockopt(server.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds)),
            0);
  const auto all = listeners(Protocol::tcp);
  ASSERT_EQ(all.size(), 1U);
  ASSERT_TRUE(diag_->half_open(all[0].local));
  EXPECT_TRUE(diag_->half_open(all[0].local)->empty());

  const char* to = ip == "0.0.0.0" || ip == "::ffff" ? "127.0.0.1"
                   : ip == "::"                      ? "::1"
                                                     : ip.c_str();
  const auto port = test::local_address(server.get()).port();
  const Fd one = open_client(address(to, port));
  const Fd two = open_client(address(to, port));
  ASSERT_EQ(test::connect_result(one.get()), 0);
  ASSERT_EQ(test::connect_result(two.get()), 0);
  const auto open = diag_->half_open(all[0].local);
  ASSERT_TRUE(open) << open.error().message();
  ASSERT_EQ(open->size(), 2U);
  EXPECT_NE((*open)[0].cookie, (*open)[1].cookie);

  ASSERT_EQ(::send(one.get(), "x", 1, 0), 1);
  ASSERT_TRUE(test::accept_one(server.get(), std::chrono::seconds(2)).valid());
  const auto later = diag_->half_open(all[0].local);
  ASSERT_EQ(later->size(), 1U);
  EXPECT_TRUE(std::any_of(open->begin(), open->end(), [&](const DiagSocket& s) {
    return s.cookie == later->front().cookie;
  })) << "the cookie of a request stays the same";

  Endpoint elsewhere = all[0].local;
  elsewhere.port++;
  EXPECT_TRUE(diag_->half_open(elsewhere)->empty());
}

INSTANTIATE_TEST_SUITE_P(Families, HalfOpenTest,
                         ::testing::Values("127.0.0.1", "0.0.0.0", "::1", "::", "::ffff"));

TEST_F(SockDiagTest, half_open_of_one_address_leaves_out_the_others) {
  const Fd a = open_listener(address("127.0.0.1"));
  const auto port = test::local_address(a.get()).port();
  const Fd b = open_listener(address("127.0.0.2", port));
  const int seconds = 30;
  for (const Fd* fd : {&a, &b}) {
    ASSERT_EQ(::setsockopt(fd->get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds)), 0);
  }
  const Fd client = open_client(address("127.0.0.2", port));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  for (const DiagSocket& s : listeners(Protocol::tcp)) {
    EXPECT_EQ(diag_->half_open(s.local)->size(), s.inode == inode_of(b.get()) ? 1U : 0U);
  }
}

TEST_F(SockDiagTest, query_finds_each_member_of_a_group_by_cookie) {
  std::vector<Fd> group;
  group.push_back(open_listener(address("127.0.0.1")));
  const auto at = test::local_address(group[0].get());
  for (int i = 0; i < 7; i++) {
    group.push_back(open_listener(at));
  }
  const Fd udp = open_listener(address("::1"), SOCK_DGRAM);
  auto known = listeners(Protocol::tcp);
  const auto known_udp = listeners(Protocol::udp);
  known.insert(known.end(), known_udp.begin(), known_udp.end());
  ASSERT_EQ(known.size(), 9U);
  for (const DiagSocket& s : known) {
    const auto now = diag_->query(s);
    ASSERT_TRUE(now) << now.error().message();
    ASSERT_TRUE(*now);
    EXPECT_EQ((*now)->inode, s.inode);
    EXPECT_EQ((*now)->cookie, s.cookie);
  }
  const auto gone = inode_of(group[3].get());
  group[3].reset();
  for (const DiagSocket& s : known) {
    const auto now = diag_->query(s);
    ASSERT_TRUE(now);
    EXPECT_EQ(now->has_value(), s.inode != gone);
  }
}

// Replies as bytes, for what no available kernel sends.
class ReplyTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t seq = 5;
  static constexpr std::uint32_t portid = 77;

  template <typename T>
  void put(const T& value) {
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof(value));
  }
  void header(std::uint16_t type, std::uint16_t flags, std::size_t payload) {
    put(nlmsghdr{static_cast<std::uint32_t>(NLMSG_HDRLEN + payload), type, flags, seq, portid});
  }
  void socket(std::uint16_t flags, std::uint32_t attr_len = 0) {
    inet_diag_msg msg{};
    msg.idiag_family = AF_INET;
    msg.idiag_inode = 4711;
    header(SOCK_DIAG_BY_FAMILY, flags, sizeof(msg) + attr_len);
    put(msg);
  }
  detail::Reply parse() {
    out_.clear();
    state_ = {Protocol::tcp, &out_, 0};
    return detail::parse_reply(bytes_, seq, portid, state_);
  }

  std::vector<std::byte> bytes_;
  std::vector<DiagSocket> out_;
  detail::ReplyState state_;
};

TEST_F(ReplyTest, interrupted_dump_is_told) {
  socket(NLM_F_MULTI | NLM_F_DUMP_INTR);
  EXPECT_EQ(parse(), detail::Reply::interrupted);
}

TEST_F(ReplyTest, error_at_the_end_of_a_dump) {
  header(NLMSG_DONE, NLM_F_MULTI, sizeof(int));
  put(int{-ENOENT});
  EXPECT_EQ(parse(), detail::Reply::failed);
  EXPECT_EQ(state_.errnum, ENOENT);
}

TEST_F(ReplyTest, attribute_of_a_later_and_of_an_earlier_kernel) {
  reuseport_listen_info info{};
  info.mode = REUSEPORT_LISTEN_STANDBY;
  info.handshakes = 3;
  info.group_off = 9;
  socket(NLM_F_MULTI, NLA_HDRLEN + sizeof(info) + 8);
  put(nlattr{NLA_HDRLEN + sizeof(info) + 8, INET_DIAG_REUSEPORT});
  put(info);
  put(std::uint64_t{0xffffffffffffffffU});
  EXPECT_EQ(parse(), detail::Reply::more);
  ASSERT_EQ(out_.size(), 1U);
  ASSERT_TRUE(out_[0].info);
  EXPECT_EQ(Mode{out_[0].info->mode}, Mode::standby);
  EXPECT_EQ(out_[0].info->handshakes, 3U);
  EXPECT_EQ(out_[0].info->group_off, 9U);

  bytes_.clear();
  socket(NLM_F_MULTI, NLA_HDRLEN + 4);
  put(nlattr{NLA_HDRLEN + 4, INET_DIAG_REUSEPORT});
  put(std::uint32_t{REUSEPORT_LISTEN_OFF});
  EXPECT_EQ(parse(), detail::Reply::more);
  EXPECT_EQ(Mode{out_[0].info->mode}, Mode::off);
  EXPECT_EQ(out_[0].info->handshakes, 0U);
}

TEST_F(ReplyTest, every_truncation_is_safe) {
  socket(NLM_F_MULTI, NLA_HDRLEN + 32);
  put(nlattr{NLA_HDRLEN + 32, INET_DIAG_REUSEPORT});
  put(reuseport_listen_info{});
  header(NLMSG_DONE, NLM_F_MULTI, sizeof(int));
  put(int{0});
  const auto whole = bytes_;
  EXPECT_EQ(parse(), detail::Reply::done);
  for (std::size_t n = 0; n < whole.size(); n++) {
    bytes_.assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
    bytes_.shrink_to_fit();
    EXPECT_NE(parse(), detail::Reply::done) << n;
  }
}

TEST_F(ReplyTest, a_length_that_libmnl_takes_for_negative) {
  put(nlmsghdr{0x99000000U, SOCK_DIAG_BY_FAMILY, 0, seq, portid});
  EXPECT_EQ(parse(), detail::Reply::failed);
  EXPECT_EQ(state_.errnum, EBADMSG);
}

TEST_F(ReplyTest, foreign_messages_are_refused) {
  header(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, 4);
  put(std::uint32_t{0});
  EXPECT_EQ(parse(), detail::Reply::failed);
  EXPECT_EQ(state_.errnum, EBADMSG);
}

}  // namespace
}  // namespace reuseport
