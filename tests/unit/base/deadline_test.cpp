#include "base/deadline.h"

#include <gtest/gtest.h>

#include <future>

namespace mgm {
namespace {

TEST(Deadline, ActsOnceItHasPassed) {
  std::promise<void> acted;
  Deadline deadline;
  deadline.set(0.01, [&] { acted.set_value(); });
  acted.get_future().get();
}

TEST(Deadline, WhatEndsBeforeIsLeftAlone) {
  bool acted = false;
  {
    Deadline().set(3600, [&] { acted = true; });
  }
  { Deadline never_set; }
  EXPECT_FALSE(acted);
}

}  // namespace
}  // namespace mgm
