// The program of collectives that the passes of a step are: which groups come in when and go again,
// when gradients leave, and all of their order. A function of the run order, the policies, the
// topology and the micro-batches' MicroBatch alone; what a rank computes in between does not enter.
// No torch: dist/shard_engine.h executes it with tensors, train/rehearsal.h walks it for any number
// of ranks without them, so that the two cannot differ.
//
// Order of a backward pass over groups k = 0, 1, ... (reverse run order):
//   [gather 0, gather 1] compute 0 [reduce 0, gather 2] compute 1 [reduce 1, gather 3] ...
#pragma once

#include <set>
#include <string>
#include <vector>

#include "dist/topology.h"
#include "types/group_use.h"

namespace mgm {

// What all ranks together do with micro-batch number i of a step; equal on every rank.
struct MicroBatch {
  bool runs = false;    // some rank has something to learn in it
  bool images = false;  // some rank has pictures in it
  bool last = false;    // of its step (strict: of its leaf)
};

// What the program has done. Groups by their number.
class PassActions {
 public:
  virtual ~PassActions() = default;
  // The group's parameters begin to come in whole; those that train alone unless `frozen_too`.
  virtual void gather(int group, bool frozen_too, const char* why) = 0;
  virtual void arrive(int group) = 0;   // they are there; nothing where none were on their way
  virtual void release(int group) = 0;  // and go
  // The gradient of a backward pass (zeros if there was none) begins to leave for the ranks that
  // hold its parts; `first` of its step, or to be added to what is there.
  virtual void scatter(int group, bool first) = 0;
  virtual void collect(int group, bool first) = 0;  // the oldest scatter that is under way ends
  virtual void keep(int group) = 0;                 // what has added up on the rank is the gradient
  virtual void clear(int group) = 0;                // the gradient is zero
  virtual void sum_replicas(int group) = 0;  // the gradient begins to be summed over replicas
  virtual void send_leaf(int group) = 0;     // strict: one leaf of the sum goes to its owners
};

class PassProgram {
 public:
  struct Group {
    std::string name;
    bool trains = false;   // some of its parameters do
    bool experts = false;  // dealt: cut as Topology::of_experts says
  };

  // `order`: every use of a group by a forward pass, in order; names that are not in `groups` have
  // no parameters. `actions` must outlive the program.
  PassProgram(std::vector<Group> groups, const std::vector<GroupUse>& order,
              const Topology& topology, bool strict, PassActions& actions);

  void begin_step();
  void begin_micro_batch(const MicroBatch& micro);
  // Brings the next use of `name` in; everything that is passed over is walked through. Returns the
  // visit. Throws InternalError when the use is out of order.
  int enter(const std::string& name);
  // The use has computed. `visit` as enter returned it.
  void leave(int visit);
  // The visit of the backward pass that belongs to a forward visit; -1 if no gradient passes.
  int backward_visit(int visit) const;
  // The gradient of a use's output is there: walks the backward program up to it. Further calls for
  // the same visit do nothing.
  void enter_backward(int visit);
  // Walks to the end of the forward and backward programs.
  void end_micro_batch();
  void end_step();
  // The optimizer has written this rank's parts: whole copies follow.
  void parameters_changed();

  const std::vector<Group>& groups() const { return groups_; }
  // Whether a backward pass goes through the group's uses, on any rank.
  bool passes_gradient(const std::string& group) const;

 private:
  struct Use {
    std::string name;
    int group = -1;  // -1: a group without parameters
    bool vision = false;
    bool backward = false;  // gradients pass through it
  };
  // A step of a pass. The group comes in at its first step and goes at its last.
  struct Visit {
    int use = 0;
    bool gathers = false, releases = false;
    bool finishes = false;  // backward: the group's gradient is complete behind it
  };
  struct Pass {
    std::vector<Visit> visits;
    int next = 0;         // visits below have been entered
    int gathered_to = 0;  // visits below have been gathered

    int size() const { return static_cast<int>(visits.size()); }
    const Visit& at(int v) const { return visits[static_cast<size_t>(v)]; }
  };
  struct Scatter {  // under way
    int group = 0;
    bool then_replicas = false;
  };

  const Use& use(const Visit& visit) const { return uses_[static_cast<size_t>(visit.use)]; }
  const Group& group(int number) const { return groups_[static_cast<size_t>(number)]; }
  const Topology& topology(int group) const { return topologies_.of(this->group(group).experts); }
  void plan_passes();
  void enter(Pass& pass, int visit);  // walks there and brings its group in
  void leave(const Pass& pass, int visit);
  void finish(int group, bool has_gradient);
  void scatter(int group, bool then_replicas);
  void absorb();

  std::vector<Group> groups_;
  std::vector<Use> uses_;
  const Topologies topologies_;
  const bool strict_;
  PassActions& actions_;

  MicroBatch micro_;
  Pass forward_, backward_;
  std::vector<Scatter> scatters_;
  std::set<int> summed_;    // the gradient holds something of this step
  std::set<int> finished_;  // in this micro-batch
};

}  // namespace mgm
