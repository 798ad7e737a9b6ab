#include "dist/param_store.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/native/Resize.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "base/error.h"
#include "dist/group_sizes.h"
#include "dist/pinned.h"
#include "types/expert_group.h"
#ifdef MGM_WITH_CUDA
#include <ATen/native/cuda/Resize.h>
#endif

namespace mgm {
namespace {

at::ScalarType sum_dtype(const StoreSettings& settings) {
  return settings.dtype == at::kDouble ? at::kDouble : at::kFloat;  // fp64: numeric tests
}

at::ScalarType bucket_dtype(const ParamGroup& group, const StoreSettings& settings) {
  return group.topology.reduces_every_micro_batch() && !settings.strict &&
                 settings.dtype != at::kDouble
             ? settings.bucket_dtype
             : sum_dtype(settings);
}

void resize_storage(const at::Tensor& tensor, size_t bytes) {
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  if (storage->nbytes() == bytes) return;
#ifdef MGM_WITH_CUDA
  if (tensor.is_cuda()) {
    at::native::resize_bytes_cuda(storage, bytes);
    return;
  }
#endif
  at::native::resize_bytes_cpu(storage, bytes);
}

void allocate_bucket(const ParamGroup& group, GradBucket& bucket, const StoreSettings& settings) {
  if (bucket.flat.defined()) return;
  bucket.flat = at::empty({group.trained.padded},
                          at::TensorOptions(settings.device).dtype(bucket_dtype(group, settings)));
}

// Moves a finished gradient into the group's bucket and frees it: bf16 `.grad`s would lose what
// micro-batches add (256 + 1 = 256), and only one of them exists at a time.
class CollectGradient : public torch::autograd::PostAccumulateGradHook {
 public:
  CollectGradient(const ParamGroup& group, GradBucket& bucket, const StoreSettings& settings,
                  size_t segment)
      : group_(group), bucket_(bucket), settings_(settings), segment_(segment) {}
  void operator()(const torch::autograd::Variable& leaf) override {
    const at::NoGradGuard no_grad;
    allocate_bucket(group_, bucket_, settings_);
    const Segment& s = group_.trained.segments[segment_];
    const at::Tensor sink = bucket_.flat.narrow(0, s.offset, s.numel).view(leaf.sizes());
    if (bucket_.filled[segment_]) {
      sink.add_(leaf.grad());
    } else {
      sink.copy_(leaf.grad());
      bucket_.filled[segment_] = true;
    }
    leaf.mutable_grad().reset();
  }

 private:
  const ParamGroup& group_;
  GradBucket& bucket_;
  const StoreSettings& settings_;
  size_t segment_;
};

}  // namespace

namespace {

// Every rank of an expert group must have buffers of one layout: the collectives are the same.
void check_evenly_dealt(const ParamGroup& group, int expert_ranks) {
  for (const Flat* flat : {&group.trained, &group.frozen}) {
    if (flat->dealt.empty()) continue;
    const auto share = flat->segments.size();
    const Segment& last = flat->dealt.back();
    const bool even = share * static_cast<size_t>(expert_ranks) == flat->dealt.size() &&
                      flat->numel * expert_ranks == last.offset + aligned(last.numel) &&
                      flat->dealt_begin % std::max<int64_t>(flat->numel, 1) == 0;
    if (even) continue;
    throw ConfigError("dist.expert_parallel: ", expert_ranks,
                      " ranks hold the experts of a block, but train.rules train some experts of ",
                      group.name, " and not others; rules for experts must match all of them");
  }
}

}  // namespace

ParamStore::ParamStore(const std::vector<Param*>& params, const std::vector<ParamPolicy>& policies,
                       const StoreSettings& settings)
    : settings_(settings) {
  MGM_CHECK(params.size() == policies.size(), params.size(), " parameters, ", policies.size(),
            " policies");
  const Topology& t = settings.topology;
  const int64_t experts = experts_of(params);
  std::map<std::string, ParamGroup*> by_name;
  std::vector<ParamPolicy> resolved = policies;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i]->spec;
    if (spec.format != WeightFormat::kDense) continue;
    ParamGroup*& group = by_name[spec.group];
    if (!group) {
      group = &groups_.emplace_back();
      group->name = spec.group;
      group->experts = spec.expert >= 0 && t.expert_ranks > 1;
      group->topology = Topologies(t).of(group->experts);
      if (group->experts) {
        const auto block = by_name.find(block_of(spec.group));
        if (block != by_name.end()) {
          block->second->trained.before_experts = block->second->trained.numel;
        }
      }
    }
    ParamPolicy& policy = resolved[i];
    policy.train = policy.train && settings.gradients;
    Flat& flat = policy.train ? group->trained : group->frozen;
    if (group->experts) {
      // Experts come in order, so do the ranks that hold them.
      std::vector<Segment>& all = flat.dealt;
      const int64_t end = all.empty() ? 0 : all.back().offset + aligned(all.back().numel);
      all.push_back({params[i], policy, end, spec.numel()});
      if (!holds_expert(spec, experts, t.expert_ranks, t.expert_rank())) continue;
      if (flat.segments.empty()) flat.dealt_begin = end;
    }
    flat.segments.push_back({params[i], policy, flat.numel, spec.numel()});
    flat.numel += aligned(spec.numel());
    const Place place{group, &flat, flat.segments.size() - 1};
    MGM_CHECK(places_.emplace(spec.name, place).second, "parameter ", spec.name,
              " is declared twice");
  }
  for (ParamGroup& group : groups_) {
    check_evenly_dealt(group, t.expert_ranks);
    allocate(group);
  }
}

ParamStore::~ParamStore() {
  for (const auto& [name, place] : places_)
    place.flat->segments[place.segment].param->value.reset();
}

void ParamStore::allocate(const ParamGroup& group, Flat& flat) {
  const Topology& t = group.topology;
  flat.padded = padded(flat.numel, t.shard_size);
  flat.part = flat.padded / t.shard_size;
  flat.begin = flat.part * t.shard_rank();
  const at::TensorOptions options = at::TensorOptions(settings_.device).dtype(settings_.dtype);
  flat.full = at::empty({flat.padded}, options);
  if (t.shards_parameters()) {
    flat.shard = at::zeros({flat.part}, options);
  } else {
    flat.full.zero_();
    flat.shard = flat.full.narrow(0, flat.begin, flat.part);
  }
  for (const Segment& segment : flat.segments) {
    // A leaf of its own that shares the storage, not a view: the storage is freed and refilled
    // between uses without autograd noticing.
    at::Tensor leaf = at::empty({0}, options);
    leaf.set_(flat.full.storage(), segment.offset, segment.param->spec.shape);
    segment.param->value = leaf;
  }
  if (t.shards_parameters()) take_storage(flat);
}

void ParamStore::allocate(ParamGroup& group) {
  allocate(group, group.frozen);
  allocate(group, group.trained);
  if (group.trained.empty()) return;
  const at::TensorOptions options(settings_.device);
  if (settings_.offload) {
    group.master = pinned_tensor(group.trained.part, at::kFloat).zero_();
  } else if (settings_.dtype == at::kFloat) {
    group.master = group.trained.shard;
  } else {
    group.master = at::zeros({group.trained.part}, options.dtype(at::kFloat));
  }
  group.grad = at::zeros({group.trained.part}, options.dtype(sum_dtype(settings_)));
  // What never leaves the rank adds up in place.
  if (group.topology.shard_size == 1 && !settings_.strict) {
    group.bucket.flat = group.grad;
  }
  if (group.experts && settings_.strict) {
    for (int lane = 0; lane < settings_.topology.expert_ranks; ++lane) {
      add_leaves(group, group.lanes.emplace_back().bucket, lane == 0);
    }
  } else {
    add_leaves(group, group.bucket, /*own=*/true);
  }
}

// What a graph takes for the trained parameters to send their gradients to `bucket`: the
// parameters' own values, or other leaves over the same storage for a lane.
void ParamStore::add_leaves(ParamGroup& group, GradBucket& bucket, bool own) {
  bucket.filled.assign(group.trained.segments.size(), false);
  for (size_t s = 0; s < group.trained.segments.size(); ++s) {
    const at::Tensor& value = group.trained.segments[s].param->value;
    at::Tensor leaf = own ? value : value.detach();
    leaf.requires_grad_(true);
    torch::autograd::impl::set_post_acc_grad_hooks(
        leaf, std::make_unique<CollectGradient>(group, bucket, settings_, s));
    if (!group.lanes.empty()) group.lanes.back().leaves.push_back(leaf);
  }
}

void ParamStore::enter_lane(ParamGroup& group, size_t lane) {
  if (group.lanes.empty()) return;
  const std::vector<at::Tensor>& leaves = group.lanes.at(lane).leaves;
  for (size_t s = 0; s < leaves.size(); ++s) group.trained.segments[s].param->value = leaves[s];
}

ParamGroup* ParamStore::find_group(const std::string& name) {
  for (ParamGroup& group : groups_) {
    if (group.name == name) return &group;
  }
  return nullptr;
}

const ParamStore::Place& ParamStore::place(const std::string& name) const {
  const auto it = places_.find(name);
  MGM_CHECK(it != places_.end(), "no parameter ", name);
  return it->second;
}

ParamStore::Range ParamStore::owned(const std::string& name) const {
  const Place& p = place(name);
  const Segment& s = p.flat->segments[p.segment];
  const int64_t begin = std::max(s.offset, p.flat->begin);
  const int64_t end = std::min(s.offset + s.numel, p.flat->begin + p.flat->part);
  if (begin >= end) return {};
  return {begin - s.offset, end - begin};
}

void ParamStore::assign(const std::string& name, int64_t first, const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const Place& p = place(name);
  const Segment& s = p.flat->segments[p.segment];
  const int64_t count = values.numel();
  MGM_CHECK(first >= 0 && first + count <= s.numel, name, ": ", count, " values at ", first, " of ",
            s.numel);
  const at::Tensor flat_values = values.reshape(-1);
  if (has_storage(*p.flat)) p.flat->full.narrow(0, s.offset + first, count).copy_(flat_values);
  const Range mine = owned(name);
  const int64_t begin = std::max(first, mine.first);
  const int64_t end = std::min(first + count, mine.first + mine.count);
  if (begin >= end) return;
  const at::Tensor part = flat_values.narrow(0, begin - first, end - begin);
  const int64_t at = s.offset + begin - p.flat->begin;
  p.flat->shard.narrow(0, at, end - begin).copy_(part);
  if (s.policy.train) p.group->master.narrow(0, at, end - begin).copy_(part);
}

void ParamStore::assign(const std::string& name, const at::Tensor& value) {
  const Place& p = place(name);
  const int64_t numel = p.flat->segments[p.segment].numel;
  MGM_CHECK(value.numel() == numel, name, ": ", value.numel(), " values for ", numel);
  assign(name, 0, value);
}

at::Tensor ParamStore::owned_values(const std::string& name) const {
  const Place& p = place(name);
  const Segment& s = p.flat->segments[p.segment];
  const Range mine = owned(name);
  const at::Tensor& source = s.policy.train ? p.group->master : p.flat->shard;
  const int64_t at = mine.count > 0 ? s.offset + mine.first - p.flat->begin : 0;
  return source.detach()
      .narrow(0, at, mine.count)
      .to(at::kFloat, /*non_blocking=*/false,
          /*copy=*/true);
}

at::Tensor ParamStore::value(const std::string& name) const {
  const Place& p = place(name);
  const Segment& s = p.flat->segments[p.segment];
  if (!s.policy.train && has_storage(*p.flat)) return s.param->value.detach();
  MGM_CHECK(p.group->topology.shard_size == 1, name, " lies in ", p.group->topology.shard_size,
            " parts");
  const at::Tensor& source = s.policy.train ? p.group->master : p.flat->shard;
  return source.narrow(0, s.offset, s.numel).view(s.param->spec.shape);
}

at::Tensor ParamStore::owned_grad(const std::string& name) const {
  const Place& p = place(name);
  const Segment& s = p.flat->segments[p.segment];
  MGM_CHECK(s.policy.train, name, " is frozen");
  const Range mine = owned(name);
  const int64_t at = mine.count > 0 ? s.offset + mine.first - p.flat->begin : 0;
  return p.group->grad.narrow(0, at, mine.count);
}

void ParamStore::begin_step() {
  const auto forget = [](GradBucket& bucket) {
    std::fill(bucket.filled.begin(), bucket.filled.end(), false);
  };
  for (ParamGroup& group : groups_) {
    forget(group.bucket);
    for (GradLane& lane : group.lanes) forget(lane.bucket);
  }
}

void give_storage(Flat& flat) {
  resize_storage(flat.full, static_cast<size_t>(flat.padded) * flat.full.element_size());
}
void take_storage(Flat& flat) { resize_storage(flat.full, 0); }
bool has_storage(const Flat& flat) { return flat.full.storage().nbytes() > 0; }

at::Tensor finish_bucket(ParamGroup& group, GradBucket& bucket, const StoreSettings& settings,
                         bool keep) {
  const at::NoGradGuard no_grad;
  const bool untouched =
      std::none_of(bucket.filled.begin(), bucket.filled.end(), [](bool f) { return f; });
  allocate_bucket(group, bucket, settings);
  if (untouched) {
    bucket.flat.zero_();
  } else {
    // Runs of what no gradient has filled, gaps behind segments among them.
    int64_t begin = 0;
    const auto zero_until = [&](int64_t end) {
      if (end > begin) bucket.flat.narrow(0, begin, end - begin).zero_();
    };
    for (size_t s = 0; s < bucket.filled.size(); ++s) {
      if (!bucket.filled[s]) continue;
      const Segment& segment = group.trained.segments[s];
      zero_until(segment.offset);
      begin = segment.offset + segment.numel;
    }
    zero_until(group.trained.padded);
  }
  std::fill(bucket.filled.begin(), bucket.filled.end(), false);
  at::Tensor out = bucket.flat;
  if (!keep) bucket.flat.reset();
  return out;
}

}  // namespace mgm
