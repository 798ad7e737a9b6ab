#include "infer/sampler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/rng.h"
#include "types/upload.h"

namespace mgm {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr double kColdest = 1e-4;  // fp32 scores divided by much less are no longer finite

// Tokens outside the smallest set of likeliest ones that reaches `top_p`. Probabilities are fp64,
// and a stable sort fixes the order of equal ones.
at::Tensor outside_mass(const at::Tensor& scores_RV, double top_p) {
  const auto [sorted, order] = scores_RV.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const at::Tensor p = at::softmax(sorted, -1, at::kDouble);
  at::Tensor outside = (p.cumsum(-1) - p).ge(top_p);  // what is before it suffices
  outside.select(-1, 0).fill_(false);
  return at::zeros_like(outside).scatter(-1, order, outside);
}

}  // namespace

void check_sampling(const SamplingConfig& config) {
  for (const auto& [name, value] : {std::pair{"temperature", config.temperature},
                                    {"top-p", config.top_p},
                                    {"repetition penalty", config.repetition_penalty},
                                    {"length penalty", config.length_penalty}}) {
    if (!std::isfinite(value)) throw ConfigError("a ", name, " of ", value, " is no number");
  }
  if (config.temperature != 0 && !(config.temperature >= kColdest)) {
    throw ConfigError("a temperature of ", config.temperature, " is neither 0 (greedy) nor ",
                      kColdest, " or more");
  }
  if (config.num_beams > 1 && config.temperature != 0) {
    throw ConfigError("beam search (", config.num_beams, " beams) looks for the likeliest answer, ",
                      "a temperature of ", config.temperature,
                      " draws one: set either beams or a temperature");
  }
}

at::Tensor process_logits(const at::Tensor& logits_RV, const at::Tensor& seen_RV,
                          const SamplingConfig& config) {
  at::Tensor scores = logits_RV;
  if (config.repetition_penalty != 1) {
    MGM_CHECK(seen_RV.defined() && seen_RV.sizes() == logits_RV.sizes(),
              "a repetition penalty needs the tokens seen, [R, V]");
    const double penalty = config.repetition_penalty;
    const at::Tensor penalised = at::where(scores.lt(0), scores * penalty, scores / penalty);
    scores = at::where(seen_RV, penalised, scores);
  }
  if (config.temperature <= 0) return scores;
  if (config.temperature != 1) scores = scores / config.temperature;
  if (config.top_k > 0 && config.top_k < scores.size(-1)) {
    const at::Tensor best = std::get<0>(scores.topk(config.top_k, -1));
    scores = scores.masked_fill(scores.lt(best.narrow(-1, config.top_k - 1, 1)), kNever);
  }
  if (config.top_p < 1) scores = scores.masked_fill(outside_mass(scores, config.top_p), kNever);
  return scores;
}

at::Tensor choose_tokens(const at::Tensor& logits_RV, const at::Tensor& seen_RV,
                         const SamplingConfig& config, const at::Tensor& uniform_R) {
  const at::Tensor scores = process_logits(logits_RV, seen_RV, config);
  at::Tensor ids;
  if (config.temperature <= 0) {
    ids = scores.argmax(-1);
  } else {
    // The first token at which the running sum of probabilities reaches the draw.
    const at::Tensor mass = at::softmax(scores, -1, at::kDouble).cumsum(-1);
    const at::Tensor draw = uniform_R.unsqueeze(-1) * mass.narrow(-1, mass.size(-1) - 1, 1);
    ids = mass.lt(draw).sum(-1);
  }
  return at::where(at::isfinite(logits_RV).all(-1), ids, -1);
}

RowSampler::RowSampler(const SamplingConfig& config, int64_t rows, int64_t vocabulary,
                       at::Device device)
    : config_(config), key_(rng_key(config.seed, "sample")), device_(device) {
  check_sampling(config);
  if (config.repetition_penalty != 1) {
    seen_RV_ = at::zeros({rows, vocabulary}, at::TensorOptions(device).dtype(at::kBool));
  }
}

void RowSampler::add(const std::vector<int32_t>& prompt_ids, uint64_t stream) {
  if (seen_RV_.defined()) {
    std::vector<int64_t> known;
    for (const int32_t id : prompt_ids) {
      if (id >= 0 && id < seen_RV_.size(1)) known.push_back(id);
    }
    at::Tensor seen = seen_RV_.select(0, static_cast<int64_t>(sequences_.size()));
    seen.zero_();
    seen.index_fill_(0, upload(at::tensor(known, at::kLong), device_), true);
  }
  sequences_.push_back({stream, 0});
}

void RowSampler::remove(int64_t row) {
  const auto last = static_cast<int64_t>(sequences_.size()) - 1;
  MGM_CHECK(row >= 0 && row <= last, "sequence ", row, " of ", sequences_.size());
  sequences_[static_cast<size_t>(row)] = sequences_.back();
  sequences_.pop_back();
  if (seen_RV_.defined() && row != last) seen_RV_.select(0, row).copy_(seen_RV_.select(0, last));
}

at::Tensor RowSampler::uniform(int64_t first, int64_t count) const {
  if (config_.temperature <= 0) return {};
  std::vector<double> draws;
  for (int64_t i = first; i < first + count; ++i) {
    const Sequence& s = sequences_[static_cast<size_t>(i)];
    draws.push_back(uniform01(key_, s.stream, s.drawn));
  }
  return upload(at::tensor(draws, at::kDouble), device_);
}

RowSampler::Choice RowSampler::choose(int64_t first, const at::Tensor& logits_RV) {
  const int64_t count = logits_RV.size(0);
  MGM_CHECK(first + count <= static_cast<int64_t>(sequences_.size()), first, " + ", count, " of ",
            sequences_.size());
  const at::Tensor seen = seen_RV_.defined() ? seen_RV_.narrow(0, first, count) : at::Tensor();
  Choice out;
  out.ids_R = choose_tokens(logits_RV, seen, config_, uniform(first, count));
  if (seen.defined()) seen.scatter_(1, out.ids_R.clamp_min(0).unsqueeze(1), true);
  const at::Tensor host = out.ids_R.cpu();
  for (int64_t i = 0; i < count; ++i) {
    Sequence& sequence = sequences_[static_cast<size_t>(first + i)];
    const int64_t id = host.const_data_ptr<int64_t>()[i];
    if (id < 0) {
      throw NonFiniteError("the logits of generated token ", sequence.drawn, " are not finite");
    }
    out.ids.push_back(static_cast<int32_t>(id));
    ++sequence.drawn;
  }
  return out;
}

}  // namespace mgm
