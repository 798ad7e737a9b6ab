// mm_projector: from LR tower width to LLM width (LLaVA build_vision_projector). linear, mlpNx_gelu
// (Linear, then N-1 times GELU and Linear; weights at indices 0, 2, 4, ...), identity.
#pragma once

#include "nn/block_runner.h"
#include "nn/layers.h"

namespace mgm {

class Projector : public Module {
 public:
  Projector(const std::string& type, int64_t in, int64_t out);
  at::Tensor operator()(const at::Tensor& x, const ForwardContext& ctx) const;

 private:
  std::vector<Linear*> layers_;
};

}  // namespace mgm
