#include "kernels/dropout.h"

namespace mgm::kernels {

template <class T>
void dropout_rows_cpu(const DropoutRows<T>& r, const ParallelFor& parallel) {
  const uint32_t threshold = dropout_threshold(r.p);
  const auto scale = static_cast<Real<T>>(1 / (1 - r.p));
  parallel(r.rows, /*grain=*/64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = r.x + row * r.width;
      T* y = r.y + row * r.width;
      for (int64_t c = 0; c < r.width; c += 4) {
        const PhiloxBlock block = dropout_block(r.key, r.sample[row], r.position[row], c / 4);
        const int64_t lanes = std::min<int64_t>(4, r.width - c);
        for (int64_t k = 0; k < lanes; ++k) {
          const Real<T> kept = block.v[k] < threshold ? Real<T>(0) : as_real(x[c + k]) * scale;
          store_real(kept, y + c + k);
        }
      }
    }
  });
}

template void dropout_rows_cpu(const DropoutRows<float>&, const ParallelFor&);
template void dropout_rows_cpu(const DropoutRows<double>&, const ParallelFor&);
template void dropout_rows_cpu(const DropoutRows<Bf16>&, const ParallelFor&);

}  // namespace mgm::kernels
