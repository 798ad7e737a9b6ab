// Moves parameters in and gradients out around the blocks of a model: the one engine behind every
// dist.mode. Knows groups by name and the order they run in; knows no model.
//
// A pass is a fixed program of collectives, a function of the run order, the policies and the
// micro-batch's MicroBatch alone. A rank whose batch skips a group (no pictures, nothing
// supervised) walks through the same program without computing, so all ranks issue the same
// collectives in the same order, always. Gathers run one group ahead of the computation and
// reductions behind it; nothing waits on the host but Gloo.
//
// Order of a backward pass over groups k = 0, 1, ... (reverse run order):
//   [gather 0, gather 1] compute 0 [reduce 0, gather 2] compute 1 [reduce 1, gather 3] ...
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "dist/param_store.h"
#include "dist/ranks.h"
#include "dist/strict_sum.h"

namespace mgm {

// What all ranks together do with micro-batch number i of a step; equal on every rank.
struct MicroBatch {
  bool runs = false;    // some rank has something to learn in it
  bool images = false;  // some rank has pictures in it
  bool last = false;    // of its step (strict: of its leaf)
};

class ShardEngine {
 public:
  // `order`: every use of a group by a forward pass, in order. Groups of the store that are not in
  // it are never used. All must outlive the engine.
  ShardEngine(ParamStore& store, Ranks& ranks, const std::vector<GroupUse>& order);
  ~ShardEngine();
  ShardEngine(const ShardEngine&) = delete;
  ShardEngine& operator=(const ShardEngine&) = delete;

  void begin_step();
  void begin_micro_batch(const MicroBatch& micro);
  // Around every use of a group, in run order: before_use returns, with the group's parameters
  // present, what after_use takes, which takes them away again and arranges for the backward pass.
  int before_use(const std::string& group);
  void after_use(int visit, const std::vector<at::Tensor>& outputs);
  // Walks to the end of the forward and backward programs.
  void end_micro_batch();
  // Every ParamGroup::grad then holds the gradient of the step, summed over ranks.
  void end_step();
  // The optimizer has written ParamGroup::trained.shard: whole copies follow.
  void parameters_changed();
  // Parts have been written by a loader: whole copies, frozen ones too, follow.
  void parameters_loaded();

 private:
  struct Use {
    std::string name;
    ParamGroup* group = nullptr;  // null: a group without parameters
    bool vision = false;
    bool backward = false;  // gradients pass through it
  };
  // A step of a pass. The group comes in at its first step and goes at its last.
  struct Visit {
    int use = 0;
    bool gathers = false, releases = false;
    bool finishes = false;  // backward: the group's gradient is complete behind it
  };
  struct Program {
    std::vector<Visit> visits;
    int next = 0;         // visits below have been entered
    int gathered_to = 0;  // visits below have been gathered

    int size() const { return static_cast<int>(visits.size()); }
  };
  struct Reduction {  // under way
    ParamGroup* group = nullptr;
    at::Tensor in, out;
    Pending pending;
    bool then_replicas = false;
  };

  void plan_passes();
  void enter(Program& program, int visit);  // walks there and brings its group in
  void leave(Program& program, int visit);
  void gather(ParamGroup& group, bool frozen_too, const char* why);
  void arrive(ParamGroup& group);
  void release(ParamGroup& group);
  void before_backward(int visit);
  void finish(ParamGroup& group, bool has_gradient);
  void finish_leaf(ParamGroup& group);
  void scatter(ParamGroup& group, at::Tensor bucket, bool then_replicas);
  void across_replicas(ParamGroup& group);
  void absorb();
  std::vector<ParamGroup*> trained_groups();

  ParamStore& store_;
  Ranks& ranks_;
  const Topology topology_;
  const at::ScalarType reduce_dtype_;
  std::vector<Use> uses_;

  MicroBatch micro_;
  Program forward_, backward_;
  std::map<ParamGroup*, std::vector<Pending>> arriving_;  // gathers under way
  std::vector<Reduction> reductions_;
  std::vector<Reduction> replica_sums_;
  std::set<const ParamGroup*> summed_;    // grad holds something of this step
  std::set<const ParamGroup*> finished_;  // in this micro-batch
  std::map<ParamGroup*, StrictSum> leaves_;
};

}  // namespace mgm
