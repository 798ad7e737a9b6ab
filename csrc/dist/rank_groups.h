// The groups of ranks that a run communicates through (dist/ranks.h), as one of its ranks sees
// them: names, members and places; and the labels of what dealt experts exchange. No torch, no
// communication: for those who connect, plan and rehearse.
#pragma once

#include <string>
#include <vector>

#include "dist/topology.h"

namespace mgm {

// Ranks first, first + stride, ... of the world.
struct GroupPlace {
  std::string name;
  int size = 1, first = 0, stride = 1;
  int rank = 0;  // this rank's number in it
};
// "ranks 0-3", "ranks 1, 3, 5".
std::string members(const GroupPlace& group);

struct RankGroups {
  explicit RankGroups(const Topology& topology);

  GroupPlace control, world, gather, reduce;
  GroupPlace replica;  // the world where that would be the same ranks
  // Of one rank where no experts are dealt.
  GroupPlace expert_world, expert_gather, expert_reduce;
  GroupPlace expert_replica;  // expert_world where that would be the same ranks
  GroupPlace exchange;

  // Those for tensors of the run's device that connect several ranks, each once.
  std::vector<const GroupPlace*> connected() const;
};

// What goes to a block's experts and back is labelled with the name of their parameter group and
// one of these; the rows themselves with the name alone.
inline constexpr const char* kVisitsLabel = " visits";
inline constexpr const char* kDrawsLabel = " draws";
inline constexpr const char* kResultsLabel = " results";
inline constexpr const char* kBackwardLabel = " backward";  // behind that: the gradient's way

}  // namespace mgm
