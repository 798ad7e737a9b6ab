#include "ops/decode_attention.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "kernels/decode_attention.h"
#include "ops/stream.h"
#include "types/on_threads.h"
#ifdef MGM_WITH_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#endif

namespace mgm::ops {
namespace {

template <class T>
void attend_on_cpu(const kernels::DecodeAttention<T>& problem) {
  kernels::decode_attention_cpu(problem, on_threads);
}

template <class T>
void attend_on_gpu([[maybe_unused]] kernels::DecodeAttention<T> problem,
                   [[maybe_unused]] const at::Tensor& q) {
#ifdef MGM_WITH_CUDA
  const DeviceStream device(q);
  problem.splits = kernels::decode_splits(
      problem.rows, problem.heads, problem.kv_heads, problem.capacity,
      at::cuda::getDeviceProperties(q.device().index())->multiProcessorCount);
  at::Tensor partial, stats;
  if (problem.splits > 1) {
    const at::TensorOptions options = q.options().dtype(at::kFloat);
    partial = at::empty({problem.rows, problem.heads, problem.splits, problem.width}, options);
    stats = at::empty({problem.rows, problem.heads, problem.splits, 2}, options);
    problem.partial = partial.mutable_data_ptr<float>();
    problem.stats = stats.mutable_data_ptr<float>();
  }
  kernels::decode_attention_cuda(problem, device.stream());
#else
  throw InternalError("decode attention on a GPU in a build without CUDA");
#endif
}

template <class T>
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& positions, double scale, int64_t window, double softcap) {
  const at::Tensor out = at::empty_like(q);
  kernels::DecodeAttention<T> problem;
  problem.rows = q.size(0);
  problem.heads = q.size(1);
  problem.kv_heads = k.size(2);
  problem.width = q.size(2);
  problem.capacity = k.size(1);
  problem.q = static_cast<const T*>(q.const_data_ptr());
  problem.k = static_cast<const T*>(k.const_data_ptr());
  problem.v = static_cast<const T*>(v.const_data_ptr());
  problem.positions = positions.const_data_ptr<int64_t>();
  problem.scale = static_cast<float>(scale);
  problem.window = window;
  problem.softcap = static_cast<float>(softcap);
  problem.out = static_cast<T*>(out.mutable_data_ptr());
  if (q.is_cuda()) {
    attend_on_gpu(problem, q);
  } else {
    attend_on_cpu(problem);
  }
  return out;
}

}  // namespace

bool decode_attention_takes(at::Device device, at::ScalarType dtype, int64_t width) {
  if (dtype != at::kFloat && dtype != at::kBFloat16) return false;
  return device.is_cpu() || (device.is_cuda() && kernels::decode_width_fits(width));
}

at::Tensor decode_attention(const at::Tensor& q_RHD, const at::Tensor& k_RCKD,
                            const at::Tensor& v_RCKD, const at::Tensor& positions_R, double scale,
                            int64_t window, double softcap) {
  MGM_CHECK(q_RHD.dim() == 3 && k_RCKD.dim() == 4 && k_RCKD.sizes() == v_RCKD.sizes() &&
                q_RHD.size(0) == k_RCKD.size(0) && q_RHD.size(2) == k_RCKD.size(3) &&
                k_RCKD.size(2) > 0 && q_RHD.size(1) % k_RCKD.size(2) == 0 &&
                q_RHD.size(0) < 65536 && positions_R.sizes() == q_RHD.sizes().slice(0, 1),
            "decode_attention takes q [R, H, D], k and v [R, C, K, D] with K dividing H, and ",
            "positions [R]; got ", q_RHD.sizes(), ", ", k_RCKD.sizes(), ", ", v_RCKD.sizes(), ", ",
            positions_R.sizes());
  MGM_CHECK(decode_attention_takes(q_RHD.device(), q_RHD.scalar_type(), q_RHD.size(2)) &&
                k_RCKD.scalar_type() == q_RHD.scalar_type() &&
                v_RCKD.scalar_type() == q_RHD.scalar_type() && k_RCKD.is_contiguous() &&
                v_RCKD.is_contiguous() && positions_R.is_contiguous() &&
                k_RCKD.device() == q_RHD.device() && v_RCKD.device() == q_RHD.device() &&
                positions_R.device() == q_RHD.device(),
            "decode_attention of ", q_RHD.scalar_type(), " ", q_RHD.sizes(), " on ",
            q_RHD.device());
  const at::Tensor q = q_RHD.contiguous();
  if (q.scalar_type() == at::kBFloat16) {
    return attend<kernels::Bf16>(q, k_RCKD, v_RCKD, positions_R, scale, window, softcap);
  }
  return attend<float>(q, k_RCKD, v_RCKD, positions_R, scale, window, softcap);
}

}  // namespace mgm::ops
