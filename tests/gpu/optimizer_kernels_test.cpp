// AdamW and sum of squares on the GPU beside their CPU twins.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include "gpu/gpu.h"
#include "grad_check.h"
#include "kernels/adamw.h"
#include "kernels/sum_squares.h"

namespace mgm::kernels {
namespace {

const at::Device kCuda(at::kCUDA);

CUstream_st* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

template <class T>
const T* data(const at::Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

struct Flat {
  at::Tensor p, m, v, copy;
  template <class G>
  AdamWBuffers<G> buffers(const at::Tensor& grad, const at::Tensor& scale, const at::Tensor& skip) {
    AdamWBuffers<G> b;
    b.n = p.numel();
    b.master = p.mutable_data_ptr<float>();
    b.exp_avg = m.mutable_data_ptr<float>();
    b.exp_avg_sq = v.mutable_data_ptr<float>();
    b.grad = data<G>(grad);
    b.copy = static_cast<Bf16*>(copy.mutable_data_ptr());
    b.grad_scale = scale.const_data_ptr<float>();
    b.skip = skip.const_data_ptr<float>();
    return b;
  }
  Flat to(at::Device device) const {
    return {p.to(device, false, true), m.to(device, false, true), v.to(device, false, true),
            copy.to(device, false, true)};
  }
};

class OptimizerGpu : public GpuTest {
 protected:
  template <class G>
  void expect_twins(int64_t n, at::ScalarType dtype) {
    Flat cpu{at::randn({n}), at::randn({n}) * 0.01, at::rand({n}) * 1e-4,
             at::zeros({n}, at::kBFloat16)};
    Flat gpu = cpu.to(kCuda);
    const at::Tensor scale = at::full({}, 0.37f), on = at::zeros({});
    AdamWScalars s{1e-3, 0.9, 0.999, 1e-8, 0.05, 4};
    for (; s.step < 7; ++s.step) {
      const at::Tensor g = (at::randn({n}) * 0.01).to(dtype);
      const at::Tensor g_cuda = g.to(kCuda), scale_cuda = scale.to(kCuda), on_cuda = on.to(kCuda);
      adamw_cpu(cpu.buffers<G>(g, scale, on), s, serial_for);
      adamw_cuda(gpu.buffers<G>(g_cuda, scale_cuda, on_cuda), s, stream());
    }
    // The device contracts products and sums into FMAs.
    EXPECT_TRUE(near_l2(gpu.p, cpu.p, 2e-7)) << n;
    EXPECT_TRUE(near_l2(gpu.m, cpu.m, 2e-7)) << n;
    EXPECT_TRUE(near_l2(gpu.v, cpu.v, 2e-7)) << n;
    EXPECT_TRUE(at::equal(gpu.copy, gpu.p.to(at::kBFloat16))) << n;

    const Flat before = gpu.to(kCuda);
    const at::Tensor g = at::full({n}, NAN, at::TensorOptions(dtype).device(kCuda));
    const at::Tensor one = at::ones({}, kCuda), scale_cuda = scale.to(kCuda);
    adamw_cuda(gpu.buffers<G>(g, scale_cuda, one), s, stream());
    EXPECT_TRUE(at::equal(gpu.p, before.p));
    EXPECT_TRUE(at::equal(gpu.m, before.m));
    EXPECT_TRUE(at::equal(gpu.v, before.v));
    EXPECT_TRUE(at::equal(gpu.copy, before.copy));
  }
};

TEST_F(OptimizerGpu, AdamWEqualsItsCpuTwin) {
  at::manual_seed(41);
  for (const int64_t n : {1, 3, 4, 1024, 1025, 20000003}) {
    expect_twins<float>(n, at::kFloat);
    expect_twins<Bf16>(n, at::kBFloat16);
  }
}

TEST_F(OptimizerGpu, SumSquaresEqualsItsCpuTwinAndRepeats) {
  at::manual_seed(42);
  const at::Tensor scratch =
      at::empty({kSumSquaresScratch}, at::TensorOptions(at::kDouble).device(kCuda));
  for (const int64_t n : {0, 1, 3, 4, 1027, 4096, 3000001}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor x = at::randn({n}).to(dtype), y = x.to(kCuda);
      const at::Tensor out = at::full({2}, -1, at::TensorOptions(at::kDouble).device(kCuda));
      double* sums = out.mutable_data_ptr<double>();
      double want = 0;
      if (dtype == at::kFloat) {
        want = sum_squares_cpu(data<float>(x), n, serial_for);
        for (int i : {0, 1}) {
          sum_squares_cuda(data<float>(y), n, scratch.mutable_data_ptr<double>(), sums + i,
                           stream());
        }
      } else {
        want = sum_squares_cpu(data<Bf16>(x), n, serial_for);
        for (int i : {0, 1}) {
          sum_squares_cuda(data<Bf16>(y), n, scratch.mutable_data_ptr<double>(), sums + i,
                           stream());
        }
      }
      const double first = out[0].item<double>();
      EXPECT_NEAR(first, want, 1e-13 * want) << n;
      EXPECT_EQ(first, out[1].item<double>());
    }
  }
  at::Tensor bad = at::ones({5000}, kCuda);
  bad[4999] = INFINITY;
  const at::Tensor out = at::zeros({1}, at::TensorOptions(at::kDouble).device(kCuda));
  sum_squares_cuda(data<float>(bad), 5000, scratch.mutable_data_ptr<double>(),
                   out.mutable_data_ptr<double>(), stream());
  EXPECT_FALSE(std::isfinite(out.item<double>()));
}

}  // namespace
}  // namespace mgm::kernels
