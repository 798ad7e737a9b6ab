// The depthwise convolutions of ConvNeXt-L at 768 pixels on a GPU, in bf16, beside cuDNN's.
//   depthwise_bench [PICTURES]      default 8
// Prints one JSON object per map: milliseconds of a call (y, d_x, d_weight), and of cuDNN also of
// the first calls with a number of pictures it has not seen, for which it compiles kernels.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <chrono>
#include <iostream>
#include <optional>
#include <string>

#include "base/strings.h"
#include "ops/depthwise.h"

namespace mgm {
namespace {

constexpr int kCalls = 20;

template <class Call>
double milliseconds(int calls, const Call& call) {
  at::detail::getCUDAHooks().deviceSynchronize(0);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  at::detail::getCUDAHooks().deviceSynchronize(0);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  return took.count() / calls;
}

using Bias = std::optional<at::Tensor>;

at::Tensor conv2d(const at::Tensor& x_NHWC, const at::Tensor& w, const Bias& b) {
  return at::conv2d(x_NHWC.permute({0, 3, 1, 2}), w, b, 1, 3, 1, x_NHWC.size(3))
      .permute({0, 2, 3, 1});
}

using Convolution = at::Tensor (*)(const at::Tensor&, const at::Tensor&, const Bias&);

struct Times {
  double first;  // y, d_x and d_weight together
  std::array<double, 3> each;
};

Times measure(Convolution convolution, int64_t pictures, int64_t side, int64_t channels) {
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor x = at::randn({pictures, side, side, channels}, options).requires_grad_();
  const at::Tensor w = at::randn({channels, 1, 7, 7}, options).requires_grad_();
  const at::Tensor b = at::randn({channels}, options), d = at::randn_like(x);
  at::Tensor y;
  const auto forward = [&] { y = convolution(x, w, b); };
  const auto backward = [&](const at::Tensor& of) {
    torch::autograd::grad({y}, {of}, {d}, /*retain_graph=*/true);
  };
  const double first = milliseconds(1, [&] {
    forward();
    backward(x);
    backward(w);
  });
  return {first,
          {milliseconds(kCalls, forward), milliseconds(kCalls, [&] { backward(x); }),
           milliseconds(kCalls, [&] { backward(w); })}};
}

void run(int64_t pictures) {
  measure(conv2d, 1, 24, 64);  // cuDNN itself starts
  for (const auto& [side, channels] :
       {std::array<int64_t, 2>{192, 192}, {96, 384}, {48, 768}, {24, 1536}}) {
    const Times ours = measure(ops::depthwise, pictures, side, channels);
    const Times theirs = measure(conv2d, pictures, side, channels);
    const auto list = [](const Times& t) {
      return strf("[%.3f, %.3f, %.3f]", t.each[0], t.each[1], t.each[2]);
    };
    std::cout << strf(
                     "{\"pictures\": %lld, \"side\": %lld, \"channels\": %lld, \"mgm_ms\": %s, "
                     "\"cudnn_ms\": %s, \"mgm_first_ms\": %.1f, \"cudnn_first_ms\": %.1f}\n",
                     static_cast<long long>(pictures), static_cast<long long>(side),
                     static_cast<long long>(channels), list(ours).c_str(), list(theirs).c_str(),
                     ours.first, theirs.first)
              << std::flush;
  }
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) { mgm::run(argc > 1 ? std::stoll(argv[1]) : 8); }
