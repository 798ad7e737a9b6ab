#include "dist/exchange.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "base/error.h"
#include "dist/rank_groups.h"

namespace mgm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor move_rows(ProcessGroup& group, const at::Tensor& x, const std::vector<int64_t>& sent,
                     const std::vector<int64_t>& received, const std::string& label) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape[0] = std::accumulate(received.begin(), received.end(), int64_t{0});
  at::Tensor out = at::empty(shape, x.options());
  group.all_to_all(out, x.contiguous(), received, sent, label).wait();
  return out;
}

class ExchangeRows : public torch::autograd::Function<ExchangeRows> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t group,
                            const std::vector<int64_t>& sent, const std::vector<int64_t>& received,
                            const std::string& label) {
    ctx->saved_data["group"] = group;
    ctx->saved_data["sent"] = sent;
    ctx->saved_data["received"] = received;
    ctx->saved_data["label"] = label;
    return move_rows(group_of(group), x, sent, received, label);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {
        move_rows(group_of(ctx->saved_data["group"].toInt()), gradients[0],
                  ctx->saved_data["received"].toIntVector(), ctx->saved_data["sent"].toIntVector(),
                  ctx->saved_data["label"].toStringRef() + kBackwardLabel),
        {},
        {},
        {},
        {}};
  }

 private:
  static ProcessGroup& group_of(int64_t address) {
    return *reinterpret_cast<ProcessGroup*>(address);
  }
};

}  // namespace

at::Tensor exchange_rows(ProcessGroup& group, const at::Tensor& x, const std::vector<int64_t>& sent,
                         const std::vector<int64_t>& received, const std::string& label) {
  MGM_CHECK(std::accumulate(sent.begin(), sent.end(), int64_t{0}) == x.size(0), label, ": ",
            x.size(0), " rows, but others are to be sent");
  return ExchangeRows::apply(x, reinterpret_cast<int64_t>(&group), sent, received, label);
}

}  // namespace mgm
