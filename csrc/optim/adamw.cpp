#include "optim/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.h"
#include "kernels/adamw.h"
#include "kernels/sum_squares.h"

#ifdef MGM_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mgm {
namespace {

void parallel_for(int64_t n, const kernels::RangeBody& body) {
  at::parallel_for(0, n, /*grain=*/1 << 15, body);
}

kernels::Bf16* bf16_data(const at::Tensor& t) {
  return reinterpret_cast<kernels::Bf16*>(t.data_ptr<at::BFloat16>());
}

// Segments next to each other with equal hyper-parameters are one call.
struct Run {
  int64_t begin, end;
  ParamPolicy policy;
};

std::vector<Run> runs_of(const ParamGroup& group) {
  std::vector<Run> runs;
  for (const Segment& segment : group.segments) {
    if (!segment.policy.train) break;  // what trains comes first
    const int64_t end = segment.offset + segment.numel;
    if (!runs.empty() && runs.back().policy.lr_scale == segment.policy.lr_scale &&
        runs.back().policy.weight_decay == segment.policy.weight_decay) {
      runs.back().end = end;
    } else {
      runs.push_back({segment.offset, end, segment.policy});
    }
  }
  return runs;
}

}  // namespace

AdamW::AdamW(ParamStore& store, const OptimizerConfig& config) : store_(store), config_(config) {
  for (const ParamGroup& group : store.groups()) {
    State state;
    if (group.grad.defined()) {
      state.exp_avg = at::zeros_like(group.grad);
      state.exp_avg_sq = at::zeros_like(group.grad);
    }
    states_.push_back(std::move(state));
  }
}

at::Tensor AdamW::gradient_norm() const {
  const at::Device device = store_.device();
  at::Tensor squares = at::zeros({static_cast<int64_t>(states_.size())},
                                 at::TensorOptions(device).dtype(at::kDouble));
#ifdef MGM_WITH_CUDA
  const at::Tensor scratch =
      at::empty({device.is_cuda() ? kernels::kSumSquaresScratch : 0}, squares.options());
#endif
  for (size_t g = 0; g < states_.size(); ++g) {
    const at::Tensor& grad = store_.groups()[g].grad;
    if (!grad.defined()) continue;
    double* out = squares.data_ptr<double>() + g;
    if (device.is_cpu()) {
      *out = kernels::sum_squares_cpu(grad.data_ptr<float>(), grad.numel(), parallel_for);
      continue;
    }
#ifdef MGM_WITH_CUDA
    kernels::sum_squares_cuda(grad.data_ptr<float>(), grad.numel(), scratch.data_ptr<double>(), out,
                              c10::cuda::getCurrentCUDAStream().stream());
#else
    MGM_CHECK(false, "this build has no CUDA");
#endif
  }
  return squares.sum().sqrt();
}

at::Tensor AdamW::step(double lr, int64_t step) {
  const at::NoGradGuard no_grad;
  const at::Tensor norm = gradient_norm();
  // On the device: 1 where the norm is not finite, and the clip factor of torch's clip_grad_norm_.
  const at::Tensor skip = at::isfinite(norm).logical_not().to(at::kFloat);
  at::Tensor scale;
  if (config_.clip_norm > 0) {
    scale = (config_.clip_norm / (norm + 1e-6)).clamp_max(1.0).to(at::kFloat);
  }
  for (size_t g = 0; g < states_.size(); ++g) {
    ParamGroup& group = store_.groups()[g];
    if (!group.grad.defined()) continue;
    const bool has_copy = group.master.data_ptr() != group.flat.data_ptr();
    for (const Run& run : runs_of(group)) {
      kernels::AdamWBuffers<float> buffers;
      buffers.n = run.end - run.begin;
      buffers.master = group.master.data_ptr<float>() + run.begin;
      buffers.exp_avg = states_[g].exp_avg.data_ptr<float>() + run.begin;
      buffers.exp_avg_sq = states_[g].exp_avg_sq.data_ptr<float>() + run.begin;
      buffers.grad = group.grad.data_ptr<float>() + run.begin;
      buffers.copy = has_copy ? bf16_data(group.flat) + run.begin : nullptr;
      buffers.grad_scale = scale.defined() ? scale.data_ptr<float>() : nullptr;
      buffers.skip = skip.data_ptr<float>();
      const kernels::AdamWScalars scalars{lr * run.policy.lr_scale, config_.betas[0],
                                          config_.betas[1],         config_.eps,
                                          run.policy.weight_decay,  step};
      if (store_.device().is_cpu()) {
        kernels::adamw_cpu(buffers, scalars, parallel_for);
        continue;
      }
#ifdef MGM_WITH_CUDA
      kernels::adamw_cuda(buffers, scalars, c10::cuda::getCurrentCUDAStream().stream());
#endif
    }
  }
  return norm;
}

std::vector<AdamW::Moments> AdamW::moments() {
  std::vector<Moments> out;
  for (size_t g = 0; g < states_.size(); ++g) {
    for (const Segment& segment : store_.groups()[g].segments) {
      if (!segment.policy.train) continue;
      const auto view = [&](const at::Tensor& flat) {
        return flat.narrow(0, segment.offset, segment.numel).view(segment.param->spec.shape);
      };
      out.push_back(
          {segment.param->spec.name, view(states_[g].exp_avg), view(states_[g].exp_avg_sq)});
    }
  }
  return out;
}

}  // namespace mgm
