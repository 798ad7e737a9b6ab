// Storage of all parameters, in ParamGroups: one flat buffer per group (a decoder block, a tower
// part, ...) that the group's parameters share as independent leaves, one part for what trains and
// one for what is frozen. Ranks cut each buffer into equal parts (dist/topology.h); what trains has
// an fp32 master of this rank's part (the part itself in fp32 runs) and its summed gradient.
//
// Who calls what: the store allocates, binds and holds; dist/shard_engine.h moves parts between
// ranks; optim/adamw.h updates this rank's part.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "dist/topology.h"
#include "types/param.h"

namespace mgm {

// A parameter's place in its flat buffer, in elements. Places do not depend on the ranks.
struct Segment {
  Param* param = nullptr;
  ParamPolicy policy;
  int64_t offset = 0;
  int64_t numel = 0;
};

struct Flat {
  std::vector<Segment> segments;
  int64_t numel = 0;   // aligned segments; the same whatever the ranks
  int64_t padded = 0;  // cut into equal parts
  int64_t begin = 0;   // this rank's part is [begin, begin + part)
  int64_t part = 0;
  at::Tensor full;   // compute dtype [padded]; has storage only while parameters are whole
  at::Tensor shard;  // compute dtype [part]: this rank's part; a view of `full` where that lasts

  // Of experts that are dealt to several ranks: the segments of all of these ranks, as if their
  // buffers lay one behind another, and where this rank's would begin. Else empty and 0.
  std::vector<Segment> dealt;
  int64_t dealt_begin = 0;
  // Of a block whose experts are dealt and so in another group: where they would begin here.
  int64_t before_experts = 0;

  bool empty() const { return padded == 0; }
  // Of the whole model.
  const std::vector<Segment>& all_segments() const { return dealt.empty() ? segments : dealt; }
};

// Gradients of one backward (or of several that add up) before they leave the rank.
struct GradBucket {
  at::Tensor flat;           // [padded] of the trained buffer; undefined while unused
  std::vector<bool> filled;  // per trained segment
};

// Leaves over the trained parameters' storage whose gradients are summed by themselves. Strict sums
// have one per rank of an expert group, for what the rows of that rank contribute.
struct GradLane {
  std::vector<at::Tensor> leaves;  // per trained segment
  GradBucket bucket;
};

struct ParamGroup {
  std::string name;
  bool experts = false;  // dealt to the ranks of an expert group
  Topology topology;     // of the ranks that share it: the run's, or Topology::of_experts
  Flat trained, frozen;
  at::Tensor master;  // fp32 [part] of the trained buffer; on the host with offload
  at::Tensor grad;    // fp32 [part]: the step's gradient, summed over ranks
  GradBucket bucket;
  std::deque<GradLane> lanes;  // instead of `bucket` where dealt experts have strict sums

  int64_t params() const { return trained.numel + frozen.numel; }
};

struct StoreSettings {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // of parameters in use
  bool gradients = false;             // what trains gets master, grad and requires_grad
  Topology topology;
  // Of gradients between ranks, where they leave after every micro-batch.
  at::ScalarType bucket_dtype = at::kFloat;
  // Strict reduction: a bucket holds one leaf of the sum, in fp32, and is never the sum itself.
  bool strict = false;
  // CUDA: masters (and the optimizer's moments) live in page-locked host memory.
  bool offload = false;
};

class ParamStore {
 public:
  // Allocates and binds every Param::value; policies[i] belongs to params[i]. Packed weights are
  // left out: nobody moves them; and experts that other ranks hold. Throws ConfigError where
  // experts of a block are to be dealt of which some train and others do not.
  ParamStore(const std::vector<Param*>& params, const std::vector<ParamPolicy>& policies,
             const StoreSettings& settings);
  ~ParamStore();
  ParamStore(const ParamStore&) = delete;
  ParamStore& operator=(const ParamStore&) = delete;

  std::deque<ParamGroup>& groups() { return groups_; }
  const std::deque<ParamGroup>& groups() const { return groups_; }
  ParamGroup* find_group(const std::string& name);  // null if there is none
  bool contains(const std::string& name) const { return places_.count(name) > 0; }

  // The elements [first, first + count) of a parameter that lie in this rank's part.
  struct Range {
    int64_t first = 0, count = 0;
  };
  Range owned(const std::string& name) const;
  // Sets elements [first, first + values.numel()) of a parameter, and its master, from a tensor of
  // any float dtype and device; what is not in this rank's part is left out.
  void assign(const std::string& name, int64_t first, const at::Tensor& values);
  // Sets a whole parameter.
  void assign(const std::string& name, const at::Tensor& value);
  // fp32 elements of a parameter that lie in this rank's part, a copy: master where it has one.
  at::Tensor owned_values(const std::string& name) const;
  // The whole parameter in fp32; only where parts are whole (shard_size 1).
  at::Tensor value(const std::string& name) const;
  // The step's gradient of a trained parameter as owned() cuts it, a view; for tests.
  at::Tensor owned_grad(const std::string& name) const;

  // Forgets what buckets and gradients hold: a new step begins.
  void begin_step();
  // Graphs that are built from here on send gradients of the group's experts to lane `lane`.
  void enter_lane(ParamGroup& group, size_t lane);

  const StoreSettings& settings() const { return settings_; }
  at::Device device() const { return settings_.device; }
  at::ScalarType dtype() const { return settings_.dtype; }

 private:
  struct Place {
    ParamGroup* group;
    Flat* flat;
    size_t segment;
  };
  const Place& place(const std::string& name) const;
  void allocate(ParamGroup& group);
  void allocate(const ParamGroup& group, Flat& flat);
  void add_leaves(ParamGroup& group, GradBucket& bucket, bool own);

  StoreSettings settings_;
  std::deque<ParamGroup> groups_;  // stable addresses: gradient hooks keep them
  std::map<std::string, Place> places_;
};

// Storage of `full` on and off; the leaves that share it follow.
void give_storage(Flat& flat);
void take_storage(Flat& flat);
bool has_storage(const Flat& flat);

// Zeroes what no gradient has filled (parameters a batch does not use, alignment gaps) and hands
// the bucket (the group's own, or a lane's) over; empty buckets come as zeros. It is undefined
// afterwards unless `keep`.
at::Tensor finish_bucket(ParamGroup& group, GradBucket& bucket, const StoreSettings& settings,
                         bool keep);

}  // namespace mgm
