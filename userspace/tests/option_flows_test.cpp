// SPDX-License-Identifier: Apache-2.0
// UDP flows by BPF: who was answered stays with the socket that answered.
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/reuseport.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "option/object.hpp"
#include "option/option.hpp"
#include "support/scope.hpp"

namespace reuseport::option {
namespace {

using namespace reuseport::test;
using namespace std::chrono_literals;

/// A datagram to @p to by the IPv4 address @p source, of this machine: IP_PKTINFO.
void send_by(const Fd& fd, const Address& to, std::uint32_t source) {
  char byte = 'y';
  iovec data{&byte, 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(in_pktinfo))> control{};
  msghdr message{};
  message.msg_name = const_cast<sockaddr*>(to.get());
  message.msg_namelen = to.len;
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = IPPROTO_IP;
  head->cmsg_type = IP_PKTINFO;
  head->cmsg_len = CMSG_LEN(sizeof(in_pktinfo));
  in_pktinfo info{};
  info.ipi_spec_dst.s_addr = htonl(source);
  std::memcpy(CMSG_DATA(head), &info, sizeof(info));
  ASSERT_EQ(::sendmsg(fd.get(), &message, 0), 1) << std::strerror(errno);
}

std::string name_of_program(std::uint32_t id) {
  const Fd program(bpf_prog_get_fd_by_id(id));
  bpf_prog_info info{};
  std::uint32_t len = sizeof(info);
  return bpf_obj_get_info_by_fd(program.get(), &info, &len) == 0
             ? static_cast<const char*>(info.name)
             : "";
}

/// The program that the groups ask.
std::string name_of_chooser() {
  const Fd map(bpf_obj_get((std::string(pins) + "/maps/datagram_chooser").c_str()));
  const std::uint32_t zero = 0;
  std::uint32_t id = 0;
  return bpf_map_lookup_elem(map.get(), &zero, &id) == 0 ? name_of_program(id) : "";
}

class FlowsTest : public ScopeTest {
 protected:
  void SetUp() override {
    ScopeTest::SetUp();
    if (!IsSkipped()) {
      enable_flows();
    }
  }

  /// enable() with flows; takes in the sockets of udp().
  Enabled enable_flows(const FlowOptions& options = {}) {
    auto done = enable(dir_.get(), -1, GroupSize::normal, finder(), options);
    EXPECT_TRUE(done) << done.error().message();
    return done ? *done : Enabled{};
  }
  static Fd pinned_map(const std::string& name) {
    return Fd(bpf_obj_get((std::string(pins) + "/maps/" + name).c_str()));
  }
  /// CAP_DAC_READ_SEARCH, which finds a cgroup by its id.
  static void drop_dac_read_search() {
    __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> sets{};
    ASSERT_EQ(::syscall(SYS_capget, &head, sets.data()), 0);
    sets[0].effective &= ~(1U << CAP_DAC_READ_SEARCH);
    ASSERT_EQ(::syscall(SYS_capset, &head, sets.data()), 0);
  }
  /// After it, no flow counts as known for longer than since then.
  template <typename Enable>
  static void expect_recorded_anew(Enable enable) {
    const auto start = std::chrono::steady_clock::now();
    enable();
    const auto flows = flows_here();
    ASSERT_TRUE(flows && *flows);
    EXPECT_LE((*flows)->recorded_for, std::chrono::steady_clock::now() - start);
  }
  void take_in() {
    const auto ok = adopt_newcomers(finder());
    EXPECT_TRUE(ok) << ok.error().message();
  }
  FindDescriptors finder() {
    return [this](const std::vector<std::uint64_t>& cookies) {
      std::vector<Fd> found(cookies.size());
      for (std::size_t i = 0; i < cookies.size(); i++) {
        for (const int fd : servers_) {
          if (cookie(fd) == cookies[i]) {
            found[i].reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
          }
        }
      }
      return found;
    };
  }
  static std::uint64_t cookie(int fd) {
    std::uint64_t cookie = 0;
    socklen_t len = sizeof(cookie);
    return ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) == 0 ? cookie : 0;
  }
  /// A UDP socket of a server, not taken in.
  Fd bind_udp(const Address& at) {
    Fd fd(::socket(at.family(), SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int one = 1;
    const int zero = 0;
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    if (at.family() == AF_INET6) {
      EXPECT_EQ(::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)), 0);
    }
    EXPECT_EQ(::bind(fd.get(), at.get(), at.len), 0) << std::strerror(errno);
    servers_.push_back(fd.get());
    return fd;
  }
  Fd udp(const Address& at) {
    Fd fd = bind_udp(at);
    take_in();
    return fd;
  }
  void close(Fd& server) {
    std::erase(servers_, server.get());
    server.reset();
  }

  /// The client's datagram, taken by one of @p servers; its number, -1 where none got it.
  static int send_to(const Fd& client, const std::vector<const Fd*>& servers,
                     Address* from = nullptr) {
    EXPECT_EQ(::send(client.get(), "x", 1, 0), 1) << std::strerror(errno);
    return take(servers, from);
  }
  static int take(const std::vector<const Fd*>& servers, Address* from = nullptr) {
    std::vector<pollfd> ready;
    ready.reserve(servers.size());
    for (const Fd* s : servers) {
      ready.push_back({s->get(), POLLIN, 0});
    }
    if (::poll(ready.data(), ready.size(), 5000) < 1) {
      return -1;
    }
    for (std::size_t i = 0; i < servers.size(); i++) {
      Address peer;
      peer.len = sizeof(peer.storage);
      char byte = 0;
      if (::recvfrom(servers[i]->get(), &byte, 1, 0, reinterpret_cast<sockaddr*>(&peer.storage),
                     &peer.len) >= 0) {
        if (from != nullptr) {
          *from = peer;
        }
        return static_cast<int>(i);
      }
    }
    return -1;
  }
  /// A datagram and its answer, by the socket that got it; which.
  static int exchange(const Fd& client, const std::vector<const Fd*>& servers) {
    Address from;
    const int who = send_to(client, servers, &from);
    if (who >= 0) {
      EXPECT_EQ(
          ::sendto(servers[static_cast<std::size_t>(who)]->get(), "y", 1, 0, from.get(), from.len),
          1)
          << std::strerror(errno);
      pollfd answer{client.get(), POLLIN, 0};
      char byte = 0;
      EXPECT_EQ(::poll(&answer, 1, 5000), 1);
      EXPECT_EQ(::recv(client.get(), &byte, 1, 0), 1) << std::strerror(errno);
    }
    return who;
  }
  /// A client that has exchanged twice; its flow is confirmed.
  static Fd client_of(const Address& to, const std::vector<const Fd*>& servers,
                      int* who = nullptr) {
    Fd client = open_client(to, SOCK_DGRAM);
    const int first = exchange(client, servers);
    EXPECT_EQ(exchange(client, servers), first);
    if (who != nullptr) {
      *who = first;
    }
    return client;
  }
  static std::vector<Fd> clients_of(const Address& to, const std::vector<const Fd*>& servers,
                                    std::size_t count) {
    std::vector<Fd> clients(count);
    for (Fd& each : clients) {
      each = client_of(to, servers);
    }
    return clients;
  }
  /// How many of their next datagrams each of @p servers gets.
  static std::vector<int> spread_flows(const std::vector<Fd>& clients,
                                       const std::vector<const Fd*>& servers) {
    std::vector<int> got(servers.size());
    for (const Fd& each : clients) {
      const int who = exchange(each, servers);
      EXPECT_GE(who, 0);
      got[static_cast<std::size_t>(std::max(who, 0))]++;
    }
    return got;
  }
  static std::chrono::milliseconds known_for(const Fd& server) {
    const auto flows = flows_here();
    EXPECT_TRUE(flows && *flows);
    return flows && *flows ? (*flows)->known_for.at(cookie(server.get())) : -1ms;
  }
  static std::optional<std::size_t> live(const Fd& server) {
    const auto flows = flows_here();
    EXPECT_TRUE(flows) << flows.error().message();
    if (!flows || !*flows || !(*flows)->of.contains(cookie(server.get()))) {
      return std::nullopt;
    }
    return (*flows)->of.at(cookie(server.get()));
  }

 private:
  std::vector<int> servers_;
};

/// On a kernel without the option: the modes are by BPF.
class StockFlows : public FlowsTest {};
/// On one that has it: only the flows are.
class PatchedFlows : public FlowsTest {};

struct Way {
  const char* name;
  const char* bound;
  const char* to;
};
class FlowsOf : public FlowsTest, public ::testing::WithParamInterface<Way> {};

// By each way that an answer may be recorded: its address known, or left to the kernel; IPv4 by a
// dual-stack socket.
TEST_P(FlowsOf, old_flows_stay_and_new_ones_go_to_the_newcomer) {
  const Fd old = udp(address(GetParam().bound));
  const std::uint16_t port = local_address(old.get()).port();
  const Address to = address(GetParam().to, port);
  const std::vector<Fd> before = clients_of(to, {&old}, 20);
  EXPECT_EQ(live(old), 20U);

  const Fd fresh = udp(address(GetParam().bound, port));
  EXPECT_EQ(spread_flows(before, {&old, &fresh}), (std::vector<int>{20, 0})) << "both ON";
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(spread_flows(before, {&old, &fresh}), (std::vector<int>{20, 0}));
  const std::vector<Fd> after = clients_of(to, {&old, &fresh}, 20);
  EXPECT_EQ(spread_flows(after, {&old, &fresh}), (std::vector<int>{0, 20}));
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(spread_flows(before, {&old, &fresh}), (std::vector<int>{20, 0}));
  EXPECT_EQ(live(old), 20U);
  EXPECT_EQ(live(fresh), 20U);
  EXPECT_TRUE(eventually([&] { return (get_info(old).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  EXPECT_EQ(get_info(old).handshakes, 0U);
}

INSTANTIATE_TEST_SUITE_P(Ways, FlowsOf,
                         ::testing::Values(Way{"ipv4", "127.0.0.1", "127.0.0.1"},
                                           Way{"ipv6", "::1", "::1"},
                                           Way{"any_ipv4", "0.0.0.0", "127.0.0.1"},
                                           Way{"any_ipv6", "::", "::1"},
                                           Way{"ipv4_by_dual_stack", "::", "127.0.0.1"}),
                         [](const auto& way) { return way.param.name; });

// One answer is enough, for a client that is in the middle of its handshake.
TEST_F(FlowsTest, one_answer_makes_a_flow) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd client = open_client(to, SOCK_DGRAM);
  ASSERT_EQ(exchange(client, {&old}), 0);
  const Fd silent = open_client(to, SOCK_DGRAM);
  ASSERT_EQ(send_to(silent, {&old}), 0) << "not answered";
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(exchange(client, {&old, &fresh}), 0);
  EXPECT_EQ(exchange(silent, {&old, &fresh}), 1);
}

// A server on the wildcard address that says by which it answers: two flows of one client.
TEST_F(FlowsTest, the_address_of_an_answer_tells_flows_apart) {
  const Fd old = udp(address("0.0.0.0"));
  const std::uint16_t port = local_address(old.get()).port();
  const Address one = address("127.0.0.1", port);
  const Address two = address("127.0.0.2", port);
  const Fd client(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Address own = address("127.0.0.1");
  ASSERT_EQ(::bind(client.get(), own.get(), own.len), 0);
  const Address peer = local_address(client.get());
  send_by(old, peer, 0x7f000001);
  const Fd fresh = udp(address("0.0.0.0", port));
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  const auto to = [&](const Address& at) {
    EXPECT_EQ(::sendto(client.get(), "x", 1, 0, at.get(), at.len), 1);
    return take({&old, &fresh});
  };
  EXPECT_EQ(to(one), 0);
  EXPECT_EQ(to(two), 1);
  send_by(fresh, peer, 0x7f000002);
  EXPECT_EQ(to(one), 0);
  EXPECT_EQ(to(two), 1);
}

// However a datagram is sent, udp_sendmsg() has it: several at once, and one cut into segments.
TEST_F(FlowsTest, every_way_to_send_counts) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd many = open_client(to, SOCK_DGRAM);
  const Fd cut = open_client(to, SOCK_DGRAM);
  const auto message_to = [](Address& at, iovec& data) {
    msghdr m{};
    m.msg_name = &at.storage;
    m.msg_namelen = at.len;
    m.msg_iov = &data;
    m.msg_iovlen = 1;
    return m;
  };
  std::array<char, 20> bytes{};
  iovec data{bytes.data(), bytes.size()};
  Address first = local_address(many.get());
  mmsghdr batch{message_to(first, data), 0};
  ASSERT_EQ(::sendmmsg(old.get(), &batch, 1, 0), 1);
  Address second = local_address(cut.get());
  msghdr segmented = message_to(second, data);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(std::uint16_t))> control{};
  segmented.msg_control = control.data();
  segmented.msg_controllen = control.size();
  cmsghdr* head = CMSG_FIRSTHDR(&segmented);
  head->cmsg_level = SOL_UDP;
  head->cmsg_type = UDP_SEGMENT;
  head->cmsg_len = CMSG_LEN(sizeof(std::uint16_t));
  const std::uint16_t segment = 10;
  std::memcpy(CMSG_DATA(head), &segment, sizeof(segment));
  ASSERT_EQ(::sendmsg(old.get(), &segmented, 0), 20) << std::strerror(errno);
  EXPECT_EQ(live(old), 2U);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(send_to(many, {&old, &fresh}), 0);
  EXPECT_EQ(send_to(cut, {&old, &fresh}), 0);
}

// Three generations, each with flows that live.
TEST_F(FlowsTest, three_generations) {
  std::vector<Fd> generations;
  std::vector<std::vector<Fd>> clients;
  Address to = address("127.0.0.1");
  for (int i = 0; i < 3; i++) {
    generations.push_back(udp(to));
    to = local_address(generations[0].get());
    if (i > 0) {
      ASSERT_EQ(set_mode(generations[static_cast<std::size_t>(i) - 1], REUSEPORT_LISTEN_STANDBY),
                0);
    }
    clients.push_back(clients_of(to, {&generations.back()}, 10));
  }
  const std::vector<const Fd*> all = {generations.data(), &generations[1], &generations[2]};
  for (int round = 0; round < 3; round++) {
    EXPECT_EQ(spread_flows(clients[0], all), (std::vector<int>{10, 0, 0}));
    EXPECT_EQ(spread_flows(clients[1], all), (std::vector<int>{0, 10, 0}));
    EXPECT_EQ(spread_flows(clients[2], all), (std::vector<int>{0, 0, 10}));
  }
  // the first one ends with flows left: they go on with the newest, and stay there
  close(generations[0]);
  const std::vector<const Fd*> two = {&generations[1], &generations[2]};
  EXPECT_EQ(spread_flows(clients[0], two), (std::vector<int>{0, 10}));
  EXPECT_EQ(spread_flows(clients[1], two), (std::vector<int>{10, 0}));
}

// The newcomer dies: the old one has its own flows all the time, and gets the others.
TEST_F(FlowsTest, the_newcomer_dies) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const auto before = clients_of(to, {&old}, 5);
  Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  const auto after = clients_of(to, {&old, &fresh}, 5);
  EXPECT_EQ(live(fresh), 5U);
  close(fresh);
  EXPECT_EQ(spread_flows(before, {&old}), (std::vector<int>{5}));
  EXPECT_EQ(spread_flows(after, {&old}), (std::vector<int>{5}));
  EXPECT_EQ(live(old), 10U);
}

// Silent for longer than the idle time: a new flow.
TEST_F(FlowsTest, the_idle_time_passes) {
  enable_flows({4s, {}});
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const auto clients = clients_of(to, {&old}, 3);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  const auto until = std::chrono::steady_clock::now() + 9s;
  while (std::chrono::steady_clock::now() < until) {
    EXPECT_EQ(exchange(clients[0], {&old, &fresh}), 0) << "not silent";
    ::poll(nullptr, 0, 20);
  }
  EXPECT_EQ(live(old), 1U);
  EXPECT_EQ(exchange(clients[1], {&old, &fresh}), 1);
  EXPECT_EQ(exchange(clients[2], {&old, &fresh}), 1);
  EXPECT_EQ(exchange(clients[1], {&old, &fresh}), 1);
}

// Who makes his address up sends once from each: he sees no answer. Real flows stay, new ones too.
TEST_F(FlowsTest, made_up_addresses_push_nothing_out) {
  enable_flows({1h, {}});  // a slow machine takes minutes
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const auto before = clients_of(to, {&old}, 20);
  const Fd forger(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  std::vector<Fd> meanwhile;
  constexpr std::uint32_t forged = 150'000;  // more than twice the table of unconfirmed flows
  for (std::uint32_t i = 0; i < forged; i++) {
    send_by(forger, to, 0x7f000000U + 0x10000U + i);
    Address from;
    ASSERT_EQ(take({&old}, &from), 0);
    ASSERT_EQ(::sendto(old.get(), "y", 1, 0, from.get(), from.len), 1);
    if (i % 10'000 == 0) {
      meanwhile.push_back(client_of(to, {&old}));
    }
  }
  const auto flows = flows_here();
  ASSERT_TRUE(flows && *flows);
  EXPECT_EQ((*flows)->full, 0U);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(spread_flows(before, {&old, &fresh}), (std::vector<int>{20, 0}));
  EXPECT_EQ(spread_flows(meanwhile, {&old, &fresh}), (std::vector<int>{15, 0}));
}

// Room for 1024, for one user half of it: those that have it keep it; the others are counted, and
// live as long as they are not silent.
TEST_F(FlowsTest, a_full_table) {
  ASSERT_TRUE(disable());
  enable_flows({{}, 1024});
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const auto first = clients_of(to, {&old}, 500);
  EXPECT_EQ((*flows_here())->full, 0U);
  const auto began = std::chrono::steady_clock::now();
  const auto more = clients_of(to, {&old}, 100);
  const auto known = known_for(old);
  EXPECT_LE(known, std::chrono::steady_clock::now() - began) << "not all before are known";
  EXPECT_GE((*flows_here())->full, 88U);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(spread_flows(first, {&old, &fresh}), (std::vector<int>{500, 0}));
  EXPECT_EQ(spread_flows(more, {&old, &fresh}), (std::vector<int>{100, 0}));
  EXPECT_EQ(live(old), 600U);
}

// Places of flows that are over are given to others.
TEST_F(FlowsTest, a_full_table_empties) {
  ASSERT_TRUE(disable());
  enable_flows({300ms, 1024});
  const Fd server = udp(address("127.0.0.1"));
  const Address to = local_address(server.get());
  for (int round = 0; round < 4; round++) {
    const auto clients = clients_of(to, {&server}, 400);
    ::poll(nullptr, 0, 400);
  }
  EXPECT_EQ((*flows_here())->full, 0U);
}

// A member that connects takes nothing from others, also not what was its flow.
TEST_F(FlowsTest, a_server_that_connects) {
  const Fd a = udp(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd client = client_of(to, {&a});
  const Fd peer = client_of(to, {&a});
  const Fd b = udp(to);
  EXPECT_EQ(exchange(client, {&a, &b}), 0);
  const Address at = local_address(peer.get());
  ASSERT_EQ(::connect(a.get(), at.get(), at.len), 0);
  take_in();  // notes that it is connected
  EXPECT_EQ(exchange(client, {&a, &b}), 1);
  EXPECT_EQ(send_to(peer, {&a, &b}), 0);
}

// In the same cgroup, on the same port of another address, and with the victim's address in what it
// sends: a stranger takes no flow, for it is of another group.
TEST_F(FlowsTest, a_stranger_takes_no_flow) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd client = client_of(to, {&old});
  const Fd stranger = udp(address("127.0.0.2", to.port()));
  const Address peer = local_address(client.get());
  send_by(stranger, peer, 0x7f000001);
  send_by(stranger, peer, 0x7f000002);
  EXPECT_EQ(live(stranger), 2U);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(exchange(client, {&old, &fresh, &stranger}), 0);
}

// What a newcomer answers before it is taken in counts from then on.
TEST_F(FlowsTest, flows_from_before_a_socket_is_taken_in) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd fresh = bind_udp(to);
  std::vector<Fd> clients;
  while (clients.size() < 10) {  // the kernel's own choice
    int who = -1;
    Fd client = client_of(to, {&old, &fresh}, &who);
    if (who == 1) {
      clients.push_back(std::move(client));
    }
  }
  EXPECT_FALSE(live(fresh)) << "not known yet";
  take_in();
  EXPECT_EQ(live(fresh), 10U);
  const Fd third = udp(to);
  ASSERT_EQ(set_mode(fresh, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(spread_flows(clients, {&old, &fresh, &third}), (std::vector<int>{0, 10, 0}));
}

// Nothing is recorded for who did not ask; asked later, it is for all cgroups that are enabled.
TEST_F(StockFlows, asked_for_later_and_changed) {
  ASSERT_TRUE(disable());
  EXPECT_FALSE(enable_here().flows);
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  EXPECT_FALSE(records_flows());
  EXPECT_FALSE(live(old));
  Fd client = client_of(to, {&old});
  const Enabled done = enable_flows({5s, 2048});
  EXPECT_TRUE(done.flows);
  EXPECT_FALSE(done.new_namespace);
  EXPECT_EQ(live(old), 0U);
  client = client_of(to, {&old});
  EXPECT_EQ(live(old), 1U);

  EXPECT_TRUE(enable_here().flows) << "they stay";
  enable_flows({7s, {}});
  const auto now = flows_here();
  ASSERT_TRUE(now && *now);
  EXPECT_EQ((*now)->idle, 7s);
  EXPECT_EQ((*now)->max, 2048U);
  EXPECT_EQ(live(old), 1U);
  const auto other = enable(dir_.get(), -1, GroupSize::normal, {}, FlowOptions{{}, 4096});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().errnum, EBUSY);
  EXPECT_EQ(live(old), 1U);
  const auto state_now = state();
  ASSERT_TRUE(state_now && state_now->flows);
  ASSERT_EQ(state_now->groups.size(), 1U);
  EXPECT_EQ(state_now->groups[0].flows, 1U);
}

// Programs of another build take the place of these; in another cgroup that was enabled, too. The
// flows stay.
TEST_F(StockFlows, upgrade) {
  const std::string second = cgroup_ + "-2";
  ASSERT_EQ(::mkdir(second.c_str(), 0755), 0);
  const Fd other(::open(second.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(disable());
  ASSERT_TRUE(enable(other.get()));
  ASSERT_TRUE(enter(second));
  Fd old = bind_udp(address("127.0.0.1"));  // of the second cgroup
  ASSERT_TRUE(enter(cgroup_));
  const Address to = local_address(old.get());
  EXPECT_TRUE(enable_flows().flows) << "of the first one";
  const auto clients = clients_of(to, {&old}, 5);
  EXPECT_EQ(live(old), 5U);
  const Fd about(bpf_obj_get((std::string(pins) + "/maps/about").c_str()));
  const std::uint32_t zero = 0;
  table::about build{};
  ASSERT_EQ(bpf_map_lookup_elem(about.get(), &zero, &build), 0);
  build.build++;
  ASSERT_EQ(bpf_map_update_elem(about.get(), &zero, &build, BPF_ANY), 0);
  EXPECT_TRUE(enable_here().replaced);
  EXPECT_EQ(live(old), 5U);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(spread_flows(clients, {&old, &fresh}), (std::vector<int>{5, 0}));
  close(old);
  EXPECT_TRUE(disable());
  EXPECT_TRUE(eventually([&] { return ::rmdir(second.c_str()) == 0; }));
}

// A tool that is killed before the last step leaves nothing that is taken for more.
TEST_F(StockFlows, killed_half_way) {
  EXPECT_EQ(name_of_chooser(), "choose_flow");
  ASSERT_EQ(::unlink((std::string(pins) + "/maps/flow_table").c_str()), 0);
  EXPECT_FALSE(records_flows());
  EXPECT_FALSE(enable_here().flows);
  EXPECT_FALSE(std::filesystem::exists(std::string(pins) + "/maps/flows"));
  EXPECT_EQ(name_of_chooser(), "choose_datagram");
  EXPECT_TRUE(enable_flows().flows);
  const Fd server = udp(address("127.0.0.1"));
  const Fd client = client_of(local_address(server.get()), {&server});
  EXPECT_EQ(live(server), 1U);
}

// A cgroup whose answers are not recorded any more, whoever's doing that is: nothing is said to be
// none. The next enable() of any cgroup mends it.
TEST_F(FlowsTest, a_hook_is_gone) {
  const std::string second = cgroup_ + "-2";
  ASSERT_EQ(::mkdir(second.c_str(), 0755), 0);
  const Fd other(::open(second.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(enable(other.get()));
  const Fd server = udp(address("127.0.0.1"));
  const auto clients = clients_of(local_address(server.get()), {&server}, 3);
  EXPECT_EQ(live(server), 3U);
  struct stat directory {};
  ASSERT_EQ(::stat(second.c_str(), &directory), 0);
  const std::string hook =
      std::string(pins) + "/cgroups/" + std::to_string(directory.st_ino) + "/record_flow4";
  ASSERT_EQ(::unlink(hook.c_str()), 0) << hook;
  const auto flows = flows_here();
  ASSERT_FALSE(flows);
  EXPECT_EQ(flows.error().errnum, EAGAIN);
  EXPECT_NE(flows.error().hint.find(second), std::string::npos) << flows.error().hint;
  EXPECT_EQ(state()->unrecorded, second);
  EXPECT_TRUE(in_child([] {
    drop_dac_read_search();
    const auto unseen = flows_here();
    return !unseen && unseen.error().errnum == EAGAIN && !state()->unrecorded.empty();
  })) << "a cgroup that cannot be looked for is not one that is gone";
  expect_recorded_anew([&] { EXPECT_TRUE(enable_here().flows); });
  EXPECT_EQ(live(server), 3U);
  EXPECT_EQ(::access(hook.c_str(), F_OK), 0);

  ASSERT_EQ(::unlink(hook.c_str()), 0);
  EXPECT_TRUE(eventually([&] { return ::rmdir(second.c_str()) == 0; }));
  EXPECT_EQ(live(server), 3U) << "a cgroup that is gone sends nothing";
}

// What has no entry is not recorded; the next enable() adds it, and the gap is known.
TEST_F(FlowsTest, a_killed_disable_leaves_a_gap) {
  const Fd server = udp(address("127.0.0.1"));
  const auto clients = clients_of(local_address(server.get()), {&server}, 3);
  EXPECT_EQ(live(server), 3U);
  const Fd namespaces = pinned_map("namespaces");
  std::uint64_t cookie = 0;
  ASSERT_EQ(bpf_map_get_next_key(namespaces.get(), nullptr, &cookie), 0);
  ASSERT_EQ(bpf_map_delete_elem(namespaces.get(), &cookie), 0);
  EXPECT_TRUE(flows_here().value()->of.empty());
  expect_recorded_anew([&] { EXPECT_TRUE(enable_here().flows); });
  EXPECT_EQ(live(server), 3U);
}

TEST_F(FlowsTest, nobody_is_known_in_a_namespace_that_is_not_enabled) {
  EXPECT_TRUE(in_child([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      return false;
    }
    static_cast<void>(set_lo(true));
    const Fd server = bind_udp(address("127.0.0.1"));
    return adopt_newcomers(finder()).has_value() && state()->groups.empty() &&
           enable_flows().new_namespace && state()->groups.size() == 1;
  }));
}

TEST_F(FlowsTest, a_tool_was_killed_while_it_took_a_socket_in) {
  const Fd server = bind_udp(address("127.0.0.1"));
  const std::uint32_t index = 16'000;
  const auto value = static_cast<std::uint64_t>(server.get());
  ASSERT_EQ(bpf_map_update_elem(pinned_map("datagrams").get(), &index, &value, BPF_NOEXIST), 0);
  take_in();
  const Fd client = client_of(local_address(server.get()), {&server});
  EXPECT_EQ(live(server), 1U);
}

TEST_F(FlowsTest, a_socket_that_finds_no_room_leaves_no_trace) {
  const auto places = [&] {
    const Fd map = pinned_map("datagram_index");
    std::size_t count = 0;
    std::uint64_t key = 0;
    std::uint64_t next = 0;
    for (int err = bpf_map_get_next_key(map.get(), nullptr, &next); err == 0;
         err = bpf_map_get_next_key(map.get(), &key, &next)) {
      key = next;
      count++;
    }
    return count;
  };
  constexpr std::size_t group = 512;
  std::vector<Fd> servers;
  servers.push_back(bind_udp(address("127.0.0.1")));
  for (std::size_t i = 0; i < group; i++) {
    servers.push_back(bind_udp(local_address(servers[0].get())));
  }
  take_in();
  EXPECT_EQ(places(), group);
  take_in();
  EXPECT_EQ(places(), group);
}

// A tool that knows nothing of the scope may not have its sockets. With another one it takes the
// group for itself, and ends: nothing is said of flows that nobody follows any more, and the next
// tool has them followed again.
TEST_F(StockFlows, another_tool_takes_the_group) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd client = client_of(to, {&old});
  const Fd fresh = bind_udp(to);
  {
    auto session = Session::start();
    ASSERT_TRUE(session) << session.error().message();
    const auto refused = session->adopt(old.get());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().errnum, EBUSY);
    EXPECT_EQ(live(old), 1U);
    ASSERT_TRUE(session->adopt(fresh.get()));
  }
  EXPECT_FALSE(live(old));
  EXPECT_TRUE(eventually([&] {
    take_in();  // its table of sockets lives a moment longer
    return live(fresh).has_value();
  }));
  EXPECT_EQ(live(old), 1U);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(exchange(client, {&old, &fresh}), 0);
  const Fd other = open_client(to, SOCK_DGRAM);
  EXPECT_EQ(exchange(other, {&old, &fresh}), 1);
  EXPECT_TRUE(eventually([&] { return (get_info(old).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
}

// The modes are the kernel's, and none of our hooks is about them.
TEST_F(PatchedFlows, beside_the_option_of_the_kernel) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const auto before = clients_of(to, {&old}, 5);
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(get_info(old).flags & REUSEPORT_LISTEN_F_BPF, 0U);
  const auto state_now = state();
  ASSERT_TRUE(state_now);
  EXPECT_TRUE(state_now->own_option);
  ASSERT_EQ(state_now->groups.size(), 1U);
  EXPECT_EQ(state_now->groups[0].on, 1U);
  EXPECT_EQ(state_now->groups[0].off, 1U);
  EXPECT_EQ(state_now->groups[0].flows, 5U);
  std::vector<std::string> names;
  for (const auto& each :
       std::filesystem::recursive_directory_iterator(std::string(pins) + "/cgroups")) {
    if (!each.is_directory()) {
      names.push_back(each.path().filename());
    }
  }
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"record_flow4", "record_flow6", "see_closing"}));
  // nobody is ON: closed to new clients, and open to the flows it has
  ASSERT_EQ(set_mode(fresh, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(spread_flows(before, {&old, &fresh}), (std::vector<int>{5, 0}));
  const Fd client = open_client(to, SOCK_DGRAM);
  EXPECT_EQ(::send(client.get(), "x", 1, 0), 1);
  pollfd refused{client.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&refused, 1, 5000), 1);
  char byte = 0;
  EXPECT_EQ(::recv(client.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNREFUSED);
  const auto kept = disable();
  ASSERT_FALSE(kept) << "they keep their modes, but not their flows";
  EXPECT_EQ(kept.error().errnum, EBUSY);
  EXPECT_NE(kept.error().hint.find("5 live flows"), std::string::npos) << kept.error().hint;
  EXPECT_TRUE(disable(true));
  EXPECT_EQ(get_info(old).mode, static_cast<std::uint32_t>(REUSEPORT_LISTEN_OFF));
}

// Drained means that nothing new comes; what the program selects for a flow comes all the same.
TEST_F(PatchedFlows, drained_is_not_about_flows) {
  const Fd old = udp(address("127.0.0.1"));
  const Address to = local_address(old.get());
  const Fd client = client_of(to, {&old});
  const Fd fresh = udp(to);
  ASSERT_EQ(set_mode(old, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_TRUE(eventually([&] { return (get_info(old).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  EXPECT_EQ(get_info(old).queued, 0U);
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  EXPECT_GT(get_info(old).queued, 0U);
  EXPECT_NE(get_info(old).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
  EXPECT_EQ(take({&old, &fresh}), 0);
}

// Without flows there is nothing to enable; where they are recorded, another call adds to that.
TEST_F(PatchedFlows, the_option_of_the_kernel_takes_precedence) {
  const Fd server = bind_udp(address("127.0.0.1"));
  const auto again = enable(dir_.get(), -1, GroupSize::normal, finder());
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_TRUE(again->flows);
  EXPECT_TRUE(again->own_option);
  EXPECT_EQ(again->datagrams, 1U);
  EXPECT_EQ(live(server), 0U);
  ASSERT_TRUE(disable());
  const auto without = enable(dir_.get());
  ASSERT_FALSE(without);
  EXPECT_EQ(need(without.error()), Need::not_by_bpf);
  EXPECT_FALSE(std::filesystem::exists(pins)) << "nothing is left behind";
}

TEST_F(PatchedFlows, connected_sockets_count_as_the_kernel_counts_them) {
  const Fd first = udp(address("127.0.0.1"));
  const Fd second = udp(local_address(first.get()));
  const Fd flow = bind_udp(local_address(first.get()));
  const Fd peer = bind_udp(address("127.0.0.1"));
  const Address to = local_address(peer.get());
  ASSERT_EQ(::connect(flow.get(), to.get(), to.len), 0);
  const auto same = [&] {
    const auto info = get_info(first);
    const auto now = state();
    const auto at = "127.0.0.1:" + std::to_string(local_address(first.get()).port());
    const auto g = std::ranges::find(now->groups, at, &GroupState::address);
    if (g == now->groups.end()) {
      return false;
    }
    EXPECT_EQ(g->on, info.group_on);
    EXPECT_EQ(g->off, info.group_off);
    EXPECT_EQ(g->on + g->off, 2U) << "a connected one is a flow";
    return true;
  };
  EXPECT_TRUE(same());
  ASSERT_EQ(set_mode(second, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_TRUE(same());
}

// A namespace that is gone is shown as such, and the next enable() forgets it.
TEST_F(PatchedFlows, removed_namespace) {
  EXPECT_TRUE(in_child([&] {
    return ::unshare(CLONE_NEWNET) == 0 && enable_flows().new_namespace &&
           state()->namespaces.size() == 2;
  }));
  const auto inodes_of_removed = [] {
    const auto now = state();
    return now ? std::ranges::count(now->namespaces, 0U, &ScopeState::Namespace::inode) : -1;
  };
  EXPECT_TRUE(eventually([&] { return inodes_of_removed() == 1; }));  // a worker removes it
  ASSERT_EQ(state()->namespaces.size(), 2U);
  enable_flows();
  const auto now = state();
  ASSERT_EQ(now->namespaces.size(), 1U);
  EXPECT_NE(now->namespaces[0].inode, 0U);
}

// A QUIC client that moves to another address in the middle has no flow: that is counted.
TEST_F(FlowsTest, a_short_header_of_no_flow_is_counted) {
  const Fd server = udp(address("127.0.0.1"));
  const Fd client = open_client(local_address(server.get()), SOCK_DGRAM);
  for (const char first : {'\xc0', '\x40', '\x7f', '\x00'}) {  // long, short, short, neither
    ASSERT_EQ(::send(client.get(), &first, 1, 0), 1);
    ASSERT_EQ(take({&server}), 0);
  }
  EXPECT_EQ((*flows_here())->short_headers, 2U);
}

}  // namespace
// Whoever counts while another tool is half done waits for it.
TEST_F(FlowsTest, are_counted_beside_enable_and_disable) {
  std::atomic<bool> done = false;
  std::thread other([&] {
    for (int i = 0; i < 8; i++) {
      EXPECT_TRUE(disable(true));
      EXPECT_TRUE(enable(dir_.get(), -1, GroupSize::normal, {}, FlowOptions{}));
    }
    done = true;
  });
  int counted = 0;
  for (; !done; counted++) {
    const auto flows = flows_here();
    EXPECT_TRUE(flows) << flows.error().message();
  }
  other.join();
  EXPECT_GT(counted, 0);
}

}  // namespace reuseport::option
