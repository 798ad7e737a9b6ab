// Words between ranks through the store, before and beside the groups: every rank's text to the
// first rank, one text from it to all.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "dist/collective_log.h"
#include "dist/store.h"
#include "train/doctor/finding.h"

namespace mgm {

class Gathering {
 public:
  // `store`: null where there is one rank. `log`: takes gather_all() and share() as rounds of the
  // start (kStartGroup), so that whoever does not come is named as in a collective; may be null.
  Gathering(std::shared_ptr<Store> store, int rank, int world, CollectiveLog* log = nullptr);

  int rank() const { return rank_; }
  int world() const { return world_; }
  bool is_first() const { return rank_ == 0; }

  // At the first rank every rank's text, in order, or nothing where it has not come within
  // `timeout_s` (for all of them together); elsewhere empty. Who did not come once is not waited
  // for again. A key serves once.
  std::vector<std::optional<std::string>> gather(const std::string& key, const std::string& mine,
                                                 double timeout_s);
  // The same, but throws DistError naming the ranks that have not come.
  std::vector<std::string> gather_all(const std::string& key, const std::string& mine,
                                      double timeout_s);
  // The first rank's text, at every rank. Throws DistError when it has not come in time.
  std::string share(const std::string& key, const std::string& text, double timeout_s);

  // Says that this rank is done; the first rank, which may serve the store, waits for `ranks` of
  // them, at most `timeout_s`.
  void leave(int ranks, double timeout_s);

 private:
  uint64_t begin_round(const char* operation, const std::string& key);
  void end_round(uint64_t ticket);

  std::shared_ptr<Store> store_;
  int rank_, world_;
  CollectiveLog* log_;
  std::set<int> absent_;
};

// A folder that every rank must see: each leaves a file in it. `nonce` is the same on all.
class SharedFolderProbe {
 public:
  SharedFolderProbe(std::string dir, std::string nonce, int rank);
  ~SharedFolderProbe();  // takes its file away
  SharedFolderProbe(const SharedFolderProbe&) = delete;
  SharedFolderProbe& operator=(const SharedFolderProbe&) = delete;

  bool left() const { return left_; }
  // Those of `ranks` whose file cannot be seen here within `patience_s`: a network file system may
  // be a little late.
  std::vector<int> unseen(const std::vector<int>& ranks, double patience_s) const;
  static std::string make_nonce();
  const std::string& dir() const { return dir_; }
  int rank() const { return rank_; }

 private:
  std::string path_of(int rank) const;
  std::string dir_, nonce_;
  int rank_;
  bool left_ = false;
};

// A failure that names those of `ranks` whose file this rank does not see; nothing if it sees all.
Findings check_one_folder(const SharedFolderProbe& probe, const std::vector<int>& ranks);

}  // namespace mgm
