#include "model/projector.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace mgm {

Projector::Projector(const std::string& type, int64_t in, int64_t out)
    : Module("model.mm_projector", "model.mm_projector") {
  auto linear = [&](const std::string& name, int64_t from) {
    layers_.push_back(
        &add<Linear>(name, group(), from, out, true,
                     Linear::Inits{torch_linear_init(from), torch_linear_init(from)}));
  };
  if (type == "identity") {
    MGM_CHECK(in == out, "identity projector from width ", in, " to ", out);
  } else if (type == "linear") {
    linear(prefix(), in);
  } else {
    const int depth = std::stoi(type.substr(3));  // "mlp2x_gelu"; checked by resolve_and_check
    for (int i = 0; i < depth; ++i) linear(child_name(std::to_string(2 * i)), i == 0 ? in : out);
  }
}

at::Tensor Projector::operator()(const at::Tensor& x, const ForwardContext& ctx) const {
  return ctx.runner.run(group(), {x}, [this](const Tensors& in) -> Tensors {
    at::Tensor y = in[0];
    for (size_t i = 0; i < layers_.size(); ++i) y = (*layers_[i])(i == 0 ? y : at::gelu(y));
    return {y};
  })[0];
}

}  // namespace mgm
