#include "dist/strict_sum.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace mgm {

void StrictSum::push(at::Tensor leaf) {
  const at::NoGradGuard no_grad;
  partials_.push_back({std::move(leaf), 0});
  while (partials_.size() > 1 && partials_.end()[-2].level == partials_.back().level) {
    partials_.end()[-2].sum.add_(partials_.back().sum);
    partials_.end()[-2].level += 1;
    partials_.pop_back();
  }
}

void StrictSum::compact() {
  for (Partial& p : partials_) {
    if (p.sum.storage().nbytes() > p.sum.nbytes()) p.sum = p.sum.clone();
  }
}

at::Tensor StrictSum::take() {
  const at::NoGradGuard no_grad;
  while (partials_.size() > 1) {
    partials_.end()[-2].sum.add_(partials_.back().sum);
    partials_.pop_back();
  }
  if (partials_.empty()) return {};
  at::Tensor out = std::move(partials_.back().sum);
  partials_.clear();
  return out;
}

at::Tensor fixed_order_row_sums(at::Tensor x) {
  for (int64_t width = x.size(1); width > 1; width /= 2) {
    x = x.narrow(1, 0, width / 2) + x.narrow(1, width / 2, width / 2);
  }
  return x.select(1, 0);
}

at::Tensor fixed_order_sum(const at::Tensor& x) {
  int64_t width = 1;
  while (width < x.numel()) width *= 2;
  return fixed_order_row_sums(at::constant_pad_nd(x, {0, width - x.numel()}).unsqueeze(0))
      .squeeze(0);
}

}  // namespace mgm
