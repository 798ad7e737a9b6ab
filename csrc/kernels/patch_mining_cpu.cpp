#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/patch_mining.h"
#include "kernels/vec.h"

namespace mgm::kernels {
namespace {

constexpr int64_t kGrain = 1;  // rows, cells and queries of hundreds of channels

template <class T>
const T* cell(const MiningStage<T>& s, int64_t image, int64_t r, int64_t c) {
  return s.map + ((image * s.size + r) * s.size + c) * s.channels;
}

// ---- LayerNorm statistics of every position -----------------------------------------------------

// Products of centred cells (r, c) . (r + dr, c + dc) are kept for the half plane dr > 0 or
// (dr == 0 and dc >= 0), in the order dr, dc; reach = span - 1 bounds |dr| and |dc|.
int64_t gram_slot(int64_t reach, int64_t dr, int64_t dc) {
  return dr == 0 ? dc : reach + 1 + (dr - 1) * (2 * reach + 1) + dc + reach;
}

template <class T>
void cell_means(const MiningStage<T>& s, int64_t batch, const ParallelFor& parallel) {
  parallel(batch * s.size * s.size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      s.mean[i] = vec::sum(s.map + i * s.channels, s.channels) / static_cast<Real<T>>(s.channels);
    }
  });
}

template <class T>
void cell_products(const MiningStage<T>& s, int64_t batch, const ParallelFor& parallel) {
  const int64_t n = s.size, reach = s.span - 1;
  parallel(batch * n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / n, r = row % n;
      for (int64_t c = 0; c < n; ++c) {
        const int64_t at = row * n + c;
        for (int64_t dr = 0; dr <= std::min(reach, n - 1 - r); ++dr) {
          const int64_t low = dr == 0 ? 0 : -std::min(reach, c);
          for (int64_t dc = low; dc <= std::min(reach, n - 1 - c); ++dc) {
            s.gram[at * s.gram_width + gram_slot(reach, dr, dc)] =
                vec::centred_dot(cell(s, image, r, c), s.mean[at], cell(s, image, r + dr, c + dc),
                                 s.mean[at + dr * n + dc], s.channels);
          }
        }
      }
    }
  });
}

// sum over channels of (x - stage mean)^2 at position (a, b); *mean becomes the stage mean there.
template <class T>
Real<T> stage_deviation(const MiningStage<T>& s, int64_t image, int64_t a, int64_t b,
                        Real<T>* mean) {
  using R = Real<T>;
  const int64_t r0 = s.first[a], c0 = s.first[b], reach = s.span - 1;
  const R *wr = s.weight + a * s.span, *wc = s.weight + b * s.span;
  R total = 0;
  *mean = 0;
  for (int64_t k = 0; k < s.span * s.span; ++k) {
    const int64_t kr = k / s.span, kc = k % s.span;
    const int64_t at = (image * s.size + r0 + kr) * s.size + c0 + kc;
    const R w = wr[kr] * wc[kc];
    *mean += w * s.mean[at];
    const R* gram = s.gram + at * s.gram_width;
    total += w * w * gram[0];
    for (int64_t j = k + 1; j < s.span * s.span; ++j) {  // pairs in row-major order: the half plane
      const int64_t jr = j / s.span, jc = j % s.span;
      total += 2 * w * (wr[jr] * wc[jc]) * gram[gram_slot(reach, jr - kr, jc - kc)];
    }
  }
  return total;
}

template <class T>
void position_stats(const MiningProblem<T>& p, const MiningOutputs<Real<T>>& out,
                    const ParallelFor& parallel) {
  using R = Real<T>;
  const int64_t side = p.shape.side();
  parallel(p.shape.batch * side, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t b = 0; b < side; ++b) {
        R stage_mean[kMiningStages], mean = 0, deviation = 0;
        for (size_t s = 0; s < kMiningStages; ++s) {
          const MiningStage<T>& stage = p.stage[s];
          deviation += stage_deviation(stage, row / side, row % side, b, &stage_mean[s]);
          mean += stage_mean[s] * static_cast<R>(stage.channels);
        }
        mean /= static_cast<R>(p.channels);
        for (size_t s = 0; s < kMiningStages; ++s) {
          const R d = stage_mean[s] - mean;
          deviation += d * d * static_cast<R>(p.stage[s].channels);
        }
        // Rounding can make a vanishing sum of products slightly negative; NaN stays NaN.
        const R var = deviation < 0 ? R(0) : deviation / static_cast<R>(p.channels);
        out.mean[row * side + b] = mean;
        out.rstd[row * side + b] = 1 / std::sqrt(var + static_cast<R>(kMiningNormEps));
      }
    }
  });
}

// ---- one query ----------------------------------------------------------------------------------

// The window of one query: its positions and, per stage, the block of cells they read. The cells of
// all stages are numbered one after the other.
template <class T>
class Window {
  using R = Real<T>;

 public:
  Window(const MiningProblem<T>& problem, int64_t image_query)
      : p(problem),
        image(image_query / p.shape.queries()),
        cells_(static_cast<size_t>(p.max_window_cells)) {
    const int64_t q = image_query % p.shape.queries(), n = p.shape.patches;
    const int64_t tile = q / (n * n), patch = q % (n * n);
    row0 = (tile / p.shape.tiles * n + patch / n) * p.shape.window;
    col0 = (tile % p.shape.tiles * n + patch % n) * p.shape.window;
    int64_t base = 0;
    for (size_t s = 0; s < kMiningStages; ++s) {
      const MiningStage<T>& stage = p.stage[s];
      const int64_t last = p.shape.window - 1;
      block_[s] = {stage.first[row0], stage.first[row0 + last] + stage.span - stage.first[row0],
                   stage.first[col0], stage.first[col0 + last] + stage.span - stage.first[col0],
                   base};
      base += block_[s].rows * block_[s].cols;
    }
  }

  // out[j] = x_j . v for every position j.
  void dots(const R* v, R* out) {
    for (size_t s = 0; s < kMiningStages; ++s) {
      const MiningStage<T>& stage = p.stage[s];
      each_cell(s, [&](const T* y, R& value) {
        value = vec::dot(y, v + stage.channel0, stage.channels);
      });
    }
    const int64_t w = p.shape.window;
    for (int64_t j = 0; j < w * w; ++j) {
      R total = 0;
      each_tap(j, [&](R weight, R& value) { total += weight * value; });
      out[j] = total;
    }
  }

  // out += sum_j weight[j] x_j.
  void add_weighted(const R* weight, R* out) {
    std::fill(cells_.begin(), cells_.end(), R(0));
    const int64_t w = p.shape.window;
    for (int64_t j = 0; j < w * w; ++j) {
      each_tap(j, [&](R tap, R& value) { value += tap * weight[j]; });
    }
    for (size_t s = 0; s < kMiningStages; ++s) {
      const MiningStage<T>& stage = p.stage[s];
      each_cell(s, [&](const T* y, R& value) {
        vec::add_scaled(value, y, out + stage.channel0, stage.channels);
      });
    }
  }

  // Index of position j in arrays [B, side, side].
  int64_t at(int64_t j) const {
    const int64_t w = p.shape.window, side = p.shape.side();
    return (image * side + row0 + j / w) * side + col0 + j % w;
  }

  const MiningProblem<T>& p;
  const int64_t image;
  int64_t row0, col0;

 private:
  struct Block {
    int64_t r0, rows, c0, cols, base;
  };

  template <class F>
  void each_cell(size_t s, const F& f) {
    const Block& k = block_[s];
    for (int64_t i = 0; i < k.rows * k.cols; ++i) {
      f(cell(p.stage[s], image, k.r0 + i / k.cols, k.c0 + i % k.cols),
        cells_[static_cast<size_t>(k.base + i)]);
    }
  }

  template <class F>
  void each_tap(int64_t j, const F& f) {
    const int64_t a = row0 + j / p.shape.window, b = col0 + j % p.shape.window;
    for (size_t s = 0; s < kMiningStages; ++s) {
      const MiningStage<T>& stage = p.stage[s];
      const Block& k = block_[s];
      const int64_t corner = k.base + (stage.first[a] - k.r0) * k.cols + stage.first[b] - k.c0;
      for (int64_t i = 0; i < stage.span; ++i) {
        for (int64_t l = 0; l < stage.span; ++l) {
          f(stage.weight[a * stage.span + i] * stage.weight[b * stage.span + l],
            cells_[static_cast<size_t>(corner + i * k.cols + l)]);
        }
      }
    }
  }

  std::array<Block, kMiningStages> block_;
  std::vector<R> cells_;
};

// out = sum_j weight[j] xhat_j; `scaled` is scratch of the window's size.
template <class T>
void pool(Window<T>& window, const MiningOutputs<Real<T>>& stats, const Real<T>* weight,
          std::vector<Real<T>>& scaled, Real<T>* out) {
  using R = Real<T>;
  R offset = 0;
  for (size_t j = 0; j < scaled.size(); ++j) {
    const int64_t at = window.at(static_cast<int64_t>(j));
    scaled[j] = weight[j] * stats.rstd[at];
    offset += scaled[j] * stats.mean[at];
  }
  std::fill(out, out + window.p.channels, -offset);
  window.add_weighted(scaled.data(), out);
}

// out[j] = xhat_j . v.
template <class T>
void normalised_dots(Window<T>& window, const MiningOutputs<Real<T>>& stats, const Real<T>* v,
                     Real<T>* out) {
  window.dots(v, out);
  const Real<T> sum = vec::sum(v, window.p.channels);
  for (int64_t j = 0; j < window.p.shape.positions(); ++j) {
    const int64_t at = window.at(j);
    out[j] = stats.rstd[at] * (out[j] - stats.mean[at] * sum);
  }
}

// Softmax; any non-finite score makes every weight NaN.
template <class R>
void softmax(const R* scores, int64_t n, R* out) {
  const R top = *std::max_element(scores, scores + n);
  R sum = 0, poison = 0;
  for (int64_t j = 0; j < n; ++j) {
    out[j] = std::exp(scores[j] - top);
    sum += out[j];
    poison += 0 * scores[j];  // 0, or NaN
  }
  for (int64_t j = 0; j < n; ++j) out[j] = out[j] / sum + poison;
}

// dx_j = alpha dP + beta u + gamma x_j + delta: softmax and LayerNorm backward of one query.
template <class T>
void position_coefficients(const Window<T>& window, const MiningOutputs<Real<T>>& saved,
                           const Real<T>* d_attention, const Real<T>* d_scores, int64_t query,
                           Real<T> sum_u, Real<T> sum_d_pooled, Real<T>* coefficients) {
  using R = Real<T>;
  const R channels = static_cast<R>(window.p.channels);
  const R* attention = saved.attention + query * window.p.shape.positions();
  const R* scores = saved.scores + query * window.p.shape.positions();
  for (int64_t j = 0; j < window.p.shape.positions(); ++j) {
    const int64_t at = window.at(j);
    const R rstd = saved.rstd[at];
    // Means over channels of d(xhat) and of d(xhat) xhat, d(xhat) = attention dP + d_score u.
    const R mean_d = (attention[j] * sum_d_pooled + d_scores[j] * sum_u) / channels;
    const R mean_dx = (attention[j] * d_attention[j] + d_scores[j] * scores[j]) / channels;
    R* out = coefficients + 4 * at;
    out[0] = rstd * attention[j];
    out[1] = rstd * d_scores[j];
    out[2] = -rstd * rstd * mean_dx;
    out[3] = -rstd * mean_d - out[2] * saved.mean[at];
  }
}

// ---- gradient of one cell -----------------------------------------------------------------------

// out[channels] = sum over the positions that read cell (r, c) of their dx, weighted by their taps.
template <class T>
void cell_gradient(const MiningProblem<T>& p, const MiningStage<T>& s, int64_t image, int64_t r,
                   int64_t c, const Real<T>* u, const MiningGradients<T>& grad,
                   std::vector<Real<T>>& neighbour, Real<T>* out) {
  using R = Real<T>;
  const int64_t side = p.shape.side(), w = p.shape.window, n = p.shape.patches;
  const int64_t reach = s.span - 1, width = 2 * reach + 1;
  std::fill(neighbour.begin(), neighbour.end(), R(0));
  std::fill(out, out + s.channels, R(0));
  R delta = 0;
  const int64_t a_end = s.out_end[r], b_end = s.out_end[c];
  for (int64_t a0 = s.out_begin[r]; a0 < a_end; a0 = (a0 / w + 1) * w) {
    for (int64_t b0 = s.out_begin[c]; b0 < b_end; b0 = (b0 / w + 1) * w) {
      R alpha = 0, beta = 0;  // of the query whose window these positions are in
      for (int64_t a = a0; a < std::min(a_end, (a0 / w + 1) * w); ++a) {
        for (int64_t b = b0; b < std::min(b_end, (b0 / w + 1) * w); ++b) {
          const R* wr = s.weight + a * s.span;
          const R* wc = s.weight + b * s.span;
          const R tap = wr[r - s.first[a]] * wc[c - s.first[b]];
          const R* k = grad.coefficients + 4 * ((image * side + a) * side + b);
          alpha += tap * k[0];
          beta += tap * k[1];
          delta += tap * k[3];
          for (int64_t i = 0; i < s.span; ++i) {
            for (int64_t l = 0; l < s.span; ++l) {
              const int64_t slot =
                  (s.first[a] + i - r + reach) * width + s.first[b] + l - c + reach;
              neighbour[static_cast<size_t>(slot)] += tap * k[2] * (wr[i] * wc[l]);
            }
          }
        }
      }
      const int64_t qr = a0 / w, qc = b0 / w;
      const int64_t tile = qr / n * p.shape.tiles + qc / n;
      const int64_t q = image * p.shape.queries() + tile * n * n + qr % n * n + qc % n;
      vec::add_scaled(alpha, grad.d_pooled + q * p.channels + s.channel0, out, s.channels);
      vec::add_scaled(beta, u + q * p.channels + s.channel0, out, s.channels);
    }
  }
  for (int64_t slot = 0; slot < width * width; ++slot) {
    const int64_t nr = r + slot / width - reach, nc = c + slot % width - reach;
    if (nr < 0 || nr >= s.size || nc < 0 || nc >= s.size) continue;
    vec::add_scaled(neighbour[static_cast<size_t>(slot)], cell(s, image, nr, nc), out, s.channels);
  }
  for (int64_t i = 0; i < s.channels; ++i) out[i] += delta;
}

template <class T>
void map_gradient(const MiningProblem<T>& p, const MiningStage<T>& s, T* d_map, const Real<T>* u,
                  const MiningGradients<T>& grad, const ParallelFor& parallel) {
  parallel(p.shape.batch * s.size, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<Real<T>> sum(static_cast<size_t>(s.channels));
    std::vector<Real<T>> neighbour(static_cast<size_t>((2 * s.span - 1) * (2 * s.span - 1)));
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < s.size; ++c) {
        cell_gradient(p, s, row / s.size, row % s.size, c, u, grad, neighbour, sum.data());
        T* out = d_map + (row * s.size + c) * s.channels;
        for (int64_t i = 0; i < s.channels; ++i) store_real(sum[static_cast<size_t>(i)], out + i);
      }
    }
  });
}

}  // namespace

template <class T>
void mining_forward_cpu(const MiningProblem<T>& p, const Real<T>* u,
                        const MiningOutputs<Real<T>>& out, const ParallelFor& parallel) {
  for (const MiningStage<T>& stage : p.stage) {
    cell_means(stage, p.shape.batch, parallel);
    cell_products(stage, p.shape.batch, parallel);
  }
  position_stats(p, out, parallel);
  const int64_t positions = p.shape.positions();
  parallel(p.shape.batch * p.shape.queries(), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<Real<T>> scaled(static_cast<size_t>(positions));
    for (int64_t q = begin; q < end; ++q) {
      Window<T> window(p, q);
      normalised_dots(window, out, u + q * p.channels, out.scores + q * positions);
      softmax(out.scores + q * positions, positions, out.attention + q * positions);
      pool(window, out, out.attention + q * positions, scaled, out.pooled + q * p.channels);
    }
  });
}

template <class T>
void mining_backward_cpu(const MiningProblem<T>& p, const Real<T>* u,
                         const MiningOutputs<Real<T>>& saved, const MiningGradients<T>& grad,
                         const ParallelFor& parallel) {
  using R = Real<T>;
  const int64_t positions = p.shape.positions();
  parallel(p.shape.batch * p.shape.queries(), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<R> scaled(static_cast<size_t>(positions)), d_attention(scaled), d_scores(scaled);
    for (int64_t q = begin; q < end; ++q) {
      Window<T> window(p, q);
      const R* attention = saved.attention + q * positions;
      const R* d_pooled = grad.d_pooled + q * p.channels;
      normalised_dots(window, saved, d_pooled, d_attention.data());
      const R mean = std::inner_product(attention, attention + positions, d_attention.data(), R(0));
      for (size_t j = 0; j < d_scores.size(); ++j) {
        d_scores[j] = attention[j] * (d_attention[j] - mean);
      }
      pool(window, saved, d_scores.data(), scaled, grad.d_u + q * p.channels);
      if (grad.coefficients) {
        position_coefficients(window, saved, d_attention.data(), d_scores.data(), q,
                              vec::sum(u + q * p.channels, p.channels),
                              vec::sum(d_pooled, p.channels), grad.coefficients);
      }
    }
  });
  for (size_t s = 0; s < kMiningStages; ++s) {
    if (grad.d_maps[s]) map_gradient(p, p.stage[s], grad.d_maps[s], u, grad, parallel);
  }
}

#define MGM_INSTANTIATE(T)                                                                    \
  template void mining_forward_cpu(const MiningProblem<T>&, const Real<T>*,                   \
                                   const MiningOutputs<Real<T>>&, const ParallelFor&);        \
  template void mining_backward_cpu(const MiningProblem<T>&, const Real<T>*,                  \
                                    const MiningOutputs<Real<T>>&, const MiningGradients<T>&, \
                                    const ParallelFor&);
MGM_INSTANTIATE(float)
MGM_INSTANTIATE(double)
MGM_INSTANTIATE(Bf16)
#undef MGM_INSTANTIATE

}  // namespace mgm::kernels
