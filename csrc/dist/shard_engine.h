// Moves parameters in and gradients out around the blocks of a model: the one engine behind every
// dist.mode. Knows groups by name and the order they run in; knows no model.
//
// What happens when is decided by dist/pass_program.h, a fixed program of collectives; this
// executes it on tensors. A rank whose batch skips a group (no pictures, nothing supervised) walks
// through the same program without computing, so all ranks issue the same collectives in the same
// order, always. Gathers run one group ahead of the computation and reductions behind it; nothing
// waits on the host but Gloo.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "dist/param_store.h"
#include "dist/pass_program.h"
#include "dist/ranks.h"
#include "dist/strict_sum.h"

namespace mgm {

class ShardEngine : private PassActions {
 public:
  // `order`: every use of a group by a forward pass, in order. Groups of the store that are not in
  // it are never used. All must outlive the engine.
  ShardEngine(ParamStore& store, Ranks& ranks, const std::vector<GroupUse>& order);
  ~ShardEngine() override;
  ShardEngine(const ShardEngine&) = delete;
  ShardEngine& operator=(const ShardEngine&) = delete;

  void begin_step();
  void begin_micro_batch(const MicroBatch& micro);
  // Around every use of a group, in run order: before_use returns, with the group's parameters
  // present, what after_use takes, which takes them away again and arranges for the backward pass.
  int before_use(const std::string& group);
  void after_use(int visit, const std::vector<at::Tensor>& outputs);
  // Whether a backward pass goes through the group's uses, on any rank.
  bool passes_gradient(const std::string& group) const { return program_.passes_gradient(group); }
  // Walks to the end of the forward and backward programs.
  void end_micro_batch();
  // Every ParamGroup::grad then holds the gradient of the step, summed over ranks.
  void end_step();
  // The optimizer has written ParamGroup::trained.shard: whole copies follow.
  void parameters_changed();
  // Parts have been written by a loader: whole copies, frozen ones too, follow.
  void parameters_loaded();

 private:
  struct Reduction {  // under way
    ParamGroup* group = nullptr;
    at::Tensor in, out;
    Pending pending;
  };

  void gather(int group, bool frozen_too, const char* why) override;
  void arrive(int group) override;
  void release(int group) override;
  void scatter(int group, bool first) override;
  void collect(int group, bool first) override;
  void keep(int group) override;
  void clear(int group) override;
  void sum_replicas(int group) override;
  void send_leaf(int group) override;

  // The communicator of a group of parameters.
  static ProcessGroup& of(const ParamGroup& group, const std::shared_ptr<ProcessGroup>& all,
                          const std::shared_ptr<ProcessGroup>& experts) {
    return group.experts ? *experts : *all;
  }
  ParamGroup& group(int number) { return *groups_[static_cast<size_t>(number)]; }

  ParamStore& store_;
  Ranks& ranks_;
  const Topology topology_;
  const at::ScalarType reduce_dtype_;
  std::vector<ParamGroup*> groups_;  // of the store, in its order
  PassProgram program_;

  std::map<int, std::vector<Pending>> arriving_;  // gathers under way
  std::deque<Reduction> reductions_;
  std::vector<Reduction> replica_sums_;
  std::map<ParamGroup*, StrictSum> leaves_;
};

}  // namespace mgm
