// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

int open_null() {
  return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
}

TEST(Fd, closes_once) {
  const int number = open_null();
  {
    const Fd fd(number);
    EXPECT_TRUE(test::is_open(number));
  }
  EXPECT_FALSE(test::is_open(number));
}

TEST(Fd, moves_ownership) {
  Fd first(open_null());
  const int number = first.get();
  Fd second(std::move(first));
  EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
  EXPECT_EQ(second.get(), number);
  Fd third(open_null());
  const int closed = third.get();
  third = std::move(second);
  EXPECT_FALSE(test::is_open(closed));
  EXPECT_EQ(third.get(), number);
  Fd& same = third;
  third = std::move(same);
  EXPECT_TRUE(test::is_open(number));
  EXPECT_EQ(third.release(), number);
  EXPECT_TRUE(test::is_open(number));
  ::close(number);
}

TEST(Fd, reset_closes_and_takes) {
  Fd fd(open_null());
  const int first = fd.get();
  fd.reset();
  EXPECT_FALSE(test::is_open(first));
  EXPECT_FALSE(fd);
  fd.reset(open_null());
  EXPECT_TRUE(fd);
}

}  // namespace
}  // namespace reuseport
