// AdamW on the CPU cores, as dist.offload runs it (bf16 copy included), beside torch's fused AdamW
// and a plain copy of the same memory.
//   adamw_bench [MILLIONS_OF_ELEMENTS]      default 400; 20 bytes of memory each
// OMP_NUM_THREADS sets the threads. Prints one JSON object: seconds of the best of five passes.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>

#include "base/strings.h"
#include "kernels/adamw.h"
#include "types/on_threads.h"

namespace mgm {
namespace {

template <class Pass>
double best_of_five(const Pass& pass) {
  pass();  // pages are touched
  double best = 1e30;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

void run(int64_t n) {
  const at::NoGradGuard no_grad;
  at::Tensor p = at::randn({n}), m = at::zeros({n}), v = at::zeros({n}), g = at::randn({n});
  at::Tensor copy = at::empty({n}, at::kBFloat16);
  int64_t step = 0;
  const double ours = best_of_five([&] {
    kernels::AdamWBuffers<float> b;
    b.n = n;
    b.master = p.data_ptr<float>();
    b.exp_avg = m.data_ptr<float>();
    b.exp_avg_sq = v.data_ptr<float>();
    b.grad = g.const_data_ptr<float>();
    b.copy = reinterpret_cast<kernels::Bf16*>(copy.data_ptr<at::BFloat16>());
    kernels::adamw_cpu(b, {1e-4, 0.9, 0.999, 1e-8, 0.01, ++step}, on_threads);
  });
  const at::Tensor steps = at::zeros({}, at::kFloat);
  const double torch = best_of_five([&] {  // and the bf16 weights that the device wants
    steps.add_(1);
    at::_fused_adamw_({p}, {g}, {m}, {v}, {}, {steps}, 1e-4, 0.9, 0.999, 0.01, 1e-8, false, false);
    copy.copy_(p);
  });
  const double copied = best_of_five([&] { m.copy_(g); });
  // Master and moments are read and written, the gradient is read, the copy written.
  std::cout << strf(
      "{\"threads\": %d, \"elements\": %lld, \"mgm_s\": %.4f, \"torch_s\": %.4f, "
      "\"ratio\": %.2f, \"mgm_gb_s\": %.1f, \"copy_gb_s\": %.1f}\n",
      at::get_num_threads(), static_cast<long long>(n), ours, torch, torch / ours,
      30e-9 * double(n) / ours, 8e-9 * double(n) / copied);
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) { mgm::run((argc > 1 ? std::stoll(argv[1]) : 400) * 1000000); }
