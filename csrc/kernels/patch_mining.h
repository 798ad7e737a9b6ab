// Absorbed patch info mining straight from the four ConvNeXt stage maps; the concatenated map at
// stage-0 size is never made. ops/patch_mining.h states what is computed; this is how.
//
// Let x_j [C] be the full map at position j: every stage resized along both axes by its band,
// channels concatenated. Resizing is linear, so all sums over channels are taken once per cell of
// the small maps
// ("at native resolution") and resized afterwards, and all weighted sums over positions first
// become weights of cells:
//   x_j . u           = resize of (y_cell . u)
//   mean_j            = resize of the cells' channel means
//   var_j             = sum over pairs of cells W W' (y - m) . (y' - m'), pairs at most span - 1
//   apart sum_j b_j x_j     = sum over cells (transposed resize of b) y_cell
// and likewise in backward, where the gradient of the maps is, with LayerNorm's backward,
//   dx_j = alpha_j dP + beta_j u + gamma_j x_j + delta_j    (dP, u of j's query)
// gathered per cell. Nothing is summed by atomics: every result repeats bit for bit.
//
// Cost at 768 px, 24 x 24 queries, ConvNeXt-L (192 + 384 + 768 + 1536 channels), bf16, one image:
// the maps are 26.5 MB, read once for the means and once for the products (5 neighbours, mostly
// from cache); each query window then reads its 104 KB of cells twice (2 x 60 MB, from L2); u and
// pooled are 6.6 MB each in fp32. Multiply-adds: 38 M for the variances, 30 M each for scores and
// pooling. Literally it is 217 G for the K and V projections of a concatenated map of 212 MB.
// Backward to u costs what scores and pooling do, backward to the maps about 120 M more.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/bilinear_band.h"
#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

inline constexpr int kMiningStages = 4;
inline constexpr double kMiningNormEps = 1e-5;

// The numbers of one call. Queries are tiles row-major, inside a tile patches row-major.
struct MiningShape {
  int64_t batch = 0;
  int64_t tiles = 1;      // per side
  int64_t patches = 0;    // per side of a tile
  int64_t window = 0;     // p
  int64_t downscale = 1;  // the map is resized by 1 / downscale first (global view)
  std::array<int64_t, kMiningStages> size = {};      // side of each stage map
  std::array<int64_t, kMiningStages> channels = {};  // of each stage map

  int64_t side() const { return tiles * patches * window; }
  int64_t query_side() const { return tiles * patches; }
  int64_t queries() const { return query_side() * query_side(); }
  int64_t positions() const { return window * window; }
  int64_t total_channels() const;
};

// The four bands in two flat arrays, so that they travel to a device in two copies.
template <class R>
struct MiningTables {
  explicit MiningTables(const MiningShape& shape);
  std::vector<int32_t> index;
  std::vector<R> weight;
  std::array<int64_t, kMiningStages> span = {};
  std::array<int64_t, kMiningStages> gram_width = {};  // products kept per cell
  int64_t max_window_cells = 0;  // cells of all stages that one query's window touches, at most
  int64_t max_cell_queries = 0;  // queries whose windows touch one cell, at most
};

// A stage map and its band, as kernels see it. T: float, double or Bf16; R = Real<T>.
template <class T>
struct MiningStage {
  using R = Real<T>;
  const T* map = nullptr;  // [B, size, size, channels]
  int64_t size = 0;
  int64_t channels = 0;
  int64_t channel0 = 0;  // first channel in the concatenation
  int64_t span = 0;
  int64_t gram_width = 0;
  const int32_t* first = nullptr;      // [side]
  const int32_t* out_begin = nullptr;  // [size]
  const int32_t* out_end = nullptr;    // [size]
  const R* weight = nullptr;           // [side, span]
  R* mean = nullptr;                   // scratch [B, size, size]
  R* gram = nullptr;                   // scratch [B, size, size, gram_width]
};

template <class T>
struct MiningProblem {
  using R = Real<T>;
  MiningShape shape;
  int64_t channels = 0;
  std::array<MiningStage<T>, kMiningStages> stage;
  int64_t max_window_cells = 0;
  int64_t max_cell_queries = 0;
};

// Ties shape, tables (`index`, `weight`: the arrays of `tables`, on the maps' device) and maps
// together.
template <class T>
MiningProblem<T> mining_problem(const MiningShape& shape, const MiningTables<Real<T>>& tables,
                                const int32_t* index, const Real<T>* weight,
                                const std::array<const T*, kMiningStages>& maps);

// Elements of scratch that mining_forward needs (cell means and products); bind_scratch hands them
// out.
template <class T>
int64_t mining_scratch(const MiningProblem<T>& problem);
template <class T>
void bind_scratch(MiningProblem<T>& problem, Real<T>* scratch);

// Forward results, all contiguous. The last four are what backward needs.
template <class R>
struct MiningOutputs {
  R* pooled = nullptr;     // [B, Q, C]
  R* attention = nullptr;  // [B, Q, p * p]
  R* scores = nullptr;     // [B, Q, p * p], before softmax
  R* mean = nullptr;       // [B, side, side], over channels, at each position of the map
  R* rstd = nullptr;       // [B, side, side], 1 / sqrt(var + eps)
};

// Backward arguments. d_maps are written (not added to); leave them null when the maps need none,
// then `coefficients` and `query_sums` may be null too.
template <class T>
struct MiningGradients {
  using R = Real<T>;
  const R* d_pooled = nullptr;  // [B, Q, C]
  R* d_u = nullptr;             // [B, Q, C]
  std::array<T*, kMiningStages> d_maps = {};
  R* coefficients = nullptr;  // scratch [B, side, side, 4]: alpha, beta, gamma, delta
};

template <class T>
void mining_forward_cpu(const MiningProblem<T>& problem, const Real<T>* u,
                        const MiningOutputs<Real<T>>& out, const ParallelFor& parallel);
template <class T>
void mining_backward_cpu(const MiningProblem<T>& problem, const Real<T>* u,
                         const MiningOutputs<Real<T>>& saved, const MiningGradients<T>& grad,
                         const ParallelFor& parallel);

// T: float, Bf16. Asynchronous on `stream`; throws InternalError when a launch is refused.
template <class T>
void mining_forward_cuda(const MiningProblem<T>& problem, const Real<T>* u,
                         const MiningOutputs<Real<T>>& out, CUstream_st* stream);
template <class T>
void mining_backward_cuda(const MiningProblem<T>& problem, const Real<T>* u,
                          const MiningOutputs<Real<T>>& saved, const MiningGradients<T>& grad,
                          CUstream_st* stream);

}  // namespace mgm::kernels
