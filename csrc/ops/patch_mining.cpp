// patch_mining(): the kernel as an autograd function. The front is in mining_front.cpp.
#include "ops/patch_mining.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <type_traits>

#include "base/error.h"
#include "kernels/patch_mining.h"
#include "ops/stream.h"
#include "types/on_threads.h"
#include "types/upload.h"

namespace mgm::ops {
namespace {

using kernels::kMiningStages;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::MiningShape make_shape(const std::vector<at::Tensor>& stages, const at::Tensor& u,
                                const MiningView& view) {
  MGM_CHECK(stages.size() == kMiningStages, "patch mining takes four stage maps, got ",
            stages.size());
  kernels::MiningShape shape;
  shape.batch = u.dim() == 3 ? u.size(0) : -1;
  shape.tiles = view.tiles;
  shape.patches = view.patches;
  shape.window = view.window;
  shape.downscale = view.downscale;
  for (size_t s = 0; s < kMiningStages; ++s) {
    const at::Tensor& map = stages[s];
    MGM_CHECK(map.dim() == 4 && map.size(0) == shape.batch && map.size(1) == map.size(2) &&
                  map.scalar_type() == stages[0].scalar_type() && map.device() == u.device(),
              "stage map ", s, " is ", map.sizes(), " ", map.scalar_type(), " on ", map.device(),
              "; expected [B, h, h, C] with B = ", shape.batch, ", ", stages[0].scalar_type(),
              ", on ", u.device());
    shape.size[s] = map.size(1);
    shape.channels[s] = map.size(3);
  }
  const at::ScalarType real = at::toOpMathType(stages[0].scalar_type());
  MGM_CHECK(
      u.scalar_type() == real && u.size(1) == view.queries() && u.size(2) == shape.total_channels(),
      "u is ", u.sizes(), " ", u.scalar_type(), "; expected [B, ", view.queries(), " queries, ",
      shape.total_channels(), " channels] ", real);
  return shape;
}

// Tables, scratch and the problem that points into them and into the maps.
template <class T>
struct Problem {
  using R = kernels::Real<T>;

  Problem(const kernels::MiningShape& shape, const std::vector<at::Tensor>& stages)
      : tables(shape) {
    const at::Device device = stages[0].device();
    index = upload(at::tensor(tables.index, at::kInt), device);
    weight = upload(at::tensor(tables.weight, at::toOpMathType(stages[0].scalar_type())), device);
    std::array<const T*, kMiningStages> maps;
    for (size_t s = 0; s < kMiningStages; ++s) {
      maps[s] = static_cast<const T*>(stages[s].const_data_ptr());
    }
    kernel = kernels::mining_problem<T>(shape, tables, index.const_data_ptr<int32_t>(),
                                        weight.const_data_ptr<R>(), maps);
  }

  kernels::MiningTables<R> tables;
  at::Tensor index, weight;
  kernels::MiningProblem<T> kernel;
};

template <class T>
void run_forward(const kernels::MiningShape& shape, const std::vector<at::Tensor>& stages,
                 const at::Tensor& u, const std::array<at::Tensor, 5>& out) {
  using R = kernels::Real<T>;
  Problem<T> problem(shape, stages);
  const at::Tensor scratch = at::empty({kernels::mining_scratch(problem.kernel)}, u.options());
  kernels::bind_scratch(problem.kernel, scratch.mutable_data_ptr<R>());
  const kernels::MiningOutputs<R> outputs{
      out[0].mutable_data_ptr<R>(), out[1].mutable_data_ptr<R>(), out[2].mutable_data_ptr<R>(),
      out[3].mutable_data_ptr<R>(), out[4].mutable_data_ptr<R>()};
  if (!u.is_cuda()) {
    kernels::mining_forward_cpu(problem.kernel, u.const_data_ptr<R>(), outputs, on_threads);
    return;
  }
#ifdef MGM_WITH_CUDA
  if constexpr (std::is_same_v<R, float>) {
    const DeviceStream device(u);
    kernels::mining_forward_cuda(problem.kernel, u.const_data_ptr<R>(), outputs, device.stream());
    return;
  }
#endif
  throw InternalError("patch mining on ", u.device(), " takes float32 or bfloat16 maps in a build ",
                      "with CUDA; got ", stages[0].scalar_type());
}

struct Saved {
  std::vector<at::Tensor> stages;
  at::Tensor u, attention, scores, mean, rstd;
};

template <class T>
void run_backward(const kernels::MiningShape& shape, const Saved& saved, const at::Tensor& d_pooled,
                  const at::Tensor& d_u, const std::vector<at::Tensor>& d_maps) {
  using R = kernels::Real<T>;
  const Problem<T> problem(shape, saved.stages);
  const kernels::MiningOutputs<R> outputs{
      nullptr, saved.attention.mutable_data_ptr<R>(), saved.scores.mutable_data_ptr<R>(),
      saved.mean.mutable_data_ptr<R>(), saved.rstd.mutable_data_ptr<R>()};
  kernels::MiningGradients<T> gradients;
  gradients.d_pooled = d_pooled.const_data_ptr<R>();
  gradients.d_u = d_u.mutable_data_ptr<R>();
  at::Tensor coefficients;
  for (size_t s = 0; s < kMiningStages; ++s) {
    if (!d_maps[s].defined()) continue;
    gradients.d_maps[s] = static_cast<T*>(d_maps[s].mutable_data_ptr());
    if (coefficients.defined()) continue;
    coefficients = at::empty({shape.batch, shape.side(), shape.side(), 4}, d_u.options());
    gradients.coefficients = coefficients.mutable_data_ptr<R>();
  }
  if (!d_u.is_cuda()) {
    kernels::mining_backward_cpu(problem.kernel, saved.u.const_data_ptr<R>(), outputs, gradients,
                                 on_threads);
    return;
  }
#ifdef MGM_WITH_CUDA
  if constexpr (std::is_same_v<R, float>) {
    const DeviceStream device(d_u);
    kernels::mining_backward_cuda(problem.kernel, saved.u.const_data_ptr<R>(), outputs, gradients,
                                  device.stream());
  }
#endif
}

// Calls f with a value of the kernels' element type for `dtype`.
template <class F>
void with_element(at::ScalarType dtype, const F& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(kernels::Bf16{});
    default:
      throw InternalError("patch mining takes float32, bfloat16 or float64 maps, got ", dtype);
  }
}

struct PatchMining : torch::autograd::Function<PatchMining> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& s0, const at::Tensor& s1,
                               const at::Tensor& s2, const at::Tensor& s3, const at::Tensor& u_any,
                               const MiningView& view) {
    const bool maps_need =
        s0.requires_grad() || s1.requires_grad() || s2.requires_grad() || s3.requires_grad();
    const std::vector<at::Tensor> stages = {s0.contiguous(), s1.contiguous(), s2.contiguous(),
                                            s3.contiguous()};
    const at::Tensor u = u_any.contiguous();
    const kernels::MiningShape shape = make_shape(stages, u, view);
    const int64_t side = shape.side();
    const at::Tensor pooled = at::empty_like(u);
    const at::Tensor attention =
        at::empty({shape.batch, shape.queries(), shape.positions()}, u.options());
    const at::Tensor scores = at::empty_like(attention);
    const at::Tensor mean = at::empty({shape.batch, side, side}, u.options());
    const at::Tensor rstd = at::empty_like(mean);
    with_element(s0.scalar_type(), [&](auto element) {
      run_forward<decltype(element)>(shape, stages, u, {pooled, attention, scores, mean, rstd});
    });
    // u and the scores serve the maps' gradients alone.
    ctx->save_for_backward({stages[0], stages[1], stages[2], stages[3],
                            maps_need ? u : at::Tensor(), attention,
                            maps_need ? scores : at::Tensor(), mean, rstd});
    ctx->saved_data["view"] =
        std::vector<int64_t>{view.tiles, view.patches, view.window, view.downscale};
    ctx->mark_non_differentiable({attention});
    ctx->set_materialize_grads(false);
    return {pooled, attention};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    variable_list out(6);
    if (!gradients[0].defined()) return out;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor d_pooled = gradients[0].contiguous();
    const at::Tensor d_u = at::empty_like(d_pooled);
    Saved values{{saved.begin(), saved.begin() + kMiningStages},
                 saved[4],
                 saved[5],
                 saved[6],
                 saved[7],
                 saved[8]};
    for (size_t s = 0; s < kMiningStages; ++s) {
      if (ctx->needs_input_grad(s)) out[s] = at::empty_like(values.stages[s]);
    }
    // Without map gradients the kernel reads neither.
    if (!values.u.defined()) values.u = d_pooled, values.scores = values.attention;
    const std::vector<int64_t> v = ctx->saved_data["view"].toIntVector();
    const kernels::MiningShape shape =
        make_shape(values.stages, d_pooled, MiningView{v[0], v[1], v[2], v[3]});
    const std::vector<at::Tensor> d_maps(out.begin(), out.begin() + kMiningStages);
    with_element(values.stages[0].scalar_type(), [&](auto element) {
      run_backward<decltype(element)>(shape, values, d_pooled, d_u, d_maps);
    });
    out[4] = d_u;
    return out;
  }
};

}  // namespace

MiningResult patch_mining(const std::vector<at::Tensor>& stages, const at::Tensor& u_BQC,
                          const MiningView& view) {
  MGM_CHECK(stages.size() == kMiningStages, "patch mining takes four stage maps, got ",
            stages.size());
  const variable_list out =
      PatchMining::apply(stages[0], stages[1], stages[2], stages[3], u_BQC, view);
  return {out[0], out[1]};
}

}  // namespace mgm::ops
