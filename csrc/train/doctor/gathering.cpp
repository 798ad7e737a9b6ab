#include "train/doctor/gathering.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "base/fs.h"
#include "base/hash.h"
#include "base/timer.h"
#include "train/doctor/finding.h"

namespace mgm {
namespace {

constexpr double kLook_s = 0.05;  // between looks

void pause() { std::this_thread::sleep_for(std::chrono::duration<double>(kLook_s)); }

}  // namespace

Gathering::Gathering(std::shared_ptr<Store> store, int rank, int world, CollectiveLog* log)
    : store_(std::move(store)), rank_(rank), world_(world), log_(log) {}

uint64_t Gathering::begin_round(const char* operation, const std::string& key) {
  if (!log_) return 0;
  CollectiveRecord record;
  record.sequence = log_->next_sequence(kStartGroup);
  record.group = kStartGroup;
  record.operation = operation;
  record.label = key;
  return log_->enter(std::move(record));
}

void Gathering::end_round(uint64_t ticket) {
  if (log_) log_->leave(ticket);
}

std::vector<std::optional<std::string>> Gathering::gather(const std::string& key,
                                                          const std::string& mine,
                                                          double timeout_s) {
  if (world_ == 1) return {mine};
  store_->set(cat(key, "/", rank_), mine);
  if (!is_first()) return {};
  const Timer timer;
  std::vector<std::optional<std::string>> out;
  for (int r = 0; r < world_; ++r) {
    const std::string from = cat(key, "/", r);
    std::optional<std::string>& text = out.emplace_back();
    if (absent_.count(r) > 0) continue;
    try {
      // Once the time is up, what is there is still taken.
      text = store_->get(from, std::max(kLook_s, timeout_s - timer.seconds()));
    } catch (const DistError&) {
      if (timer.seconds() + kLook_s < timeout_s) throw;  // the store itself
      absent_.insert(r);
    }
  }
  return out;
}

std::vector<std::string> Gathering::gather_all(const std::string& key, const std::string& mine,
                                               double timeout_s) {
  std::vector<std::string> out;
  std::vector<int> missing;
  const uint64_t ticket = begin_round("gather", key);
  const auto texts = gather(key, mine, timeout_s);
  for (size_t r = 0; r < texts.size(); ++r) {
    if (!texts[r]) missing.push_back(static_cast<int>(r));
    out.push_back(texts[r].value_or(""));
  }
  if (!missing.empty()) {
    throw DistError(name_ranks(missing), " of ", world_, " did not come to '", key, "' within ",
                    timeout_s, " s");
  }
  end_round(ticket);
  return out;
}

std::string Gathering::share(const std::string& key, const std::string& text, double timeout_s) {
  if (world_ == 1) return text;
  const uint64_t ticket = begin_round("share", key);
  std::string told = text;
  if (is_first()) {
    store_->set(key, text);
  } else {
    const Timer timer;
    try {
      told = store_->get(key, timeout_s);
    } catch (const DistError&) {
      if (timer.seconds() + kLook_s < timeout_s) throw;  // the store itself
      throw DistError("rank 0 did not come to '", key, "' within ", timeout_s, " s");
    }
  }
  end_round(ticket);
  return told;
}

void Gathering::leave(int ranks, double timeout_s) {
  if (world_ == 1) return;
  int64_t gone = store_->add("left", 1);
  if (!is_first()) return;
  for (const Timer timer; gone < ranks && timer.seconds() < timeout_s;) {
    pause();
    gone = store_->add("left", 0);
  }
}

SharedFolderProbe::SharedFolderProbe(std::string dir, std::string nonce, int rank)
    : dir_(std::move(dir)), nonce_(std::move(nonce)), rank_(rank) {
  try {
    FileWriter writer(path_of(rank_));
    writer.write(nonce_);
    writer.finish();
    left_ = true;
  } catch (const Error&) {
    left_ = false;  // that the folder cannot be written is said by another check
  }
}

SharedFolderProbe::~SharedFolderProbe() {
  std::error_code ignored;
  if (left_) fs::remove(path_of(rank_), ignored);
}

std::string SharedFolderProbe::path_of(int rank) const {
  return (fs::path(dir_) / cat(".shared_", nonce_, "_", rank)).string();
}

std::vector<int> SharedFolderProbe::unseen(const std::vector<int>& ranks, double patience_s) const {
  std::vector<int> missing = ranks;
  for (const Timer timer;; pause()) {
    std::error_code ignored;
    missing.erase(std::remove_if(missing.begin(), missing.end(),
                                 [&](int r) { return fs::exists(path_of(r), ignored); }),
                  missing.end());
    if (missing.empty() || timer.seconds() > patience_s) return missing;
  }
}

std::string SharedFolderProbe::make_nonce() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  return hex64(hash64(cat(now, " ", ::getpid())));
}

Findings check_one_folder(const SharedFolderProbe& probe, const std::vector<int>& ranks) {
  constexpr double kPatience_s = 5;  // of a network file system that shows new files late
  const std::vector<int> unseen = probe.unseen(ranks, kPatience_s);
  if (unseen.empty()) return {};
  return {failed("disk", ExitCode::kDist,
                 cat("run.dir ", probe.dir(), " is not one folder: what ", name_ranks(unseen),
                     " wrote there rank ", probe.rank(), " cannot see"),
                 "put run.dir on a file system that all hosts share")};
}

}  // namespace mgm
