// The part of patch mining that CPU and CUDA share: shapes, tables, scratch.
#include "kernels/patch_mining.h"

#include <algorithm>

#include "base/error.h"

namespace mgm::kernels {

int64_t MiningShape::total_channels() const {
  int64_t total = 0;
  for (const int64_t c : channels) total += c;
  return total;
}

template <class R>
MiningTables<R>::MiningTables(const MiningShape& shape) {
  const int64_t full = shape.size[0];
  MGM_CHECK(shape.window > 0 && shape.patches > 0 && shape.tiles > 0 && shape.downscale > 0 &&
                full == shape.side() * shape.downscale,
            "a stage-0 map of side ", full, " does not divide into ", shape.tiles, " tiles x ",
            shape.patches, " patches x ", shape.window, " positions, downscale ", shape.downscale);
  int64_t cell_queries = 0;  // per axis
  for (size_t s = 0; s < kMiningStages; ++s) {
    MGM_CHECK(shape.size[s] > 0 && shape.size[s] <= full && shape.channels[s] > 0, "stage ", s,
              " has side ", shape.size[s], " and ", shape.channels[s],
              " channels; the side must be between 1 and stage 0's ", full);
    const BilinearBand<R> band = bilinear_band<R>(shape.size[s], full, shape.side());
    span[s] = band.span;
    const int64_t reach = band.span - 1;
    gram_width[s] = reach + 1 + reach * (2 * reach + 1);
    index.insert(index.end(), band.first.begin(), band.first.end());
    index.insert(index.end(), band.out_begin.begin(), band.out_begin.end());
    index.insert(index.end(), band.out_end.begin(), band.out_end.end());
    weight.insert(weight.end(), band.weight.begin(), band.weight.end());

    int64_t window_cells = 0;  // per axis
    for (int64_t i = 0; i < band.out; i += shape.window) {
      const size_t last = static_cast<size_t>(i + shape.window - 1);
      const int64_t cells = band.first[last] + band.span - band.first[static_cast<size_t>(i)];
      window_cells = std::max(window_cells, cells);
    }
    max_window_cells += window_cells * window_cells;
    for (size_t r = 0; r < static_cast<size_t>(band.in); ++r) {
      if (band.out_begin[r] == band.out_end[r]) continue;  // a cell that no output reads
      const int64_t first_query = band.out_begin[r] / shape.window;
      const int64_t last_query = (band.out_end[r] - 1) / shape.window;
      cell_queries = std::max(cell_queries, last_query - first_query + 1);
    }
  }
  max_cell_queries = cell_queries * cell_queries;
}

template struct MiningTables<float>;
template struct MiningTables<double>;

template <class T>
MiningProblem<T> mining_problem(const MiningShape& shape, const MiningTables<Real<T>>& tables,
                                const int32_t* index, const Real<T>* weight,
                                const std::array<const T*, kMiningStages>& maps) {
  MiningProblem<T> problem;
  problem.shape = shape;
  problem.max_window_cells = tables.max_window_cells;
  problem.max_cell_queries = tables.max_cell_queries;
  for (size_t s = 0; s < kMiningStages; ++s) {
    MiningStage<T>& stage = problem.stage[s];
    stage.map = maps[s];
    stage.size = shape.size[s];
    stage.channels = shape.channels[s];
    stage.channel0 = problem.channels;
    stage.span = tables.span[s];
    stage.gram_width = tables.gram_width[s];
    stage.first = index;
    stage.out_begin = stage.first + shape.side();
    stage.out_end = stage.out_begin + stage.size;
    stage.weight = weight;
    index += shape.side() + 2 * stage.size;
    weight += shape.side() * stage.span;
    problem.channels += stage.channels;
  }
  return problem;
}

template <class T>
int64_t mining_scratch(const MiningProblem<T>& problem) {
  int64_t elements = 0;
  for (const MiningStage<T>& stage : problem.stage) {
    elements += problem.shape.batch * stage.size * stage.size * (1 + stage.gram_width);
  }
  return elements;
}

template <class T>
void bind_scratch(MiningProblem<T>& problem, Real<T>* scratch) {
  for (MiningStage<T>& stage : problem.stage) {
    const int64_t cells = problem.shape.batch * stage.size * stage.size;
    stage.mean = scratch;
    stage.gram = scratch + cells;
    scratch += cells * (1 + stage.gram_width);
  }
}

#define MGM_INSTANTIATE(T)                                                                      \
  template MiningProblem<T> mining_problem<T>(const MiningShape&, const MiningTables<Real<T>>&, \
                                              const int32_t*, const Real<T>*,                   \
                                              const std::array<const T*, kMiningStages>&);      \
  template int64_t mining_scratch(const MiningProblem<T>&);                                     \
  template void bind_scratch(MiningProblem<T>&, Real<T>*);
MGM_INSTANTIATE(float)
MGM_INSTANTIATE(double)
MGM_INSTANTIATE(Bf16)
#undef MGM_INSTANTIATE

}  // namespace mgm::kernels
