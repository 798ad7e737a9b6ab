#include "optim/adamw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "dist/pinned.h"
#include "dist/strict_sum.h"
#include "kernels/adamw.h"
#include "kernels/sum_squares.h"
#include "types/expert_group.h"
#include "types/on_threads.h"

#ifdef MGM_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mgm {
namespace {

kernels::Bf16* bf16_data(const at::Tensor& t) {
  return reinterpret_cast<kernels::Bf16*>(t.data_ptr<at::BFloat16>());
}

// Segments next to each other with equal hyper-parameters are one call. In elements of this rank's
// part.
struct Run {
  int64_t begin, end;
  ParamPolicy policy;
};

std::vector<Run> runs_of(const Flat& flat) {
  std::vector<Run> runs;
  for (const Segment& segment : flat.segments) {
    const int64_t begin = std::max(segment.offset - flat.begin, int64_t{0});
    const int64_t end = std::min(segment.offset + segment.numel - flat.begin, flat.part);
    if (begin >= end) continue;
    if (!runs.empty() && runs.back().policy.lr_scale == segment.policy.lr_scale &&
        runs.back().policy.weight_decay == segment.policy.weight_decay) {
      runs.back().end = end;
    } else {
      runs.push_back({begin, end, segment.policy});
    }
  }
  return runs;
}

}  // namespace

AdamW::AdamW(ParamStore& store, Ranks& ranks, const OptimizerConfig& config)
    : store_(store), ranks_(ranks), config_(config) {
  for (ParamGroup& group : store.groups()) {
    if (!group.grad.defined()) continue;
    const auto moment = [&] {
      return store.settings().offload ? pinned_tensor(group.trained.part, at::kFloat).zero_()
                                      : at::zeros_like(group.grad);
    };
    states_.push_back({&group, moment(), moment()});
  }
#ifdef MGM_WITH_CUDA
  if (store.settings().offload) {
    std::vector<ParamGroup*> groups;
    for (const State& state : states_) groups.push_back(state.group);
    host_ = std::make_unique<HostUpdate>(groups);
  }
#endif
}

at::Tensor AdamW::gradient_norm() const {
  if (store_.settings().strict) return strict_gradient_norm();
  const at::Device device = store_.device();
  at::Tensor squares = at::zeros({static_cast<int64_t>(states_.size())},
                                 at::TensorOptions(device).dtype(at::kDouble));
#ifdef MGM_WITH_CUDA
  const at::Tensor scratch =
      at::empty({device.is_cuda() ? kernels::kSumSquaresScratch : 0}, squares.options());
#endif
  for (size_t g = 0; g < states_.size(); ++g) {
    const at::Tensor& grad = states_[g].group->grad;
    double* out = squares.data_ptr<double>() + g;
    if (device.is_cpu()) {
      *out = kernels::sum_squares_cpu(grad.data_ptr<float>(), grad.numel(), on_threads);
      continue;
    }
#ifdef MGM_WITH_CUDA
    kernels::sum_squares_cuda(grad.data_ptr<float>(), grad.numel(), scratch.data_ptr<double>(), out,
                              c10::cuda::getCurrentCUDAStream().stream());
#else
    MGM_CHECK(false, "this build has no CUDA");
#endif
  }
  at::Tensor total = squares.sum();
  const Topology& t = ranks_.topology;
  if (t.expert_ranks > 1) {
    // Every element counts on one of the ranks that hold it: groups are cut in two ways.
    for (size_t g = 0; g < states_.size(); ++g) {
      if (states_[g].group->topology.replica_rank() > 0) squares[static_cast<int64_t>(g)].zero_();
    }
    total = squares.sum();
    ranks_.world->all_reduce_sum(total, "gradient norm").wait();
  } else if (t.shard_size > 1) {
    // Every rank of a shard group holds another part; replicas hold the same ones.
    ranks_.reduce->all_reduce_sum(total, "gradient norm").wait();
  }
  return total.sqrt();
}

// Sums of the squares of fixed chunks of a group's buffer, whoever holds it; of dealt experts, of
// all of them in order. Padding left out.
at::Tensor AdamW::whole_chunks(const ParamGroup& group) const {
  const at::Tensor rows = group.grad.view({-1, kFlatAlign}).to(at::kDouble);
  at::Tensor chunks = fixed_order_row_sums(rows * rows).contiguous();
  const std::string label = cat(group.name, " for the norm");
  const auto gathered = [&](ProcessGroup& ranks, const at::Tensor& mine) {
    const at::Tensor all = at::empty({mine.numel() * ranks.size()}, mine.options());
    ranks.all_gather(all, mine, label).wait();
    return all;
  };
  if (group.topology.shard_size > 1) {
    chunks = gathered(group.experts ? *ranks_.expert_reduce : *ranks_.reduce, chunks);
  }
  chunks = chunks.narrow(0, 0, group.trained.numel / kFlatAlign).contiguous();
  return group.experts ? gathered(*ranks_.exchange, chunks) : chunks;
}

// Over the chunks of a block in the order of its parameters, then over blocks: dealt experts have a
// group of their own, but count where they would lie without being dealt.
at::Tensor AdamW::strict_gradient_norm() const {
  std::vector<at::Tensor> blocks;
  for (size_t g = 0; g < states_.size(); ++g) {
    const ParamGroup& group = *states_[g].group;
    at::Tensor chunks = whole_chunks(group);
    const bool dealt = g + 1 < states_.size() && states_[g + 1].group->experts &&
                       states_[g + 1].group->name == experts_group(group.name);
    if (dealt) {
      const int64_t before = group.trained.before_experts / kFlatAlign;
      chunks = at::cat({chunks.narrow(0, 0, before), whole_chunks(*states_[++g].group),
                        chunks.narrow(0, before, chunks.numel() - before)});
    }
    blocks.push_back(fixed_order_sum(chunks));
  }
  if (blocks.empty()) return at::zeros({}, at::TensorOptions(store_.device()).dtype(at::kDouble));
  return fixed_order_sum(at::stack(blocks)).sqrt();
}

struct AdamW::Factors {
  double lr = 0;
  int64_t step = 0;
  at::Tensor skip;   // 1 where the norm is not finite
  at::Tensor scale;  // clip factor of torch's clip_grad_norm_; undefined without clipping
};

// One group, where its state is. `copy`: receives the new weights in bf16 if they are not the
// masters themselves.
void AdamW::update(State& state, const float* grad, const at::Tensor& copy,
                   const Factors& factors) {
  const ParamGroup& group = *state.group;
  const bool has_copy = group.master.const_data_ptr() != copy.const_data_ptr();
  for (const Run& run : runs_of(group.trained)) {
    kernels::AdamWBuffers<float> buffers;
    buffers.n = run.end - run.begin;
    buffers.master = group.master.data_ptr<float>() + run.begin;
    buffers.exp_avg = state.exp_avg.data_ptr<float>() + run.begin;
    buffers.exp_avg_sq = state.exp_avg_sq.data_ptr<float>() + run.begin;
    buffers.grad = grad + run.begin;
    buffers.copy = has_copy ? bf16_data(copy) + run.begin : nullptr;
    buffers.grad_scale = factors.scale.defined() ? factors.scale.data_ptr<float>() : nullptr;
    buffers.skip = factors.skip.data_ptr<float>();
    const kernels::AdamWScalars scalars{
        factors.lr * run.policy.lr_scale, config_.betas[0], config_.betas[1], config_.eps,
        run.policy.weight_decay,          factors.step};
    if (group.master.is_cpu()) {
      kernels::adamw_cpu(buffers, scalars, on_threads);
      continue;
    }
#ifdef MGM_WITH_CUDA
    kernels::adamw_cuda(buffers, scalars, c10::cuda::getCurrentCUDAStream().stream());
#endif
  }
}

void AdamW::update_on_host([[maybe_unused]] Factors factors) {
#ifdef MGM_WITH_CUDA
  // The one place where the host waits for the device: it computes next.
  factors.skip = factors.skip.cpu();
  if (factors.scale.defined()) factors.scale = factors.scale.cpu();
  // Not finite: nothing is touched, the weights on the device stay.
  if (factors.skip.item<float>() != 0) return;
  host_->run([&](size_t g, const float* grad, at::Tensor& copy) {
    update(states_[g], grad, copy, factors);
  });
#endif
}

at::Tensor AdamW::step(double lr, int64_t step) {
  const at::NoGradGuard no_grad;
  const at::Tensor norm = gradient_norm();
  Factors factors{lr, step, at::isfinite(norm).logical_not().to(at::kFloat), {}};
  if (config_.clip_norm > 0) {
    factors.scale = (config_.clip_norm / (norm + 1e-6)).clamp_max(1.0).to(at::kFloat);
  }
  if (store_.settings().offload) {
    update_on_host(std::move(factors));
    return norm;
  }
  for (State& state : states_) {
    update(state, state.group->grad.data_ptr<float>(), state.group->trained.shard, factors);
  }
  return norm;
}

}  // namespace mgm
