// Acts when something has not come to its end in time; what ends in time destroys the object.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace mgm {

class Deadline {
 public:
  Deadline() = default;
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  ~Deadline() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  // Once: calls `act`, on a thread of its own, unless the object is gone `seconds` from now.
  void set(double seconds, std::function<void()> act) {
    thread_ = std::thread([this, seconds, act = std::move(act)] {
      std::unique_lock lock(mutex_);
      const std::chrono::duration<double> limit(seconds);
      if (wake_.wait_for(lock, limit, [this] { return over_; })) return;
      lock.unlock();
      act();
    });
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace mgm
