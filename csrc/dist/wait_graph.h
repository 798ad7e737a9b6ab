// Which rank of a job that hangs waits for which, from the last collective of each in every group.
// A rank that has entered a collective waits for the members of the group that have not; of these
// many wait themselves, in another group. Whoever is waited for and waits for nobody has caused it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dist/flight_record.h"

namespace mgm {

// How far a rank has come in a group.
struct LastEntered {
  const FlightRecord* record = nullptr;
  const CollectiveRecord* collective = nullptr;  // null: not even its connecting
  bool waits = false;                            // in it, as far as its host knows

  int64_t sequence() const { return collective ? collective->sequence : kConnectNumber - 1; }
};

using GroupProgress = std::map<int, LastEntered>;  // by rank, of members that left a record

// A rank that holds others up.
struct Culprit {
  const LastEntered* last = nullptr;          // in the group where most wait for it
  const CollectiveRecord* missing = nullptr;  // the first of the group that it has not entered
  std::vector<int> waiting;                   // ranks that wait in that
};

class WaitGraph {
 public:
  // `records`, one per rank, must outlive it. Ranks of the world without one wait for nobody, nor
  // do silent ones.
  explicit WaitGraph(const std::vector<FlightRecord>& records);

  const std::map<std::string, GroupProgress>& groups() const { return groups_; }
  // Of ranks that left a record, by rank. Where ranks wait for each other in a circle: all of it.
  std::vector<Culprit> culprits() const;

 private:
  void place_ranks(const std::vector<FlightRecord>& records);
  void connect();
  std::vector<bool> reachable_from(size_t node) const;
  Culprit held_up_by(int rank) const;

  std::map<std::string, GroupProgress> groups_;
  std::map<std::string, bool> has_absent_;  // by group: a member left no record
  // Nodes: the ranks in the order of their records; one for all that left none; and one for each
  // group and number, which stands for all ranks that have not come further than that.
  std::vector<int> rank_of_;
  std::map<int, size_t> node_of_;
  std::vector<std::vector<size_t>> edges_;
};

}  // namespace mgm
