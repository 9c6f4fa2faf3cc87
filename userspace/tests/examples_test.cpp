// SPDX-License-Identifier: Apache-2.0
// The examples do what they say.
#include <csignal>

#include "support/support.hpp"

namespace reuseport {
namespace {

class Examples : public test::NetNsTest {};

TEST_F(Examples, probe) {
  EXPECT_EQ(test::exit_code(test::start_program({"examples/probe"})),
            test::expect_supported() ? 0 : 3);
}

TEST_F(Examples, accept_loop) {
  EXPECT_EQ(test::exit_code(test::start_program({"examples/accept_loop"})), 0);
}

TEST_F(Examples, event_loop_usage) {
  EXPECT_EQ(test::exit_code(test::start_program({"examples/event_loop"})), 2);
  EXPECT_EQ(test::exit_code(test::start_program({"examples/event_loop", "70000"})), 2);
}

// A byte of the greeting: the server accepted and answered.
int greeted(const test::Address& at) {
  const Fd client = test::open_client(at);
  if (test::connect_result(client.get()) != 0) {
    return 0;
  }
  char byte = 0;
  return test::eventually([&] { return ::recv(client.get(), &byte, 1, 0) == 1; }) ? 1 : 0;
}

TEST_F(Examples, event_loop_is_replaced_under_its_clients) {
  const test::Address at = test::address("127.0.0.1", 8080);
  const pid_t old = test::start_program({"examples/event_loop", "8080"});
  ASSERT_TRUE(test::eventually([&] { return test::try_connect(at) == 0; }));
  EXPECT_EQ(greeted(at), 1);
  const pid_t newcomer = test::start_program({"examples/event_loop", "8080"});
  ASSERT_TRUE(test::eventually([&] { return test::count_listeners(8080) == 2; }));
  ASSERT_EQ(::kill(old, SIGTERM), 0);
  EXPECT_EQ(test::exit_code(old), test::expect_supported() ? 0 : 3);
  int answers = 0;
  for (int i = 0; i < 20; ++i) {
    answers += greeted(at);
  }
  EXPECT_EQ(answers, 20);
  ASSERT_EQ(::kill(newcomer, SIGTERM), 0);
  EXPECT_EQ(test::exit_code(newcomer), test::expect_supported() ? 0 : 3);
  EXPECT_EQ(test::try_connect(at), ECONNREFUSED);
}

}  // namespace
}  // namespace reuseport
