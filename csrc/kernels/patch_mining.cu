// CUDA twin of patch_mining_cpu.cpp: same steps, same formulas (see there and patch_mining.h).
// One warp per cell for the statistics, one thread per position, one block per query, one block per
// cell for the maps' gradients.
#include "kernels/cuda_common.cuh"
#include "kernels/patch_mining.h"
#include "kernels/patch_mining_stats.cuh"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBatchedCells = 4;

// ---- one query per block ------------------------------------------------------------------------

struct Window {
  struct Block {
    int r0, rows, c0, cols, base;
  };
  Block block[kMiningStages];
  int image, row0, col0;
  float warp_sums[kThreads / kWarp];
};

// Fills the block's shared Window; every thread may read it afterwards.
template <class T>
__device__ void make_window(const Problem<T>& p, Window& w) {
  const int n = p.patches;
  const int q = static_cast<int>(blockIdx.x % p.queries());
  const int tile = q / (n * n), patch = q % (n * n);
  if (threadIdx.x < kMiningStages) {
    const Stage<T>& s = p.stage[threadIdx.x];
    const int row0 = (tile / p.tiles * n + patch / n) * p.window;
    const int col0 = (tile % p.tiles * n + patch % n) * p.window;
    const int r0 = s.first[row0], c0 = s.first[col0];
    w.block[threadIdx.x] = {r0, s.first[row0 + p.window - 1] + s.span - r0, c0,
                            s.first[col0 + p.window - 1] + s.span - c0, 0};
    w.row0 = row0;
    w.col0 = col0;
    w.image = static_cast<int>(blockIdx.x / p.queries());
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int base = 0;
    for (int s = 0; s < kMiningStages; ++s) {
      w.block[s].base = base;
      base += w.block[s].rows * w.block[s].cols;
    }
  }
  __syncthreads();
}

__device__ float block_sum(const float* v, int n, Window& w) {
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += v[i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) w.warp_sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) sum += w.warp_sums[i];
  __syncthreads();
  return sum;
}

template <class T>
__device__ int64_t position_index(const Problem<T>& p, const Window& w, int j) {
  return (static_cast<int64_t>(w.image) * p.side + w.row0 + j / p.window) * p.side + w.col0 +
         j % p.window;
}

// cells[i] = y_i . v: a warp takes kBatchedCells cells of one stage at a time, so that v is read
// once for all of them and their loads are in flight together.
template <class T, int VEC>
__device__ void cell_dots(const Problem<T>& p, const Window& w, const float* v, float* cells) {
  const int lane = threadIdx.x % kWarp;
  int turn = threadIdx.x / kWarp;  // groups of cells are dealt to the warps in turn
  for (int s = kMiningStages - 1; s >= 0; --s) {
    const Stage<T>& stage = p.stage[s];
    const Window::Block block = w.block[s];
    const int count = block.rows * block.cols;
    const int groups = (count + kBatchedCells - 1) / kBatchedCells;
    for (; turn < groups; turn += kThreads / kWarp) {
      const T* y[kBatchedCells];
      float sum[kBatchedCells];
#pragma unroll
      for (int k = 0; k < kBatchedCells; ++k) {
        const int i = min(turn * kBatchedCells + k, count - 1);
        y[k] = p.cell(s, w.image, block.r0 + i / block.cols, block.c0 + i % block.cols);
        sum[k] = 0;
      }
      for (int c = lane * VEC; c < stage.channels; c += kWarp * VEC) {
        const Floats<VEC> x = load<VEC>(v + stage.channel0 + c);
#pragma unroll
        for (int k = 0; k < kBatchedCells; ++k) {
          const Floats<VEC> z = load<VEC>(y[k] + c);
          for (int e = 0; e < VEC; ++e) sum[k] += x.v[e] * z.v[e];
        }
      }
#pragma unroll
      for (int k = 0; k < kBatchedCells; ++k) {
        const float total = warp_sum(sum[k]);
        const int i = turn * kBatchedCells + k;
        if (lane == 0 && i < count) cells[block.base + i] = total;
      }
    }
    turn -= groups;
  }
}

// out[j] = xhat_j . v; `cells` is scratch. Begins and ends with all threads together.
template <class T, int VEC>
__device__ void normalised_dots(const Problem<T>& p, Window& w, const float* v, float sum_v,
                                const float* mean, const float* rstd, float* cells, float* out) {
  cell_dots<T, VEC>(p, w, v, cells);
  __syncthreads();
  for (int j = threadIdx.x; j < p.window * p.window; j += kThreads) {
    const int a = w.row0 + j / p.window, b = w.col0 + j % p.window;
    float total = 0;
#pragma unroll
    for (int s = 0; s < kMiningStages; ++s) {
      const Stage<T>& stage = p.stage[s];
      const Window::Block& block = w.block[s];
      const int corner =
          block.base + (stage.first[a] - block.r0) * block.cols + stage.first[b] - block.c0;
      for (int i = 0; i < stage.span; ++i) {
        for (int l = 0; l < stage.span; ++l) {
          total += stage.weight[a * stage.span + i] * stage.weight[b * stage.span + l] *
                   cells[corner + i * block.cols + l];
        }
      }
    }
    const int64_t at = position_index(p, w, j);
    out[j] = rstd[at] * (total - mean[at] * sum_v);
  }
  __syncthreads();
}

// out[C] = sum_j weight[j] xhat_j. weight is overwritten by weight * rstd; `cells` is scratch.
template <class T, int VEC>
__device__ void pool(const Problem<T>& p, Window& w, float* weight, const float* mean,
                     const float* rstd, float* cells, float* out) {
  __shared__ float offset;
  const int positions = p.window * p.window;
  if (threadIdx.x < kWarp) {
    float sum = 0;
    for (int j = threadIdx.x; j < positions; j += kWarp) {
      const int64_t at = position_index(p, w, j);
      weight[j] *= rstd[at];
      sum += weight[j] * mean[at];
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) offset = sum;
  }
  __syncthreads();
  for (int s = 0; s < kMiningStages; ++s) {  // positions' weights to cells: the transposed resize
    const Stage<T>& stage = p.stage[s];
    const Window::Block& block = w.block[s];
    for (int i = threadIdx.x; i < block.rows * block.cols; i += kThreads) {
      const int r = block.r0 + i / block.cols, c = block.c0 + i % block.cols;
      float sum = 0;
      for (int a = max(stage.out_begin[r], w.row0); a < min(stage.out_end[r], w.row0 + p.window);
           ++a) {
        const float wr = stage.weight[a * stage.span + r - stage.first[a]];
        for (int b = max(stage.out_begin[c], w.col0); b < min(stage.out_end[c], w.col0 + p.window);
             ++b) {
          sum += wr * stage.weight[b * stage.span + c - stage.first[b]] *
                 weight[(a - w.row0) * p.window + b - w.col0];
        }
      }
      cells[block.base + i] = sum;
    }
  }
  __syncthreads();
  for (int c = threadIdx.x * VEC; c < p.channels; c += kThreads * VEC) {
    int s = 0;
    while (s + 1 < kMiningStages && c >= p.stage[s + 1].channel0) ++s;
    const Stage<T>& stage = p.stage[s];
    const Window::Block block = w.block[s];
    Floats<VEC> sum;
    for (int k = 0; k < VEC; ++k) sum.v[k] = -offset;
    const float* weights = cells + block.base;
    for (int r = 0; r < block.rows; ++r) {
      const T* y = p.cell(s, w.image, block.r0 + r, block.c0) + c - stage.channel0;
#pragma unroll 4
      for (int i = 0; i < block.cols; ++i, y += stage.channels) {
        const Floats<VEC> z = load<VEC>(y);
        for (int k = 0; k < VEC; ++k) sum.v[k] += *weights * z.v[k];
        ++weights;
      }
    }
    store<VEC>(sum, out + c);
  }
}

// Dynamic shared memory of both query kernels: cells, then two arrays over positions.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Problem<T> p, const float* u, MiningOutputs<float> out,
                   int max_cells) {
  extern __shared__ float shared[];
  __shared__ Window w;
  const int64_t q = blockIdx.x;
  const int positions = p.window * p.window;
  float *cells = shared, *scores = shared + max_cells;
  make_window(p, w);
  u += q * p.channels;
  const float sum_u = block_sum(u, p.channels, w);
  normalised_dots<T, VEC>(p, w, u, sum_u, out.mean, out.rstd, cells, scores);
  if (threadIdx.x < kWarp) {
    float top = -INFINITY, sum = 0, poison = 0;  // poison: 0, or NaN with any non-finite score
    for (int j = threadIdx.x; j < positions; j += kWarp) {
      out.scores[q * positions + j] = scores[j];
      top = fmaxf(top, scores[j]);
      poison += 0 * scores[j];
    }
    top = warp_max(top);
    for (int j = threadIdx.x; j < positions; j += kWarp) {
      scores[j] = expf(scores[j] - top);
      sum += scores[j];
    }
    sum = warp_sum(sum);
    poison = warp_sum(poison);
    for (int j = threadIdx.x; j < positions; j += kWarp) {
      scores[j] = scores[j] / sum + poison;
      out.attention[q * positions + j] = scores[j];
    }
  }
  __syncthreads();
  pool<T, VEC>(p, w, scores, out.mean, out.rstd, cells, out.pooled + q * p.channels);
}

template <class T, int VEC>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Problem<T> p, const float* u,
                    MiningOutputs<float> saved, const float* d_pooled, float* d_u,
                    float4* coefficients, int max_cells) {
  extern __shared__ float shared[];
  __shared__ Window w;
  __shared__ float mean_d;
  const int64_t q = blockIdx.x;
  const int positions = p.window * p.window;
  float *cells = shared, *d_attention = shared + max_cells, *d_scores = d_attention + positions;
  make_window(p, w);
  d_pooled += q * p.channels;
  const float* attention = saved.attention + q * positions;
  const float sum_d = block_sum(d_pooled, p.channels, w);
  normalised_dots<T, VEC>(p, w, d_pooled, sum_d, saved.mean, saved.rstd, cells, d_attention);
  if (threadIdx.x < kWarp) {
    float sum = 0;
    for (int j = threadIdx.x; j < positions; j += kWarp) sum += attention[j] * d_attention[j];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) mean_d = sum;
  }
  __syncthreads();
  const float sum_u = coefficients ? block_sum(u + q * p.channels, p.channels, w) : 0.f;
  for (int j = threadIdx.x; j < positions; j += kThreads) {
    const float d_score = attention[j] * (d_attention[j] - mean_d);
    d_scores[j] = d_score;
    if (!coefficients) continue;
    const int64_t at = position_index(p, w, j);
    const float rstd = saved.rstd[at];
    const float mean_dx =
        (attention[j] * d_attention[j] + d_score * saved.scores[q * positions + j]) / p.channels;
    const float gamma = -rstd * rstd * mean_dx;
    const float mean_dxhat = (attention[j] * sum_d + d_score * sum_u) / p.channels;
    coefficients[at] = make_float4(rstd * attention[j], rstd * d_score, gamma,
                                   -rstd * mean_dxhat - gamma * saved.mean[at]);
  }
  __syncthreads();
  pool<T, VEC>(p, w, d_scores, saved.mean, saved.rstd, cells, d_u + q * p.channels);
}

// ---- gradient of one cell per block -------------------------------------------------------------

// The positions along one axis that read input `at`, and the queries they belong to.
struct Readers {
  int begin, end, first_query, queries;
  __device__ Readers(const int* out_begin, const int* out_end, int at, int window)
      : begin(out_begin[at]),
        end(out_end[at]),
        first_query(begin / window),
        queries(begin == end ? 0 : (end - 1) / window - first_query + 1) {}
};

// Sums over the positions of query (qr, qc) that read cell (r, c) of tap * alpha and tap * beta.
template <class T>
__device__ float2 query_weights(const Problem<T>& p, const Stage<T>& s, const Readers& rows,
                                const Readers& cols, int r, int c, int qr, int qc,
                                const float4* coefficients) {
  float2 sum = make_float2(0, 0);
  for (int a = max(rows.begin, qr * p.window); a < min(rows.end, (qr + 1) * p.window); ++a) {
    const float wr = s.weight[a * s.span + r - s.first[a]];
    for (int b = max(cols.begin, qc * p.window); b < min(cols.end, (qc + 1) * p.window); ++b) {
      const float tap = wr * s.weight[b * s.span + c - s.first[b]];
      const float4 k = coefficients[a * p.side + b];
      sum.x += tap * k.x;
      sum.y += tap * k.y;
    }
  }
  return sum;
}

// Sums over the positions that read both (r, c) and (nr, nc) of tap * gamma * other tap and of
// tap * delta (which is wanted for nr = r, nc = c).
template <class T>
__device__ float2 neighbour_weights(const Problem<T>& p, const Stage<T>& s, const Readers& rows,
                                    const Readers& cols, int r, int c, int nr, int nc,
                                    const float4* coefficients) {
  float2 sum = make_float2(0, 0);
  for (int a = rows.begin; a < rows.end; ++a) {
    const int i = nr - s.first[a];
    if (i < 0 || i >= s.span) continue;
    const float wr = s.weight[a * s.span + r - s.first[a]], nwr = s.weight[a * s.span + i];
    for (int b = cols.begin; b < cols.end; ++b) {
      const int l = nc - s.first[b];
      if (l < 0 || l >= s.span) continue;
      const float tap = wr * s.weight[b * s.span + c - s.first[b]];
      const float4 k = coefficients[a * p.side + b];
      sum.x += tap * k.z * (nwr * s.weight[b * s.span + l]);
      sum.y += tap * k.w;
    }
  }
  return sum;
}

// Dynamic shared memory: per reading query alpha, beta and its index.
template <class T, int VEC>
__global__ void map_gradient_kernel(const __grid_constant__ Problem<T> p, int stage_index,
                                    const float* u, const float* d_pooled,
                                    const float4* coefficients, T* d_map, int max_queries) {
  constexpr int kMaxWidth = 2 * kMaxReach + 1;
  extern __shared__ float shared[];
  __shared__ float neighbour[kMaxWidth * kMaxWidth], delta;
  float *alpha = shared, *beta = shared + max_queries;
  int* index = reinterpret_cast<int*>(beta + max_queries);
  const Stage<T>& s = p.stage[stage_index];
  const int64_t at = blockIdx.x;
  const int image = static_cast<int>(at / s.size / s.size);
  const int r = static_cast<int>(at / s.size % s.size), c = static_cast<int>(at % s.size);
  const Readers rows(s.out_begin, s.out_end, r, p.window),
      cols(s.out_begin, s.out_end, c, p.window);
  const int reach = s.span - 1, width = 2 * reach + 1, slots = width * width;
  const int queries = rows.queries * cols.queries;
  coefficients += static_cast<int64_t>(image) * p.side * p.side;

  for (int job = threadIdx.x; job < queries + slots; job += blockDim.x) {
    if (job < queries) {
      const int qr = rows.first_query + job / cols.queries;
      const int qc = cols.first_query + job % cols.queries;
      const float2 w = query_weights(p, s, rows, cols, r, c, qr, qc, coefficients);
      const int n = p.patches, tile = qr / n * p.tiles + qc / n;
      alpha[job] = w.x;
      beta[job] = w.y;
      index[job] = image * p.queries() + tile * n * n + qr % n * n + qc % n;
    } else {
      const int slot = job - queries;
      const int nr = r + slot / width - reach, nc = c + slot % width - reach;
      const float2 w = neighbour_weights(p, s, rows, cols, r, c, nr, nc, coefficients);
      neighbour[slot] = w.x;
      if (nr == r && nc == c) delta = w.y;
    }
  }
  __syncthreads();

  for (int i = threadIdx.x * VEC; i < s.channels; i += blockDim.x * VEC) {
    Floats<VEC> sum;
    for (int k = 0; k < VEC; ++k) sum.v[k] = delta;
    for (int q = 0; q < queries; ++q) {
      const int64_t row = static_cast<int64_t>(index[q]) * p.channels + s.channel0 + i;
      const Floats<VEC> d = load<VEC>(d_pooled + row), x = load<VEC>(u + row);
      for (int k = 0; k < VEC; ++k) sum.v[k] += alpha[q] * d.v[k] + beta[q] * x.v[k];
    }
    for (int slot = 0; slot < slots; ++slot) {
      const int nr = r + slot / width - reach, nc = c + slot % width - reach;
      if (nr < 0 || nr >= s.size || nc < 0 || nc >= s.size) continue;
      const Floats<VEC> y = load<VEC>(p.cell(stage_index, image, nr, nc) + i);
      for (int k = 0; k < VEC; ++k) sum.v[k] += neighbour[slot] * y.v[k];
    }
    store<VEC>(sum, d_map + at * s.channels + i);
  }
}

// ---- launches -----------------------------------------------------------------------------------

template <class T>
Problem<T> device_problem(const MiningProblem<T>& in) {
  Problem<T> out{};
  out.batch = static_cast<int>(in.shape.batch);
  out.tiles = static_cast<int>(in.shape.tiles);
  out.patches = static_cast<int>(in.shape.patches);
  out.window = static_cast<int>(in.shape.window);
  out.side = static_cast<int>(in.shape.side());
  out.channels = static_cast<int>(in.channels);
  for (int s = 0; s < kMiningStages; ++s) {
    const MiningStage<T>& k = in.stage[static_cast<size_t>(s)];
    MGM_CHECK(k.span - 1 <= kMaxReach, "stage ", s, " needs ", k.span, " taps per position");
    out.stage[s] = {k.map,
                    k.first,
                    k.out_begin,
                    k.out_end,
                    k.weight,
                    k.mean,
                    k.gram,
                    static_cast<int>(k.size),
                    static_cast<int>(k.channels),
                    static_cast<int>(k.channel0),
                    static_cast<int>(k.span),
                    static_cast<int>(k.gram_width)};
  }
  return out;
}

// Whether four channels may be loaded at a time: every stage's channels and all addresses agree.
template <class T>
bool can_vectorise(const Problem<T>& p, std::initializer_list<const void*> rows) {
  for (const Stage<T>& s : p.stage) {
    if (s.channels % 4 != 0 || !aligned(s.map, 4 * sizeof(T))) return false;
  }
  for (const void* row : rows) {
    if (!aligned(row, 4 * sizeof(float))) return false;
  }
  return true;
}

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

template <class T, int VEC>
void launch_stats(const Problem<T>& p, const MiningOutputs<float>& out, cudaStream_t stream) {
  for (const Stage<T>& s : p.stage) {
    const int64_t cells = static_cast<int64_t>(p.batch) * s.size * s.size;
    const unsigned blocks = blocks_for(cells, kThreads / kWarp);
    cell_means<T, VEC><<<blocks, kThreads, 0, stream>>>(s, cells);
    if (s.span == 1) cell_products<T, VEC, 0><<<blocks, kThreads, 0, stream>>>(s, cells);
    if (s.span == 2) cell_products<T, VEC, 1><<<blocks, kThreads, 0, stream>>>(s, cells);
    if (s.span == 3) cell_products<T, VEC, 2><<<blocks, kThreads, 0, stream>>>(s, cells);
  }
  const int64_t positions = static_cast<int64_t>(p.batch) * p.side * p.side;
  position_stats<T>
      <<<blocks_for(positions, kThreads), kThreads, 0, stream>>>(p, out.mean, out.rstd);
  check_cuda(cudaGetLastError(), "mining statistics");
}

template <class T>
size_t query_shared_bytes(const MiningProblem<T>& p) {
  return sizeof(float) * static_cast<size_t>(p.max_window_cells + 2 * p.shape.positions());
}

template <class T, int VEC>
void launch_forward(const MiningProblem<T>& problem, const Problem<T>& p, const float* u,
                    const MiningOutputs<float>& out, cudaStream_t stream) {
  launch_stats<T, VEC>(p, out, stream);
  const size_t bytes = query_shared_bytes(problem);
  allow_shared_memory(forward_kernel<T, VEC>, bytes, "mining window too large");
  const auto blocks = static_cast<unsigned>(problem.shape.batch * problem.shape.queries());
  forward_kernel<T, VEC>
      <<<blocks, kThreads, bytes, stream>>>(p, u, out, static_cast<int>(problem.max_window_cells));
  check_cuda(cudaGetLastError(), "mining forward");
}

template <class T, int VEC>
void launch_backward(const MiningProblem<T>& problem, const Problem<T>& p, const float* u,
                     const MiningOutputs<float>& saved, const MiningGradients<T>& grad,
                     cudaStream_t stream) {
  const size_t bytes = query_shared_bytes(problem);
  allow_shared_memory(backward_kernel<T, VEC>, bytes, "mining window too large");
  auto* coefficients = reinterpret_cast<float4*>(grad.coefficients);
  const auto blocks = static_cast<unsigned>(problem.shape.batch * problem.shape.queries());
  backward_kernel<T, VEC>
      <<<blocks, kThreads, bytes, stream>>>(p, u, saved, grad.d_pooled, grad.d_u, coefficients,
                                            static_cast<int>(problem.max_window_cells));
  check_cuda(cudaGetLastError(), "mining backward");

  const size_t cell_bytes = 12 * static_cast<size_t>(problem.max_cell_queries);
  allow_shared_memory(map_gradient_kernel<T, VEC>, cell_bytes, "too many windows per cell");
  for (int s = 0; s < kMiningStages; ++s) {
    T* d_map = grad.d_maps[static_cast<size_t>(s)];
    if (!d_map) continue;
    const Stage<T>& stage = p.stage[s];
    const int wanted = (stage.channels / VEC + kWarp - 1) / kWarp * kWarp;
    const int threads = min(kThreads, max(2 * kWarp, wanted));
    const int64_t cells = static_cast<int64_t>(p.batch) * stage.size * stage.size;
    map_gradient_kernel<T, VEC><<<static_cast<unsigned>(cells), threads, cell_bytes, stream>>>(
        p, s, u, grad.d_pooled, coefficients, d_map, static_cast<int>(problem.max_cell_queries));
  }
  check_cuda(cudaGetLastError(), "mining gradient of the maps");
}

}  // namespace

template <class T>
void mining_forward_cuda(const MiningProblem<T>& problem, const Real<T>* u,
                         const MiningOutputs<Real<T>>& out, CUstream_st* stream) {
  if (problem.shape.batch == 0) return;
  const Problem<T> p = device_problem(problem);
  if (can_vectorise(p, {u, out.pooled})) {
    launch_forward<T, 4>(problem, p, u, out, stream);
  } else {
    launch_forward<T, 1>(problem, p, u, out, stream);
  }
}

template <class T>
void mining_backward_cuda(const MiningProblem<T>& problem, const Real<T>* u,
                          const MiningOutputs<Real<T>>& saved, const MiningGradients<T>& grad,
                          CUstream_st* stream) {
  if (problem.shape.batch == 0) return;
  const Problem<T> p = device_problem(problem);
  bool vectorise = can_vectorise(p, {u, grad.d_pooled, grad.d_u});
  for (const T* d_map : grad.d_maps) vectorise = vectorise && aligned(d_map, 4 * sizeof(T));
  if (vectorise) {
    launch_backward<T, 4>(problem, p, u, saved, grad, stream);
  } else {
    launch_backward<T, 1>(problem, p, u, saved, grad, stream);
  }
}

#define MGM_INSTANTIATE(T)                                                                     \
  template void mining_forward_cuda(const MiningProblem<T>&, const Real<T>*,                   \
                                    const MiningOutputs<Real<T>>&, CUstream_st*);              \
  template void mining_backward_cuda(const MiningProblem<T>&, const Real<T>*,                  \
                                     const MiningOutputs<Real<T>>&, const MiningGradients<T>&, \
                                     CUstream_st*);
MGM_INSTANTIATE(float)
MGM_INSTANTIATE(Bf16)
#undef MGM_INSTANTIATE

}  // namespace mgm::kernels
