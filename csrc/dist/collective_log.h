// The last collectives of a process, for the question every hang asks: which rank did not enter
// which one. Written by the thread that issues them, read by any other; never waits for a device.
//
// What else ranks wait for each other in is written here too: the connecting of a group (number
// kConnectNumber of it), and the rounds that the start makes through the store (kStartGroup).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"

namespace mgm {

inline constexpr const char* kConnect = "connect";   // the operation
inline constexpr int64_t kConnectNumber = -1;        // before the first collective
inline constexpr const char* kStartGroup = "start";  // of all ranks

struct CollectiveRecord {
  int64_t sequence = 0;  // of its group, from 0: equal on all ranks that agree
  std::string group;     // "world", "gather", ...
  std::string operation;
  std::string label;  // what it is for: a parameter group, "loss", ...
  std::string dtype;
  int64_t numel = 0;                 // of the larger side
  double entered_s = 0, left_s = 0;  // seconds since the process began; left 0: not yet
  bool on_device = false;  // left says that the host went on, not that the device has ended it
};

OrderedJson to_json(const std::vector<CollectiveRecord>& records);
// Throws Json::exception.
std::vector<CollectiveRecord> collective_records(const Json& json);

class CollectiveLog {
 public:
  explicit CollectiveLog(size_t capacity = 4096) : capacity_(capacity) {}
  // Returns a ticket for leave().
  uint64_t enter(CollectiveRecord record);
  void leave(uint64_t ticket);
  // Behind the last one of a group that was entered; 0: none was.
  int64_t next_sequence(const std::string& group) const;
  // Oldest first.
  std::vector<CollectiveRecord> records() const;
  // The last one entered of each group, oldest first.
  std::vector<CollectiveRecord> latest() const;

 private:
  mutable std::mutex mutex_;
  size_t capacity_;
  uint64_t next_ = 0;
  std::vector<CollectiveRecord> ring_;
  struct Last {
    uint64_t ticket;
    int64_t sequence;
  };
  std::map<std::string, Last> latest_;  // by group
};

}  // namespace mgm
