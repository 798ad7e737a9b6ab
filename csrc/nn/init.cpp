#include "nn/init.h"

#include "base/error.h"
#include "base/rng.h"

namespace mgm {

void init_range(const ParamSpec& spec, uint64_t seed, int64_t first, at::Tensor& out) {
  MGM_CHECK(out.is_contiguous() && out.device().is_cpu() && out.scalar_type() == at::kFloat,
            "init_range fills contiguous fp32 CPU tensors");
  const uint64_t key = rng_key(seed, spec.name);
  float* data = out.data_ptr<float>();
  const auto n = static_cast<size_t>(out.numel());
  switch (spec.init.kind) {
    case InitKind::kConstant:
      std::fill(data, data + n, static_cast<float>(spec.init.a));
      break;
    case InitKind::kNormal:
      fill_normal(data, n, key, static_cast<uint64_t>(first), 0, spec.init.a);
      break;
    case InitKind::kUniform:
      fill_uniform(data, n, key, static_cast<uint64_t>(first), -spec.init.a, spec.init.a);
      break;
  }
}

}  // namespace mgm
