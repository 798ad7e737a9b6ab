// Runs numbered tasks on threads and hands their results back in order, however the threads race.
// Memory is bounded: at most `ahead` results exist beyond the one being consumed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <variant>
#include <vector>

namespace mgm {

template <class Result>
class OrderedWorkers {
 public:
  // make(i) builds result i on a worker thread, for i = first, first+1, ... < end. What make throws
  // is rethrown by next() at i's turn, so an error surfaces at the same place whatever the thread
  // count. threads == 0 builds in next() itself.
  OrderedWorkers(int threads, int64_t ahead, int64_t first, int64_t end,
                 std::function<Result(int64_t)> make)
      : make_(std::move(make)),
        ahead_(ahead < 1 ? 1 : ahead),
        next_task_(first),
        next_result_(first),
        end_(end) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }

  ~OrderedWorkers() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    can_work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  OrderedWorkers(const OrderedWorkers&) = delete;
  OrderedWorkers& operator=(const OrderedWorkers&) = delete;

  // The next result in order, or nothing after the last one.
  std::optional<Result> next() {
    if (next_result_ >= end_) return std::nullopt;
    if (threads_.empty()) return make_(next_result_++);
    std::unique_lock lock(mutex_);
    can_take_.wait(lock, [this] { return done_.count(next_result_) > 0; });
    auto node = done_.extract(next_result_++);
    lock.unlock();
    can_work_.notify_all();
    if (auto* error = std::get_if<std::exception_ptr>(&node.mapped()))
      std::rethrow_exception(*error);
    return std::move(std::get<Result>(node.mapped()));
  }

 private:
  void work() {
    while (true) {
      int64_t task = 0;
      {
        std::unique_lock lock(mutex_);
        can_work_.wait(lock, [this] {
          return stop_ || next_task_ >= end_ || next_task_ < next_result_ + ahead_;
        });
        if (stop_ || next_task_ >= end_) return;
        task = next_task_++;
      }
      std::variant<Result, std::exception_ptr> outcome;
      try {
        outcome = make_(task);
      } catch (...) {
        outcome = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        done_.emplace(task, std::move(outcome));
      }
      can_take_.notify_one();
    }
  }

  std::function<Result(int64_t)> make_;
  const int64_t ahead_;
  std::mutex mutex_;
  std::condition_variable can_work_, can_take_;
  std::map<int64_t, std::variant<Result, std::exception_ptr>> done_;  // guarded by mutex_
  int64_t next_task_;                                                 // guarded by mutex_
  int64_t next_result_;  // written by the consumer only, under mutex_ when threads exist
  const int64_t end_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace mgm
