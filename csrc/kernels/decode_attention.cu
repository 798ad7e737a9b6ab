#include "kernels/cuda_common.cuh"
#include "kernels/decode_attention.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kVec = 8;  // channels of a lane

// kVec elements as they lie in memory.
template <class T>
struct Pack;
template <>
struct Pack<float> {
  float4 low, high;
};
template <>
struct Pack<Bf16> {
  uint4 bits;
};

__device__ inline Pack<float> load_pack(const float* p) {
  const float4* from = reinterpret_cast<const float4*>(p);
  return {from[0], from[1]};
}
__device__ inline Pack<Bf16> load_pack(const Bf16* p) {
  return {*reinterpret_cast<const uint4*>(p)};
}

__device__ inline void widen(const Pack<float>& x, float (&out)[kVec]) {
  out[0] = x.low.x, out[1] = x.low.y, out[2] = x.low.z, out[3] = x.low.w;
  out[4] = x.high.x, out[5] = x.high.y, out[6] = x.high.z, out[7] = x.high.w;
}
__device__ inline void widen(const Pack<Bf16>& x, float (&out)[kVec]) {
  const uint32_t pairs[4] = {x.bits.x, x.bits.y, x.bits.z, x.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(pairs[i] << 16);
    out[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

// What a running maximum's sums are worth under another one. Nothing was added under -infinity.
__device__ inline float weight_under(float own, float top) {
  return own == top ? 1.0f : expf(own - top);
}

// A softmax-weighted sum under way, for HEADS query heads and the channels of one lane.
template <int HEADS>
struct Running {
  float top[HEADS], total[HEADS], sum[HEADS][kVec];
};

template <int HEADS>
__device__ inline void clear(Running<HEADS>& r) {
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    r.top[h] = -INFINITY;
    r.total[h] = 0;
#pragma unroll
    for (int i = 0; i < kVec; ++i) r.sum[h][i] = 0;
  }
}

// One key of each of UNROLL rounds: the scores of all channels, in every lane of the key.
template <class T, int LANES, int HEADS, int UNROLL>
__device__ inline void score(const Pack<T> (&k)[UNROLL], const float (&q)[HEADS][kVec],
                             float softcap, float (&s)[HEADS][UNROLL]) {
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    float key[kVec];
    widen(k[u], key);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kVec; ++i) dot += q[h][i] * key[i];
#pragma unroll
      for (int offset = LANES / 2; offset > 0; offset /= 2) {
        dot += __shfl_xor_sync(~0u, dot, offset);
      }
      s[h][u] = softcap > 0 ? softcap * tanhf(dot / softcap) : dot;
    }
  }
}

template <class T, int HEADS, int UNROLL>
__device__ inline void accumulate(const Pack<T> (&v)[UNROLL], const bool (&there)[UNROLL],
                                  float (&s)[HEADS][UNROLL], Running<HEADS>& r) {
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    float top = r.top[h];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) top = there[u] ? fmaxf(top, s[h][u]) : top;
    const float keep = weight_under(r.top[h], top);
    r.top[h] = top;
    r.total[h] *= keep;
#pragma unroll
    for (int i = 0; i < kVec; ++i) r.sum[h][i] *= keep;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      s[h][u] = there[u] ? expf(s[h][u] - top) : 0.0f;
      r.total[h] += s[h][u];
    }
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    float value[kVec];
    widen(v[u], value);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) r.sum[h][i] += s[h][u] * value[i];
    }
  }
}

// The query of each head, scaled; zeros for heads and channels that are not there.
template <class T, int HEADS>
__device__ inline void load_query(const DecodeAttention<T>& a, int64_t first_head, int heads,
                                  int channel, float (&q)[HEADS][kVec]) {
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) q[h][i] = 0;
    if (h >= heads || channel >= a.width) continue;
    widen(load_pack(a.q + (first_head + h) * a.width + channel), q[h]);
#pragma unroll
    for (int i = 0; i < kVec; ++i) q[h][i] *= a.scale;
  }
}

// What the threads of a block have when all keys are done.
template <int LANES, int HEADS>
struct SlotSums {
  static constexpr int kSlots = kThreads / LANES;
  float top[HEADS][kSlots], total[HEADS][kSlots], sum[HEADS][kSlots][LANES * kVec];
};

// Adds them up, slot by slot, and writes the result of the block.
template <class T, int LANES, int HEADS>
__device__ inline void write_sums(const DecodeAttention<T>& a, const SlotSums<LANES, HEADS>& slots,
                                  int64_t first_head, int heads, int64_t split) {
  const int width = static_cast<int>(a.width);
  for (int i = threadIdx.x; i < heads * width; i += kThreads) {
    const int h = i / width, c = i % width;
    float top = -INFINITY, total = 0, sum = 0;
    for (int s = 0; s < slots.kSlots; ++s) top = fmaxf(top, slots.top[h][s]);
    for (int s = 0; s < slots.kSlots; ++s) {
      const float weight = weight_under(slots.top[h][s], top);
      total += slots.total[h][s] * weight;
      sum += slots.sum[h][s][c] * weight;
    }
    if (a.splits == 1) {
      store<1>(Floats<1>{{sum / total}}, a.out + (first_head + h) * a.width + c);
      continue;
    }
    const int64_t part = (first_head + h) * a.splits + split;
    a.partial[part * a.width + c] = sum;
    if (c == 0) a.stats[2 * part] = top, a.stats[2 * part + 1] = total;
  }
}

// A block serves a split of a row for up to HEADS query heads of one key head. LANES lanes hold a
// key, kVec channels each (those behind the width idle); kThreads / LANES keys are under way side
// by side, each with its own running sums, which are added up in a fixed order at the end.
template <class T, int LANES, int HEADS>
__global__ void __launch_bounds__(kThreads) decode_kernel(const DecodeAttention<T> a) {
  constexpr int kSlots = kThreads / LANES;
  constexpr int kUnroll = sizeof(T) == 2 ? 4 : 2;
  static_assert(LANES <= kWarp && kWarp % LANES == 0);
  __shared__ SlotSums<LANES, HEADS> slots;
  const int64_t row = blockIdx.z, split = blockIdx.x;
  const KeyRange keys = keys_of_split(seen_keys(a.positions[row], a.window), a.splits, split);
  if (keys.begin >= keys.end) return;  // of the whole block
  const int64_t group = a.heads / a.kv_heads, parts = (group + HEADS - 1) / HEADS;
  const int64_t kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
  const int64_t first_head = row * a.heads + kv_head * group + part * HEADS;  // of all rows' heads
  const int heads = static_cast<int>(min(int64_t{HEADS}, group - part * HEADS));
  const int slot = threadIdx.x / LANES, channel = threadIdx.x % LANES * kVec;
  const bool used = channel < a.width;

  float q[HEADS][kVec];
  load_query(a, first_head, heads, channel, q);
  const int64_t stride = a.kv_heads * a.width;
  const int64_t origin = row * a.capacity * stride + kv_head * a.width + channel;
  Running<HEADS> running;
  clear(running);
  // All threads go round equally often: lanes of a warp exchange scores.
  for (int64_t base = keys.begin; base < keys.end; base += kSlots * kUnroll) {
    Pack<T> k[kUnroll], v[kUnroll];
    bool there[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t key = base + u * kSlots + slot;
      there[u] = key < keys.end;
      k[u] = v[u] = Pack<T>{};
      if (there[u] && used) {
        k[u] = load_pack(a.k + origin + key * stride);
        v[u] = load_pack(a.v + origin + key * stride);
      }
    }
    float s[HEADS][kUnroll];
    score<T, LANES>(k, q, a.softcap, s);
    accumulate(v, there, s, running);
  }

#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    slots.top[h][slot] = running.top[h];  // the same in every lane of the slot
    slots.total[h][slot] = running.total[h];
#pragma unroll
    for (int i = 0; i < kVec; ++i) slots.sum[h][slot][channel + i] = running.sum[h][i];
  }
  __syncthreads();
  write_sums(a, slots, first_head, heads, split);
}

// A block adds up the splits of one head of a row that have keys.
template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(const DecodeAttention<T> a) {
  const int64_t row = blockIdx.y, head = row * a.heads + blockIdx.x;
  const KeyRange seen = seen_keys(a.positions[row], a.window);
  const int64_t length = split_length(seen, a.splits);
  const int64_t splits = (seen.end - seen.begin + length - 1) / length;
  const float* stats = a.stats + head * a.splits * 2;
  const float* partial = a.partial + head * a.splits * a.width;
  float top = -INFINITY;
  for (int64_t s = 0; s < splits; ++s) top = fmaxf(top, stats[2 * s]);
  for (int64_t c = threadIdx.x; c < a.width; c += kThreads) {
    float total = 0, sum = 0;
    for (int64_t s = 0; s < splits; ++s) {
      const float weight = weight_under(stats[2 * s], top);
      total += stats[2 * s + 1] * weight;
      sum += partial[s * a.width + c] * weight;
    }
    store<1>(Floats<1>{{sum / total}}, a.out + head * a.width + c);
  }
}

template <class T, int LANES, int HEADS>
void launch(const DecodeAttention<T>& a, CUstream_st* stream) {
  const int64_t group = a.heads / a.kv_heads, parts = (group + HEADS - 1) / HEADS;
  const dim3 grid(static_cast<unsigned>(a.splits), static_cast<unsigned>(a.kv_heads * parts),
                  static_cast<unsigned>(a.rows));
  decode_kernel<T, LANES, HEADS><<<grid, kThreads, 0, stream>>>(a);
}

template <class T, int LANES>
void launch_heads(const DecodeAttention<T>& a, CUstream_st* stream) {
  switch (decode_heads_per_block(a.heads, a.kv_heads)) {
    case 1:
      return launch<T, LANES, 1>(a, stream);
    case 2:
      return launch<T, LANES, 2>(a, stream);
    default:
      return launch<T, LANES, 4>(a, stream);
  }
}

}  // namespace

template <class T>
void decode_attention_cuda(const DecodeAttention<T>& a, CUstream_st* stream) {
  if (a.rows == 0) return;
  if (a.width <= 32) {
    launch_heads<T, 4>(a, stream);
  } else if (a.width <= 64) {
    launch_heads<T, 8>(a, stream);
  } else if (a.width <= 128) {
    launch_heads<T, 16>(a, stream);
  } else {
    launch_heads<T, 32>(a, stream);
  }
  check_cuda(cudaGetLastError(), "decode attention");
  if (a.splits == 1) return;
  const dim3 grid(static_cast<unsigned>(a.heads), static_cast<unsigned>(a.rows));
  combine_kernel<T><<<grid, kThreads, 0, stream>>>(a);
  check_cuda(cudaGetLastError(), "decode attention, sum of splits");
}

template void decode_attention_cuda(const DecodeAttention<float>&, CUstream_st*);
template void decode_attention_cuda(const DecodeAttention<Bf16>&, CUstream_st*);

}  // namespace mgm::kernels
