#include "checkpoint/save_channel.h"

#include <algorithm>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/timer.h"

namespace mgm {
namespace {

// Waits grow from the first to the last: a small save is not held up, and a thousand ranks that
// wait for minutes do not keep the store busy.
constexpr std::chrono::milliseconds kFirstWait{2}, kLastWait{500};
constexpr const char* kMark = "=";   // before every text: no value of the store is empty
constexpr double kEndingGrace = 10;  // seconds

}  // namespace

SaveChannel::SaveChannel(std::shared_ptr<Store> store, std::string key, int rank, int world,
                         double timeout_s, const std::atomic<bool>& ending)
    : store_(std::move(store)),
      key_(std::move(key)),
      rank_(rank),
      world_(world),
      timeout_s_(timeout_s),
      ending_(&ending) {
  MGM_CHECK(store_ || world_ == 1, world_, " ranks without a store");
}

void SaveChannel::wait_for(const std::string& what, const std::function<bool()>& there) {
  const Timer timer;
  std::optional<Timer> ending;
  std::chrono::milliseconds pause = kFirstWait;
  while (!there()) {
    if (ending_->load() && !ending) ending.emplace();
    if (ending && ending->seconds() > kEndingGrace)
      throw InternalError("given up while waiting for ", what, ": the run is ending on this rank");
    if (timer.seconds() > timeout_s_) {
      throw InternalError("no word of ", what, " within ", timeout_s_, " s (dist.timeout_s.save)");
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 3 / 2 + std::chrono::milliseconds(1), kLastWait);
  }
}

void SaveChannel::announce(const std::string& what, const std::string& text) {
  if (!store_) return;
  store_->set(key_ + "/" + what, kMark + text);
  announced_.push_back(key_ + "/" + what);
}

std::string SaveChannel::await(const std::string& what) {
  const std::string key = key_ + "/" + what;
  wait_for(cat(what, " from rank 0"), [&] { return store_->has(key); });
  return store_->get(key, timeout_s_).substr(1);
}

void SaveChannel::report(const std::string& text) {
  own_report_ = text;
  if (rank_ == 0) return;
  store_->set(report_key(rank_), text);
  store_->add(key_ + "/reports", 1);
}

std::vector<std::string> SaveChannel::await_reports() {
  if (world_ > 1) {
    int64_t there = 0;
    const auto all = [&] {
      there = store_->add(key_ + "/reports", 0);
      return there >= world_ - 1;
    };
    try {
      wait_for("every rank's shard", all);
    } catch (const InternalError& e) {
      std::vector<std::string> missing;
      for (int rank = 1; rank < world_; ++rank) {
        if (!store_->has(report_key(rank))) missing.push_back(std::to_string(rank));
      }
      throw InternalError(e.what(), "; not heard of: rank ", join(missing, ", "));
    }
  }
  std::vector<std::string> out = {own_report_};
  for (int rank = 1; rank < world_; ++rank)
    out.push_back(store_->get(report_key(rank), timeout_s_));
  return out;
}

void SaveChannel::forget() {
  if (!store_ || rank_ != 0) return;
  for (const std::string& key : announced_) store_->remove(key);
  store_->remove(key_ + "/reports");
  for (int rank = 1; rank < world_; ++rank) store_->remove(report_key(rank));
}

}  // namespace mgm
