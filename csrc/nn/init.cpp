#include "nn/init.h"

#include <ATen/Parallel.h>

#include "base/error.h"
#include "base/rng.h"

namespace mgm {

void init_range(const ParamSpec& spec, uint64_t seed, int64_t first, at::Tensor& out) {
  MGM_CHECK(out.is_contiguous() && out.device().is_cpu() && out.scalar_type() == at::kFloat,
            "init_range fills contiguous fp32 CPU tensors");
  const uint64_t key = rng_key(seed, spec.name);
  float* data = out.data_ptr<float>();
  // Values depend on their index alone, so threads may share the work in any way.
  at::parallel_for(0, out.numel(), /*grain=*/1 << 16, [&](int64_t begin, int64_t end) {
    const auto n = static_cast<size_t>(end - begin);
    const auto from = static_cast<uint64_t>(first + begin);
    switch (spec.init.kind) {
      case InitKind::kConstant:
        std::fill(data + begin, data + end, static_cast<float>(spec.init.a));
        break;
      case InitKind::kNormal:
        fill_normal(data + begin, n, key, from, 0, spec.init.a);
        break;
      case InitKind::kUniform:
        fill_uniform(data + begin, n, key, from, -spec.init.a, spec.init.a);
        break;
    }
  });
}

}  // namespace mgm
