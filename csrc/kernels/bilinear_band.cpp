#include "kernels/bilinear_band.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"

namespace mgm::kernels {
namespace {

template <class Real>
using Row = std::map<int64_t, Real>;  // input index -> weight, zero weights left out

template <class Real>
Row<Real> bilinear_row(int64_t in, int64_t out, int64_t i) {
  if (in == out) return {{i, Real(1)}};
  const Real scale = static_cast<Real>(in) / static_cast<Real>(out);
  const Real src = std::max(scale * (static_cast<Real>(i) + Real(0.5)) - Real(0.5), Real(0));
  const int64_t low = std::min(static_cast<int64_t>(std::floor(src)), in - 1);
  const int64_t high = std::min(low + 1, in - 1);
  const Real high_weight = std::clamp(src - static_cast<Real>(low), Real(0), Real(1));
  Row<Real> row;
  if (high_weight < 1) row[low] = Real(1) - high_weight;
  if (high_weight > 0) row[high] += high_weight;
  return row;
}

template <class Real>
BilinearBand<Real> pack(int64_t in, const std::vector<Row<Real>>& rows) {
  BilinearBand<Real> band;
  band.in = in;
  band.out = static_cast<int64_t>(rows.size());
  for (const Row<Real>& row : rows) {
    band.span = std::max(band.span, row.rbegin()->first - row.begin()->first + 1);
  }
  band.weight.assign(rows.size() * static_cast<size_t>(band.span), Real(0));
  band.out_begin.assign(static_cast<size_t>(in), 0);
  band.out_end.assign(static_cast<size_t>(in), 0);
  for (int64_t i = 0; i < band.out; ++i) {
    const Row<Real>& row = rows[static_cast<size_t>(i)];
    const int64_t first = std::min(row.begin()->first, in - band.span);
    band.first.push_back(static_cast<int32_t>(first));
    for (const auto& [index, weight] : row) {
      band.weight[static_cast<size_t>(i * band.span + index - first)] = weight;
    }
    for (int64_t r = first; r < first + band.span; ++r) {
      int32_t& end = band.out_end[static_cast<size_t>(r)];
      if (end == 0) band.out_begin[static_cast<size_t>(r)] = static_cast<int32_t>(i);
      end = static_cast<int32_t>(i + 1);
    }
  }
  return band;
}

}  // namespace

template <class Real>
BilinearBand<Real> bilinear_band(int64_t in, int64_t middle, int64_t out) {
  MGM_CHECK(in > 0 && middle > 0 && out > 0, "resize ", in, " -> ", middle, " -> ", out);
  std::vector<Row<Real>> rows;
  for (int64_t i = 0; i < out; ++i) {
    Row<Real> row;
    for (const auto& [m, outer] : bilinear_row<Real>(middle, out, i)) {
      for (const auto& [r, inner] : bilinear_row<Real>(in, middle, m)) row[r] += outer * inner;
    }
    rows.push_back(std::move(row));
  }
  return pack(in, rows);
}

template <class Real>
BilinearBand<Real> bilinear_band(int64_t in, int64_t out) {
  return bilinear_band<Real>(in, out, out);
}

template BilinearBand<float> bilinear_band(int64_t, int64_t);
template BilinearBand<double> bilinear_band(int64_t, int64_t);
template BilinearBand<float> bilinear_band(int64_t, int64_t, int64_t);
template BilinearBand<double> bilinear_band(int64_t, int64_t, int64_t);

}  // namespace mgm::kernels
