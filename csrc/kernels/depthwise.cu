// A thread works on two neighbouring channels, so that a warp reads whole lines of NHWC memory, and
// keeps what it sums in registers; what threads share they find in the L1 cache.
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "kernels/cuda_common.cuh"
#include "kernels/depthwise.h"

namespace mgm::kernels {
namespace {

constexpr int kSide = kDepthwiseSide, kTaps = kDepthwiseTaps, kPad = kSide / 2;
constexpr int kThreads = 256;
constexpr int kRows = 4, kColumns = 8;         // outputs of a thread
constexpr int kWindow = kColumns + kSide - 1;  // inputs of a row of them
constexpr int kGradientBlocks = 396;           // three for each multiprocessor of an H100
constexpr int kSumLanes = 32, kSumGroups = 8;  // of the sum over partial sums

// Two neighbouring channels as they lie in memory: loaded ahead they take half the registers.
template <class T>
using Pair = std::conditional_t<std::is_same_v<T, Bf16>, uint32_t, float2>;

__device__ inline float2 floats(float2 x) { return x; }
__device__ inline float2 floats(uint32_t x) {
  return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}
__device__ inline void store_pair(float2 x, float* p) { *reinterpret_cast<float2*>(p) = x; }
__device__ inline void store_pair(float2 x, Bf16* p) {
  *reinterpret_cast<uint32_t*>(p) = bf16_bits(x.x) | static_cast<uint32_t>(bf16_bits(x.y)) << 16;
}
__device__ inline void add_product(float2& sum, float2 a, float2 b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
}

// Columns first .. first + COUNT - 1 of a row of the map, zero beside it; all zero without a row.
template <int COUNT, class T>
__device__ inline void load_columns(Pair<T>* out, const T* row, bool has_row, int first, int width,
                                    int64_t channels) {
  const T* p = row + first * channels;
#pragma unroll
  for (int j = 0; j < COUNT; ++j, p += channels) {
    const bool inside = has_row && static_cast<unsigned>(first + j) < static_cast<unsigned>(width);
    out[j] = inside ? *reinterpret_cast<const Pair<T>*>(p) : Pair<T>{};
  }
}

template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 2 : 1;  // at once on a multiprocessor, at least

// How threads lie over channels: `lanes` pairs side by side, the rest of a block elsewhere.
struct Lanes {
  int lanes;   // pairs of channels of a block
  int chunks;  // blocks along the channels
};

Lanes lanes_of(const MapShape& s) {
  const int lanes = static_cast<int>(std::gcd(s.channels / 2, int64_t{kWarp}));
  return {lanes, static_cast<int>(s.channels / 2 / lanes)};
}

// Block x: tiles of kRows x kColumns outputs of all pictures; block y: chunks of channels.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    depthwise_kernel(const Depthwise<T> problem, int lanes, int tiles_x, int tiles_y) {
  extern __shared__ float2 weights[];  // [tap][lanes + 1]: few threads then write to one bank
  const MapShape& s = problem.shape;
  const int height = static_cast<int>(s.height), width = static_cast<int>(s.width);
  const T* chunk = problem.weight + int64_t{2} * blockIdx.y * lanes * kTaps;
#pragma unroll 4
  for (int i = threadIdx.x; i < 2 * lanes * kTaps; i += blockDim.x) {
    const int channel = i / kTaps, tap = problem.flipped ? kTaps - 1 - i % kTaps : i % kTaps;
    float2& pair = weights[tap * (lanes + 1) + channel / 2];
    (channel % 2 ? pair.y : pair.x) = load<1>(chunk + i).v[0];
  }
  __syncthreads();

  const int lane = threadIdx.x % lanes, slots = blockDim.x / lanes;
  const int64_t tile = int64_t{blockIdx.x} * slots + threadIdx.x / lanes;
  const int64_t image = tile / (tiles_x * tiles_y);
  if (image >= s.images) return;
  const int in_image = static_cast<int>(tile - image * tiles_x * tiles_y);
  const int y0 = in_image / tiles_x * kRows, x0 = in_image % tiles_x * kColumns;
  const int64_t channel = int64_t{2} * (blockIdx.y * lanes + lane);
  const int64_t map = image * height * width * s.channels + channel;

  float2 bias = make_float2(0, 0);
  if (problem.bias) {
    bias =
        make_float2(load<1>(problem.bias + channel).v[0], load<1>(problem.bias + channel + 1).v[0]);
  }
  float2 sums[kRows][kColumns];
#pragma unroll
  for (int v = 0; v < kRows; ++v) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[v][c] = bias;
  }
  const auto load_row = [&](Pair<T>* out, int r) {
    const int row = y0 + r - kPad;
    const bool has_row = r < kRows + kSide - 1 && row >= 0 && row < height;
    load_columns<kWindow>(out, problem.x + map + int64_t{row} * width * s.channels, has_row,
                          x0 - kPad, width, s.channels);
  };
  Pair<T> ahead[kWindow];
  load_row(ahead, 0);
  // Row r of the input is under tap row r - v of output row v. Not unrolled: ten copies would not
  // fit the instruction cache.
#pragma unroll 1
  for (int r = 0; r < kRows + kSide - 1; ++r) {
    float2 in[kWindow];
#pragma unroll
    for (int j = 0; j < kWindow; ++j) in[j] = floats(ahead[j]);
    load_row(ahead, r + 1);
#pragma unroll
    for (int v = 0; v < kRows; ++v) {
      if (r < v || r >= v + kSide) continue;
      const float2* w = weights + (r - v) * kSide * (lanes + 1) + lane;
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
        const float2 tap = w[k * (lanes + 1)];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) add_product(sums[v][c], in[c + k], tap);
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kRows; ++v) {
    if (y0 + v >= height) break;
    T* out = problem.y + map + (int64_t{y0 + v} * width + x0) * s.channels;
#pragma unroll
    for (int c = 0; c < kColumns; ++c, out += s.channels) {
      if (x0 + c < width) store_pair(sums[v][c], out);
    }
  }
}

// Rows of d_y are dealt to blocks and their slots; a thread sums the seven taps of one tap row.
// partial[slot of the grid][tap][channel].
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    weight_gradient_kernel(const DepthwiseWeightGradient<T> problem, int lanes) {
  const MapShape& s = problem.shape;
  const int height = static_cast<int>(s.height), width = static_cast<int>(s.width);
  const int lane = threadIdx.x % lanes, tap_row = threadIdx.x / lanes % kSide;
  const int slots = blockDim.x / (lanes * kSide), slot = threadIdx.x / (lanes * kSide);
  const int64_t part = int64_t{blockIdx.x} * slots + slot, parts = int64_t{gridDim.x} * slots;
  const int64_t channel = int64_t{2} * (blockIdx.y * lanes + lane);

  float2 sums[kSide] = {};
  for (int64_t r = part; r < s.images * height; r += parts) {
    const int row = static_cast<int>(r % height) + tap_row - kPad;
    if (row < 0 || row >= height) continue;
    const T* d_y = problem.d_y + r * width * s.channels + channel;
    const T* x = problem.x + (r - r % height + row) * width * s.channels + channel;
    float2 in[kWindow];  // slides along the row
    Pair<T> ahead_x[kColumns], ahead_d[kColumns];
    load_columns<kSide - 1>(ahead_x, x, true, -kPad, width, s.channels);
#pragma unroll
    for (int j = 0; j < kSide - 1; ++j) in[kColumns + j] = floats(ahead_x[j]);
    load_columns<kColumns>(ahead_x, x, true, kPad, width, s.channels);
    load_columns<kColumns>(ahead_d, d_y, true, 0, width, s.channels);
#pragma unroll 1
    for (int x0 = 0; x0 < width; x0 += kColumns) {
      float2 d[kColumns];
#pragma unroll
      for (int j = 0; j < kSide - 1; ++j) in[j] = in[kColumns + j];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        in[kSide - 1 + c] = floats(ahead_x[c]);
        d[c] = floats(ahead_d[c]);
      }
      load_columns<kColumns>(ahead_x, x, true, x0 + kColumns + kPad, width, s.channels);
      load_columns<kColumns>(ahead_d, d_y, true, x0 + kColumns, width, s.channels);
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) add_product(sums[k], in[c + k], d[c]);
      }
    }
  }
  float* out = problem.partial + (part * kTaps + tap_row * kSide) * s.channels + channel;
#pragma unroll
  for (int k = 0; k < kSide; ++k) store_pair(sums[k], out + k * s.channels);
}

// Block: kSumLanes sums; thread row g takes parts g, g + kSumGroups, ...
template <class T>
__global__ void __launch_bounds__(kSumLanes* kSumGroups)
    sum_partials_kernel(const DepthwiseWeightGradient<T> problem, int64_t parts) {
  __shared__ float group_sums[kSumGroups][kSumLanes];
  const int64_t channels = problem.shape.channels, count = kTaps * channels;
  const int64_t i = int64_t{blockIdx.x} * kSumLanes + threadIdx.x;
  float sum = 0;
  if (i < count) {
#pragma unroll 4
    for (int64_t part = threadIdx.y; part < parts; part += kSumGroups) {
      sum += problem.partial[part * count + i];
    }
  }
  group_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= count) return;
  for (int g = 1; g < kSumGroups; ++g) sum += group_sums[g][threadIdx.x];
  const Floats<1> out{{sum}};
  store<1>(out, problem.d_weight + i % channels * kTaps + i / channels);
}

struct GradientGrid {
  Lanes lanes;
  int slots, blocks;
  int64_t parts() const { return int64_t{blocks} * slots; }
};

GradientGrid gradient_grid(const MapShape& s) {
  const Lanes lanes = lanes_of(s);
  const int slots = kThreads / (lanes.lanes * kSide);
  const int64_t rows = (s.images * s.height + slots - 1) / slots;
  const int64_t blocks = std::min<int64_t>(rows, std::max(1, kGradientBlocks / lanes.chunks));
  return {lanes, slots, static_cast<int>(blocks)};
}

void check(const MapShape& s) {
  MGM_CHECK(s.channels > 0 && s.channels % kDepthwiseMultiple == 0 && s.channels < 1 << 20,
            "depthwise convolution of ", s.channels, " channels");
  MGM_CHECK(s.height < 1 << 15 && s.width < 1 << 15, "depthwise convolution of a map of ", s.height,
            " x ", s.width);
}

}  // namespace

int64_t depthwise_partials(const MapShape& shape) {
  return gradient_grid(shape).parts() * kTaps * shape.channels;
}

template <class T>
void depthwise_cuda(const Depthwise<T>& problem, CUstream_st* stream) {
  const MapShape& s = problem.shape;
  if (s.images * s.height * s.width == 0) return;
  check(s);
  const Lanes lanes = lanes_of(s);
  const int slots = kThreads / lanes.lanes;
  const auto tiles_x = static_cast<int>((s.width + kColumns - 1) / kColumns);
  const auto tiles_y = static_cast<int>((s.height + kRows - 1) / kRows);
  const int64_t tiles = s.images * tiles_x * tiles_y;
  const dim3 blocks(static_cast<unsigned>((tiles + slots - 1) / slots),
                    static_cast<unsigned>(lanes.chunks));
  const size_t shared = sizeof(float2) * kTaps * static_cast<size_t>(lanes.lanes + 1);
  depthwise_kernel<T><<<blocks, static_cast<unsigned>(slots * lanes.lanes), shared, stream>>>(
      problem, lanes.lanes, tiles_x, tiles_y);
  check_cuda(cudaGetLastError(), "depthwise convolution");
}

template <class T>
void depthwise_weight_gradient_cuda(const DepthwiseWeightGradient<T>& problem,
                                    CUstream_st* stream) {
  const MapShape& s = problem.shape;
  check(s);
  const GradientGrid grid = gradient_grid(s);
  const int64_t count = kTaps * s.channels;
  if (grid.blocks > 0) {
    const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.lanes.chunks));
    const auto threads = static_cast<unsigned>(grid.slots * kSide * grid.lanes.lanes);
    weight_gradient_kernel<T><<<blocks, threads, 0, stream>>>(problem, grid.lanes.lanes);
    check_cuda(cudaGetLastError(), "gradient of a depthwise convolution");
  }
  const auto sums = static_cast<unsigned>((count + kSumLanes - 1) / kSumLanes);
  sum_partials_kernel<T><<<sums, dim3(kSumLanes, kSumGroups), 0, stream>>>(problem, grid.parts());
  check_cuda(cudaGetLastError(), "sum of a depthwise convolution's gradient");
}

template void depthwise_cuda(const Depthwise<float>&, CUstream_st*);
template void depthwise_cuda(const Depthwise<Bf16>&, CUstream_st*);
template void depthwise_weight_gradient_cuda(const DepthwiseWeightGradient<float>&, CUstream_st*);
template void depthwise_weight_gradient_cuda(const DepthwiseWeightGradient<Bf16>&, CUstream_st*);

}  // namespace mgm::kernels
