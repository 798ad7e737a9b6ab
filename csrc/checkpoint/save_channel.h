// How the ranks of one save talk: through the run's store, so that it can go on in a background
// thread beside the collectives of training. Every wait polls (one that blocks would hold the store
// for all threads) and gives up after a time limit.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/store.h"

namespace mgm {

class SaveChannel {
 public:
  // `store` is null where there is one rank. `key`: of this save alone. Once `ending` is true a
  // wait lasts 10 s at most: others may have ended without a word.
  SaveChannel(std::shared_ptr<Store> store, std::string key, int rank, int world, double timeout_s,
              const std::atomic<bool>& ending);

  int rank() const { return rank_; }
  int world() const { return world_; }

  // From rank 0 to all. `what` names the message; each is sent once.
  void announce(const std::string& what, const std::string& text);
  std::string await(const std::string& what);
  // From every rank to rank 0, which gets them by rank.
  void report(const std::string& text);
  std::vector<std::string> await_reports();
  // Takes back what this save left in the store; when every rank has read it.
  void forget();

 private:
  void wait_for(const std::string& what, const std::function<bool()>& there);
  std::string report_key(int rank) const { return key_ + "/report/" + std::to_string(rank); }

  std::shared_ptr<Store> store_;
  std::string key_;
  int rank_, world_;
  double timeout_s_;
  const std::atomic<bool>* ending_;
  std::string own_report_;
  std::vector<std::string> announced_;
};

}  // namespace mgm
