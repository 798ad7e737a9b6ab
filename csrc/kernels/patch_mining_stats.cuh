// Patch mining on CUDA, first half: the problem as device code sees it and the LayerNorm statistics
// of every position. Only patch_mining.cu includes it.
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/patch_mining.h"

namespace mgm::kernels {
namespace {

constexpr int kMaxReach = 2;  // taps of one output lie at most this far apart (global view)

template <class T>
struct Stage {
  const T* map;
  const int *first, *out_begin, *out_end;
  const float* weight;
  float *mean, *gram;
  int size, channels, channel0, span, gram_width;
};

template <class T>
struct Problem {
  int batch, tiles, patches, window, side, channels;
  Stage<T> stage[kMiningStages];

  __device__ int queries() const { return tiles * patches * tiles * patches; }
  __device__ const T* cell(int s, int image, int r, int c) const {
    const Stage<T>& k = stage[s];
    return k.map + ((static_cast<int64_t>(image) * k.size + r) * k.size + c) * k.channels;
  }
};

// ---- LayerNorm statistics of every position -----------------------------------------------------

__host__ __device__ inline int gram_slot(int reach, int dr, int dc) {
  return dr == 0 ? dc : reach + 1 + (dr - 1) * (2 * reach + 1) + dc + reach;
}

template <class T, int VEC>
__global__ void cell_means(Stage<T> s, int64_t cells) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (at >= cells) return;
  float sum = 0;
  for (int i = lane * VEC; i < s.channels; i += kWarp * VEC) {
    const Floats<VEC> y = load<VEC>(s.map + at * s.channels + i);
    for (int k = 0; k < VEC; ++k) sum += y.v[k];
  }
  sum = warp_sum(sum);
  if (lane == 0) s.mean[at] = sum / s.channels;
}

template <class T, int VEC, int REACH>
__global__ void cell_products(Stage<T> s, int64_t cells) {
  constexpr int kWidth = REACH + 1 + REACH * (2 * REACH + 1);
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (at >= cells) return;
  const int c = static_cast<int>(at % s.size), r = static_cast<int>(at / s.size % s.size);
  bool valid[kWidth];
  int64_t neighbour[kWidth];
  float mean[kWidth], sum[kWidth];
#pragma unroll
  for (int dr = 0; dr <= REACH; ++dr) {
#pragma unroll
    for (int dc = dr == 0 ? 0 : -REACH; dc <= REACH; ++dc) {
      const int slot = gram_slot(REACH, dr, dc);
      valid[slot] = r + dr < s.size && c + dc >= 0 && c + dc < s.size;
      neighbour[slot] = valid[slot] ? at + dr * s.size + dc : at;
      mean[slot] = s.mean[neighbour[slot]];
      sum[slot] = 0;
    }
  }
  for (int i = lane * VEC; i < s.channels; i += kWarp * VEC) {
    const Floats<VEC> y = load<VEC>(s.map + at * s.channels + i);
#pragma unroll
    for (int slot = 0; slot < kWidth; ++slot) {
      const Floats<VEC> z = load<VEC>(s.map + neighbour[slot] * s.channels + i);
      for (int k = 0; k < VEC; ++k) sum[slot] += (y.v[k] - mean[0]) * (z.v[k] - mean[slot]);
    }
  }
#pragma unroll
  for (int slot = 0; slot < kWidth; ++slot) {
    const float total = warp_sum(sum[slot]);
    if (lane == 0 && valid[slot]) s.gram[at * kWidth + slot] = total;
  }
}

template <class T>
__device__ float stage_deviation(const Stage<T>& s, int image, int a, int b, float* mean) {
  const int64_t corner = (static_cast<int64_t>(image) * s.size + s.first[a]) * s.size + s.first[b];
  const float *wr = s.weight + a * s.span, *wc = s.weight + b * s.span;
  float total = 0;
  *mean = 0;
  for (int k = 0; k < s.span * s.span; ++k) {
    const int kr = k / s.span, kc = k % s.span;
    const int64_t at = corner + kr * s.size + kc;
    const float w = wr[kr] * wc[kc];
    const float* gram = s.gram + at * s.gram_width;
    *mean += w * s.mean[at];
    total += w * w * gram[0];
    for (int j = k + 1; j < s.span * s.span; ++j) {
      const int jr = j / s.span, jc = j % s.span;
      total += 2 * w * (wr[jr] * wc[jc]) * gram[gram_slot(s.span - 1, jr - kr, jc - kc)];
    }
  }
  return total;
}

template <class T>
__global__ void position_stats(Problem<T> p, float* mean_out, float* rstd_out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t per_image = static_cast<int64_t>(p.side) * p.side;
  if (at >= p.batch * per_image) return;
  const int image = static_cast<int>(at / per_image);
  const int a = static_cast<int>(at / p.side % p.side), b = static_cast<int>(at % p.side);
  float stage_mean[kMiningStages], mean = 0, deviation = 0;
#pragma unroll
  for (int s = 0; s < kMiningStages; ++s) {
    deviation += stage_deviation(p.stage[s], image, a, b, &stage_mean[s]);
    mean += stage_mean[s] * p.stage[s].channels;
  }
  mean /= p.channels;
#pragma unroll
  for (int s = 0; s < kMiningStages; ++s) {
    const float d = stage_mean[s] - mean;
    deviation += d * d * p.stage[s].channels;
  }
  const float var = deviation < 0 ? 0.f : deviation / p.channels;
  mean_out[at] = mean;
  rstd_out[at] = 1 / sqrtf(var + static_cast<float>(kMiningNormEps));
}

}  // namespace
}  // namespace mgm::kernels
