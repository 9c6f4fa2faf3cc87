// SPDX-License-Identifier: Apache-2.0
// reuseportctl on, off, standby.
#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

Mode mode_of(const Fd& fd) {
  const auto info = get_info(fd.get());
  EXPECT_TRUE(info);
  return Mode{info ? info->mode : REUSEPORT_LISTEN_ON};
}

TEST_F(CtlTest, modes_are_set_on_another_process_or_refused_as_unsupported) {
  const Running old = server(1);
  const Running fresh = server(1);
  const auto off = run({"off", "--pid", pid_of(old)});
  if (!test::expect_supported()) {
    EXPECT_EQ(off.code, 3);
    EXPECT_EQ(modes(), (std::vector<std::string>{"none", "none"}));
    return;
  }
  EXPECT_EQ(off.code, 0) << off.err;
  for (int i = 0; i < 16; i++) {
    EXPECT_EQ(ask(), fresh.pid());
  }
  const auto again = run({"standby", "--json", "--pid", pid_of(old)}).doc();
  EXPECT_EQ(again["changed"][0]["before"], "off");
  EXPECT_EQ(again["changed"][0]["mode"], "standby");
  EXPECT_EQ(run({"on", "--dry-run", "--pid", pid_of(old)}).code, 0);
  EXPECT_NE(std::find(modes().begin(), modes().end(), "standby"), modes().end());
  EXPECT_EQ(run({"on", "--pid", pid_of(old)}).code, 0);
  EXPECT_EQ(modes(), (std::vector<std::string>{"on", "on"}));
}

TEST_F(OptionCtlTest, off_refuses_the_last_and_the_shared) {
  const Running old = server(2);
  expect_refused({{"off", "--port", port()}, 7, "would be left without"});
  EXPECT_EQ(modes(), (std::vector<std::string>{"on", "on"}));
  const auto inode = std::to_string(listeners()[0].inode);
  EXPECT_EQ(run({"off", "--inode", inode}).code, 0) << "one of two may go";
  expect_refused({{"off", "--port", port()}, 7, "would be left without"});
  EXPECT_EQ(run({"off", "--allow-last", "--port", port()}).code, 0);
  EXPECT_EQ(modes(), (std::vector<std::string>{"off", "off"}));
}

TEST_F(CtlTest, a_socket_another_process_holds_is_refused) {
  const Fd shared = test::open_listener(address("127.0.0.1", port_));
  const Running holder({"sleep", "60"}, [&] { ::fcntl(shared.get(), F_SETFD, 0); });
  const Running fresh = server(1);
  ASSERT_TRUE(test::eventually([&] {
    return run({"list", "--json", "--pid", pid_of(holder)}).code == 0;
  }));
  expect_refused({{"drain", "--pid", pid_of(holder)}, 5, "shared with process"});
  if (test::expect_supported()) {
    expect_refused({{"off", "--pid", pid_of(holder)}, 5, "shared with process"});
    expect_refused({{"standby", "--pid", pid_of(holder)}, 5, "shared with process"});
    EXPECT_EQ(mode_of(shared), Mode::on);
    EXPECT_EQ(run({"off", "--allow-shared", "--pid", pid_of(holder)}).code, 0);
    EXPECT_EQ(mode_of(shared), Mode::off);
  }
}

}  // namespace
}  // namespace reuseport
