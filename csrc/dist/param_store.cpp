#include "dist/param_store.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "base/error.h"

namespace mgm {
namespace {

constexpr int64_t kAlign = 128;  // elements: 256 bytes in bf16, what cuBLAS and grouped GEMMs like

int64_t aligned(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// Adds a finished gradient into the group's fp32 buffer and frees it: bf16 `.grad`s would lose what
// micro-batches add (256 + 1 = 256), and only one of them exists at a time.
class AccumulateInto : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit AccumulateInto(at::Tensor sink) : sink_(std::move(sink)) {}
  void operator()(const torch::autograd::Variable& leaf) override {
    const at::NoGradGuard no_grad;
    sink_.add_(leaf.grad());
    leaf.mutable_grad().reset();
  }

 private:
  at::Tensor sink_;
};

}  // namespace

ParamStore::ParamStore(const std::vector<Param*>& params, const std::vector<ParamPolicy>& policies,
                       at::Device device, at::ScalarType dtype, bool gradients)
    : device_(device), dtype_(dtype) {
  MGM_CHECK(params.size() == policies.size(), params.size(), " parameters, ", policies.size(),
            " policies");
  std::map<std::string, size_t> group_index;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i]->spec;
    const auto [it, fresh] = group_index.try_emplace(spec.group, groups_.size());
    if (fresh) groups_.emplace_back().name = spec.group;
    ParamPolicy policy = policies[i];
    policy.train = policy.train && gradients;
    groups_[it->second].segments.push_back({params[i], policy, 0, spec.numel()});
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    allocate(groups_[g], gradients);
    for (size_t s = 0; s < groups_[g].segments.size(); ++s) {
      const std::string& name = groups_[g].segments[s].param->spec.name;
      MGM_CHECK(index_.emplace(name, Place{g, s}).second, "parameter ", name, " is declared twice");
    }
  }
}

ParamStore::~ParamStore() {
  for (ParamGroup& group : groups_) {
    for (Segment& segment : group.segments) segment.param->value.reset();
  }
}

void ParamStore::allocate(ParamGroup& group, bool gradients) {
  std::stable_sort(
      group.segments.begin(), group.segments.end(),
      [](const Segment& a, const Segment& b) { return a.policy.train > b.policy.train; });
  int64_t size = 0;
  for (Segment& segment : group.segments) {
    segment.offset = size;
    size += aligned(segment.numel);
    if (segment.policy.train) group.trainable = size;
  }
  group.flat = at::zeros({size}, at::TensorOptions(device_).dtype(dtype_));
  if (gradients && group.trainable > 0) {
    group.master = dtype_ == at::kFloat
                       ? group.flat.narrow(0, 0, group.trainable)
                       : at::zeros({group.trainable}, at::TensorOptions(device_).dtype(at::kFloat));
    // fp64 runs (numeric tests) keep fp64 gradients.
    group.grad = at::zeros(
        {group.trainable},
        at::TensorOptions(device_).dtype(dtype_ == at::kDouble ? at::kDouble : at::kFloat));
  }
  for (Segment& segment : group.segments) {
    const std::vector<int64_t>& shape = segment.param->spec.shape;
    // A leaf of its own that shares the storage, not a view: a sharding engine may free and refill
    // the storage between uses without autograd noticing.
    at::Tensor leaf = at::empty({0}, group.flat.options());
    leaf.set_(group.flat.storage(), segment.offset, shape);
    if (segment.policy.train) {
      leaf.requires_grad_(true);
      torch::autograd::impl::set_post_acc_grad_hooks(
          leaf, std::make_unique<AccumulateInto>(
                    group.grad.narrow(0, segment.offset, segment.numel).view(shape)));
    }
    segment.param->value = leaf;
  }
}

void ParamStore::assign(const std::string& name, const at::Tensor& value) {
  const at::NoGradGuard no_grad;
  const Place place = index_.at(name);
  ParamGroup& group = groups_[place.group];
  const Segment& segment = group.segments[place.segment];
  MGM_CHECK(value.numel() == segment.numel, name, ": ", value.numel(), " values for ",
            segment.numel);
  segment.param->value.detach().copy_(value.view(segment.param->spec.shape));
  if (segment.policy.train && group.master.data_ptr() != group.flat.data_ptr()) {
    group.master.narrow(0, segment.offset, segment.numel).copy_(value.reshape(-1));
  }
}

at::Tensor ParamStore::value(const std::string& name) const {
  const Place place = index_.at(name);
  const ParamGroup& group = groups_[place.group];
  const Segment& segment = group.segments[place.segment];
  if (!segment.policy.train) return segment.param->value.detach();
  return group.master.narrow(0, segment.offset, segment.numel).view(segment.param->spec.shape);
}

void ParamStore::zero_grad() {
  for (ParamGroup& group : groups_) {
    if (group.grad.defined()) group.grad.zero_();
  }
}

}  // namespace mgm
