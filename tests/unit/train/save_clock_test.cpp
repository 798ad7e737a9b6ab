#include "train/save_clock.h"

#include <gtest/gtest.h>

namespace mgm {
namespace {

CheckpointConfig every(int64_t steps, double minutes) {
  CheckpointConfig config;
  config.every_steps = steps;
  config.every_minutes = minutes;
  return config;
}

TEST(SaveClock, CountsMinutesSinceTheLastSave) {
  double now = 5000;  // whatever a clock begins with
  SaveClock clock(every(0, 0.5), [&] { return now; });
  EXPECT_FALSE(clock.time_due());
  now = 5029.9;
  EXPECT_FALSE(clock.time_due());
  now = 5030;
  EXPECT_TRUE(clock.time_due());
  now = 5100;  // the step took its time
  EXPECT_TRUE(clock.time_due());
  now = 5110;  // the save too
  clock.saved();
  EXPECT_FALSE(clock.time_due());
  now = 5139.9;
  EXPECT_FALSE(clock.time_due());
  now = 5140;
  EXPECT_TRUE(clock.time_due());
  for (int64_t step = 0; step < 100; ++step) EXPECT_FALSE(clock.step_due(step));
}

TEST(SaveClock, ByStepOnlyNeverByTime) {
  double now = 0;
  SaveClock clock(every(3, 0), [&] { return now; });
  now = 1e9;
  EXPECT_FALSE(clock.time_due());
  for (int64_t step = 1; step < 100; ++step) EXPECT_EQ(clock.step_due(step), step % 3 == 0) << step;
  clock.saved();
  EXPECT_TRUE(clock.step_due(6));
}

TEST(SaveClock, BothAtOnceAndNeither) {
  double now = 0;
  SaveClock both(every(7, 2), [&] { return now; }), neither(every(0, 0), [&] { return now; });
  now = 120;
  EXPECT_TRUE(both.time_due());
  EXPECT_TRUE(both.step_due(14));
  EXPECT_FALSE(both.step_due(13));
  EXPECT_FALSE(neither.time_due());
  EXPECT_FALSE(neither.step_due(14));
}

TEST(SaveClock, TheClockOfARunGoes) {
  const SaveClock clock(every(0, 1e-9)), later(every(0, 1e6));
  const Timer waited;
  while (waited.seconds() < 0.001) continue;
  EXPECT_TRUE(clock.time_due());
  EXPECT_FALSE(later.time_due());
}

}  // namespace
}  // namespace mgm
