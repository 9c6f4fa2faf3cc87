// SPDX-License-Identifier: Apache-2.0
//
// What the clients count, against servers that do one thing each, and what restart-lab says when it
// is disturbed. Needs root, for network namespaces of its own.
#include "load/load.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "load/flows.hpp"
#include "net/netns.hpp"
#include "process.hpp"

namespace lab {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint16_t port = 80;

class LoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) {
      GTEST_SKIP() << "needs root";
    }
    auto made = make_namespace();
    ASSERT_TRUE(made) << made.error().text;
    ns_ = std::move(*made);
    spec_.address = "127.0.0.1";
    spec_.port = port;
    spec_.rate = 0;
    spec_.concurrency = 4;
    spec_.connections = 8;
    spec_.timeout_ns = 10 * one_second;
  }

  Fd listener(int backlog = 64) {
    const auto inside = InNamespace::enter(ns_.get());
    Fd fd{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_TRUE(inside);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(fd.get(), backlog), 0);
    return fd;
  }

  /// The load, with `serve` for each connection that a server accepts.
  LoadResult run(const Fd& server, const std::function<void(int)>& serve) {
    std::thread thread{[&] {
      for (std::uint64_t i = 0; i < spec_.connections; ++i) {
        const Fd fd{accept4(server.get(), nullptr, nullptr, SOCK_CLOEXEC)};
        serve(fd.get());
      }
    }};
    auto result = run();
    thread.join();
    return result;
  }

  LoadResult run() {
    auto load = Load::start(spec_, ns_.get());
    if (!load) {
      ADD_FAILURE() << load.error().text;
      return {};
    }
    const auto until = now_ns() + 30 * one_second;
    while (!(*load)->done() && now_ns() < until) {
      pause_ns(10 * one_ms);
    }
    auto result = (*load)->finish({});
    if (!result) {
      ADD_FAILURE() << result.error().text;
      return {};
    }
    EXPECT_EQ(result->connections, spec_.connections);
    EXPECT_EQ(result->answered + result->lost() + result->moved, spec_.connections);
    return *result;
  }

  static Request read_request(int fd) {
    Request request{};
    EXPECT_EQ(recv(fd, &request, sizeof request, MSG_WAITALL),
              static_cast<ssize_t>(sizeof request));
    return request;
  }

  Fd ns_;
  LoadSpec spec_;
};

TEST_F(LoadTest, an_answer_is_an_answer) {
  const auto server = listener();
  const auto result = run(server, [](int fd) {
    const Reply reply{read_request(fd).id, 1, 0};
    EXPECT_EQ(send(fd, &reply, sizeof reply, 0), static_cast<ssize_t>(sizeof reply));
  });
  EXPECT_EQ(result.answered, 8U);
  EXPECT_EQ(result.lost(), 0U);
}

TEST_F(LoadTest, a_refusal_is_a_refusal) {
  const auto result = run();
  EXPECT_EQ(result.refused, 8U);
}

/// What a restart loses: accepted by the kernel, then its listener is closed.
TEST_F(LoadTest, a_connection_in_a_queue_that_is_closed_is_a_reset) {
  auto server = listener();
  spec_.concurrency = 8;
  std::thread closer{[&] {
    tcp_info info{};  // of a listener, tcpi_unacked is its accept queue
    for (int i = 0; i < 3000 && info.tcpi_unacked < spec_.concurrency; i++) {
      pause_ns(10 * one_ms);
      socklen_t len = sizeof info;
      getsockopt(server.get(), IPPROTO_TCP, TCP_INFO, &info, &len);
    }
    server.reset();
  }};
  const auto result = run();
  closer.join();
  EXPECT_EQ(result.reset, 8U);
}

TEST_F(LoadTest, a_reset_after_the_request_is_a_reset) {
  const auto server = listener();
  const auto result = run(server, [](int fd) {
    read_request(fd);
    const linger at_once{1, 0};
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
  });
  EXPECT_EQ(result.reset, 8U);
}

TEST_F(LoadTest, silence_is_a_timeout) {
  const auto server = listener();
  spec_.timeout_ns = 200 * one_ms;
  const auto result = run();
  EXPECT_EQ(result.timed_out, 8U);
}

/// A queue of one is full, so the kernel drops the SYNs of the others.
TEST_F(LoadTest, a_syn_that_nobody_answers_is_a_timeout) {
  const auto server = listener(0);
  spec_.timeout_ns = 200 * one_ms;
  const auto result = run();
  EXPECT_EQ(result.timed_out, 8U);
  EXPECT_LT(result.connect.count(), 8U);
}

TEST_F(LoadTest, an_end_without_an_answer_is_unanswered) {
  const auto server = listener();
  const auto result = run(server, [](int fd) { read_request(fd); });
  EXPECT_EQ(result.unanswered, 8U);
}

TEST_F(LoadTest, an_answer_to_another_question_is_garbled) {
  const auto server = listener();
  const auto result = run(server, [](int fd) {
    const Reply reply{read_request(fd).id + 1, 1, 0};
    EXPECT_EQ(send(fd, &reply, sizeof reply, 0), static_cast<ssize_t>(sizeof reply));
  });
  EXPECT_EQ(result.garbled, 8U);
}

/// UDP flows, against a server that does one thing to each of their datagrams.
class FlowTest : public LoadTest {
 protected:
  void SetUp() override {
    LoadTest::SetUp();
    spec_.udp = true;
    spec_.rate = 200;
    spec_.timeout_ns = 500 * one_ms;
  }
  /// @p answer gets a number of a datagram within its flow, from 1 on, and says which generation
  /// answers; 0: none.
  LoadResult run(const std::function<std::uint32_t(std::uint64_t)>& answer) {
    Fd server;
    {
      const auto inside = InNamespace::enter(ns_.get());
      server = Fd{socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    std::thread thread{[&] {
      for (;;) {
        sockaddr_in from{};
        socklen_t size = sizeof from;
        Request request{};
        if (recvfrom(server.get(), &request, sizeof request, 0, reinterpret_cast<sockaddr*>(&from),
                     &size) <= 0) {
          return;  // shut down
        }
        const auto generation = answer(request.id % (long_flow + 1));
        const Reply reply{request.id, generation, 0};
        if (generation != 0) {
          sendto(server.get(), &reply, sizeof reply, 0, reinterpret_cast<const sockaddr*>(&from),
                 size);
        }
      }
    }};
    auto result = LoadTest::run();
    shutdown(server.get(), SHUT_RDWR);
    thread.join();
    return result;
  }
};

TEST_F(FlowTest, answered_by_one_generation_is_whole) {
  const auto result = run([](std::uint64_t) { return 1; });
  EXPECT_EQ(result.answered, 8U);
  EXPECT_EQ(result.lost(), 0U);
  EXPECT_EQ(result.first_byte.count(), 8U);
}

TEST_F(FlowTest, answered_by_another_one_is_moved) {
  const auto result = run([](std::uint64_t number) { return number == 1 ? 1 : 2; });
  EXPECT_EQ(result.moved, 8U);
  EXPECT_EQ(result.lost(), 0U);
}

TEST_F(FlowTest, a_datagram_without_an_answer_loses_the_flow) {
  const auto result = run([](std::uint64_t number) { return number == 1 ? 1 : 0; });
  EXPECT_EQ(result.timed_out, 8U);
  EXPECT_EQ(result.moved, 0U);
}

TEST_F(FlowTest, nobody_there_is_a_refusal) {
  EXPECT_EQ(LoadTest::run().refused, 8U);
}

/// restart-lab as a user runs it.
class RunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) {
      GTEST_SKIP() << "needs root";
    }
  }
  void start(std::vector<std::string> arguments, const std::string& path = {}) {
    output_ = Fd{memfd_create("output", MFD_CLOEXEC)};
    ChildSpec spec;
    // of build/bin/tests/load_test
    spec.program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../restart-lab";
    spec.arguments = std::move(arguments);
    spec.output = output_.get();
    if (!path.empty()) {
      spec.environment = {"PATH=" + path};
    }
    auto pid = spawn(spec);
    ASSERT_TRUE(pid) << pid.error().text;
    pid_ = *pid;
  }
  /// Until the clients connect: how long the start takes depends on the machine.
  void wait_for_load() const {
    const auto threads = fmt::format("/proc/{}/task", pid_);
    for (const auto until = now_ns() + 120 * one_second; now_ns() < until; pause_ns(10 * one_ms)) {
      std::error_code gone;
      for (const auto& thread : std::filesystem::directory_iterator{threads, gone}) {
        std::string name;
        std::getline(std::ifstream{thread.path() / "comm"}, name);
        if (name == Load::thread_name) {
          return;
        }
      }
    }
    FAIL() << "no clients";
  }
  /// Takes the CPU from the run for two seconds and a half while its clients connect.
  void stop_for_a_while() const {
    wait_for_load();
    EXPECT_EQ(kill(pid_, SIGSTOP), 0);
    pause_ns(2500 * one_ms);
    EXPECT_EQ(kill(pid_, SIGCONT), 0);
  }
  int wait() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    said_.resize(static_cast<std::size_t>(lseek(output_.get(), 0, SEEK_END)));
    EXPECT_EQ(pread(output_.get(), said_.data(), said_.size(), 0),
              static_cast<ssize_t>(said_.size()));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  pid_t pid_ = -1;
  Fd output_;
  std::string said_;
};

const std::vector<std::string> short_run{
    "run",        "--method", "close",     "--link", "loopback",   "--duration", "3",
    "--restarts", "3",        "--timeout", "1",      "--attempts", "1"};

TEST_F(RunTest, a_stopped_load_generator_is_not_booked_to_the_method) {
  start(short_run);
  stop_for_a_while();
  EXPECT_EQ(wait(), 5);
  EXPECT_THAT(said_, HasSubstr("NOT MEASURED: close on loopback: disturbed: "));
  EXPECT_THAT(said_, ContainsRegex("the load generator stood still for ([2-9]|[1-9][0-9]+)\\."));
  EXPECT_THAT(said_, Not(HasSubstr("lost")));
}

TEST_F(RunTest, a_disturbed_run_is_tried_again) {
  auto words = short_run;
  words.back() = "30";  // of which a busy machine may disturb some more
  start(words);
  stop_for_a_while();
  wait();
  EXPECT_THAT(said_, HasSubstr("; again"));
  EXPECT_THAT(said_, Not(HasSubstr("NOT MEASURED")));
  EXPECT_THAT(said_, HasSubstr("close on loopback: 3 restarts"));
}

TEST_F(RunTest, cpus_burnt_beside_it_are_not_booked_to_the_method) {
  setpriority(PRIO_PROCESS, 0, 0);  // whoever runs the tests may have given them more
  start(short_run);
  wait_for_load();
  std::vector<Child> burners;
  for (long i = 0; i < 2 * sysconf(_SC_NPROCESSORS_ONLN); ++i) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      setpriority(PRIO_PROCESS, 0, -20);
      alarm(10);  // should this test be killed
      for (;;) {
        static_cast<void>(now_ns());
      }
    }
    burners.emplace_back(pid);
  }
  pause_ns(4 * one_second);
  burners.clear();
  EXPECT_EQ(wait(), 5);
  EXPECT_THAT(said_, HasSubstr("NOT MEASURED: close on loopback: disturbed: "));
  EXPECT_THAT(said_, Not(HasSubstr("lost")));
}

TEST_F(RunTest, a_method_that_cannot_be_set_up_says_so_in_one_line) {
  // A machine without tc.
  auto path = std::filesystem::temp_directory_path() / "restart-lab-test-XXXXXX";
  auto name = path.string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  std::filesystem::create_symlink("/usr/sbin/ip", name + "/ip");
  start(
      {"run", "--method", "qdisc-plug", "--link", "loopback", "--duration", "1", "--restarts", "1"},
      name);
  EXPECT_EQ(wait(), 5);
  std::filesystem::remove_all(name);
  EXPECT_THAT(said_, HasSubstr("\nNOT MEASURED: qdisc-plug on loopback: tc: "));
  EXPECT_THAT(said_, Not(HasSubstr("restarts")));
}

}  // namespace
}  // namespace lab
