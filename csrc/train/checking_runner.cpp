#include "train/checking_runner.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace mgm {

ValueCheck check_values(const std::string& group, const Tensors& values) {
  const at::NoGradGuard no_grad;
  ValueCheck out;
  out.group = group;
  for (const at::Tensor& value : values) {
    if (!value.defined() || !value.is_floating_point() || value.numel() == 0) continue;
    const at::Tensor finite = at::isfinite(value);
    out.numel += value.numel();
    out.not_finite += value.numel() - finite.sum().item<int64_t>();
    const at::Tensor magnitude = at::where(finite, value.abs(), at::zeros({}, value.options()));
    out.largest = std::max(out.largest, magnitude.max().item<double>());
  }
  return out;
}

CheckingRunner::CheckingRunner(std::unique_ptr<BlockRunner> inner) : inner_(std::move(inner)) {}

Tensors CheckingRunner::run(const std::string& group, const Tensors& inputs,
                            const BlockBody& body) {
  Tensors results = inner_->run(group, inputs, body);
  if (!checks_) return results;
  if (backward_began_) {  // a forward behind a backward is of the next micro-batch
    backward_began_ = false;
    ++micro_batch_;
  }
  ValueCheck check = check_values(group, results);
  check.micro_batch = micro_batch_;
  check.bad_inputs = check_values(group, inputs).not_finite;
  checks_->push_back(check);
  for (const at::Tensor& result : results) {
    if (!result.defined() || !result.requires_grad()) continue;
    result.register_hook([this, group, micro_batch = micro_batch_](const at::Tensor& gradient) {
      backward_began_ = true;
      ValueCheck back = check_values(group, {gradient});
      back.backward = true;
      back.micro_batch = micro_batch;
      checks_->push_back(back);
    });
  }
  return results;
}

}  // namespace mgm
