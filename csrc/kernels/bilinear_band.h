// Bilinear resampling along one axis as a band matrix: output i is a weighted sum of `span`
// neighbouring inputs. Coordinates and edge rule are those of torch's upsample_bilinear2d with
// align_corners False: src = (i + 0.5) * in / out - 0.5, clamped at 0, second tap clamped at in
// - 1.
#pragma once

#include <cstdint>
#include <vector>

namespace mgm::kernels {

template <class Real>
struct BilinearBand {
  int64_t in = 0;
  int64_t out = 0;
  int64_t span = 0;  // taps per output, <= in
  std::vector<int32_t>
      first;  // [out], not decreasing; taps are inputs first[i] .. first[i] + span - 1
  std::vector<Real> weight;  // [out, span], rows sum to 1; 0 where a row needs fewer taps
  // [in]: the outputs that have input r among their taps are [out_begin[r], out_end[r]).
  std::vector<int32_t> out_begin, out_end;
};

// Coordinates are computed in Real, as torch does. in == out is the identity (span 1).
template <class Real>
BilinearBand<Real> bilinear_band(int64_t in, int64_t out);

// A resize to `middle` followed by a resize to `out`, as one band.
template <class Real>
BilinearBand<Real> bilinear_band(int64_t in, int64_t middle, int64_t out);

}  // namespace mgm::kernels
