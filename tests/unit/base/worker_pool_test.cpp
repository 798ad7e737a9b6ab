#include "base/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

namespace mgm {
namespace {

using Workers = OrderedWorkers<int64_t>;

// Takes longer for some tasks, so that results are ready in another order than they are due.
int64_t slow_square(int64_t i) {
  std::this_thread::sleep_for(std::chrono::microseconds((i * 7919) % 13 * 100));
  return i * i;
}

TEST(OrderedWorkers, ResultsComeInOrderOnAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 5}) {
    for (const int64_t ahead : {-1, 0, 1, 3, 100}) {
      Workers workers(threads, ahead, 3, 40, slow_square);
      for (int64_t i = 3; i < 40; ++i) ASSERT_EQ(workers.next(), i * i) << threads << " " << ahead;
      EXPECT_FALSE(workers.next());
      EXPECT_FALSE(workers.next());  // still nothing
    }
  }
}

TEST(OrderedWorkers, NothingToDo) {
  for (const int threads : {0, 3}) {
    EXPECT_FALSE(Workers(threads, 2, 0, 0, slow_square).next());
    EXPECT_FALSE(Workers(threads, 2, 5, 3, slow_square).next());
  }
}

// An error comes at its own turn, and what follows can still be had.
TEST(OrderedWorkers, AnErrorComesAtItsTurn) {
  for (const int threads : {0, 1, 4}) {
    Workers workers(threads, 8, 0, 10, [](int64_t i) {
      if (i == 3 || i == 9) throw std::runtime_error("task " + std::to_string(i));
      return slow_square(i);
    });
    for (int64_t i = 0; i < 10; ++i) {
      if (i == 3 || i == 9) {
        try {
          workers.next();
          ADD_FAILURE() << i;
        } catch (const std::runtime_error& e) {
          EXPECT_EQ(e.what(), "task " + std::to_string(i));
        }
      } else {
        EXPECT_EQ(workers.next(), i * i);
      }
    }
    EXPECT_FALSE(workers.next());
  }
}

TEST(OrderedWorkers, NoMoreThanAheadIsBuiltBeforeItIsDue) {
  constexpr int64_t kAhead = 3;
  std::atomic<int64_t> consumed{0}, most{0};
  Workers workers(4, kAhead, 0, 60, [&](int64_t i) {
    const int64_t lead = i - consumed;  // consumed only grows, so this is never too large
    int64_t seen = most;
    while (lead > seen && !most.compare_exchange_weak(seen, lead)) {
    }
    return i;
  });
  for (int64_t i = 0; i < 60; ++i) {
    if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // let them run
    EXPECT_EQ(workers.next(), i);
    ++consumed;
  }
  // Task i may start once result i - ahead is being handed out: one more than was counted here.
  EXPECT_LE(most, kAhead);
  EXPECT_GE(most, 1);
}

TEST(OrderedWorkers, EveryTaskIsBuiltOnce) {
  std::vector<std::atomic<int>> built(50);
  Workers workers(4, 6, 0, 50, [&](int64_t i) { return ++built[static_cast<size_t>(i)], i; });
  while (workers.next()) {
  }
  for (const auto& count : built) EXPECT_EQ(count, 1);
}

// Ends while results wait, while threads wait and while tasks run.
TEST(OrderedWorkers, EndsAtAnyMoment) {
  for (int taken = 0; taken < 12; ++taken) {
    std::atomic<int> running{0};
    {
      Workers workers(3, 4, 0, 1000000, [&](int64_t i) {
        ++running;
        std::this_thread::sleep_for(std::chrono::microseconds(300));
        --running;
        return i;
      });
      for (int64_t i = 0; i < taken; ++i) EXPECT_EQ(workers.next(), i);
    }
    EXPECT_EQ(running, 0);
  }
}

TEST(OrderedWorkers, ResultsNeedOnlyMove) {
  OrderedWorkers<std::unique_ptr<int64_t>> workers(
      2, 2, 0, 5, [](int64_t i) { return std::make_unique<int64_t>(i); });
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(**workers.next(), i);
}

}  // namespace
}  // namespace mgm
