#include "infer/beam_search.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "infer/sampler.h"
#include "types/upload.h"

namespace mgm {
namespace {

constexpr float kNone = -1e9F;  // the score of what does not exist

struct Hypothesis {
  std::vector<int32_t> ids;
  float score = kNone;
  bool done = false;
};

// One of the best continuations by one token.
struct Candidate {
  int64_t beam = 0;
  int32_t token = 0;
  float score = 0;
  bool ends = false;
};

void sort_by_score(std::vector<Candidate>& items) {
  std::stable_sort(items.begin(), items.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
}

float length_divisor(int64_t length, double penalty) {
  return static_cast<float>(std::pow(double(length), penalty));
}

class Search {
 public:
  Search(const std::vector<int32_t>& prompt_ids, int64_t budget, const BeamConfig& config,
         at::Device device)
      : config_(config),
        budget_(budget),
        device_(device),
        running_(static_cast<size_t>(config.num_beams)),
        finished_(running_.size()) {
    running_[0].score = 0;  // all beams begin alike: only the first one counts
    penalty_.repetition_penalty = config.repetition_penalty;
    if (config.repetition_penalty != 1) mark_prompt(prompt_ids);
  }

  // Takes logits [B, V] of what follows the running beams. Returns whether to go on.
  bool advance(const at::Tensor& logits_BV) {
    ++length_;
    const std::vector<Candidate> candidates = best(logits_BV);
    keep_running(candidates);
    keep_finished(candidates);
    improvable_ = improvable_ && can_improve();
    const bool all_end = std::all_of(candidates.begin(), candidates.end(),
                                     [](const Candidate& c) { return c.ends; });
    return improvable_ && !all_end;
  }

  // Of the running beams: which beam of before each goes on from, and its last token.
  const std::vector<int64_t>& parents() const { return parents_; }
  at::Tensor tokens() const {
    std::vector<int64_t> out;
    for (const Hypothesis& h : running_) out.push_back(h.ids.back());
    return upload(at::tensor(out, at::kLong), device_);
  }

  const Hypothesis& answer() const { return finished_[0]; }
  bool is_stop(int32_t id) const {
    return std::find(config_.stop_ids.begin(), config_.stop_ids.end(), id) !=
           config_.stop_ids.end();
  }

 private:
  void mark_prompt(const std::vector<int32_t>& prompt_ids) {
    std::vector<int64_t> known;
    for (const int32_t id : prompt_ids) {
      if (id >= 0 && id < config_.vocabulary) known.push_back(id);
    }
    seen_BV_ = at::zeros({config_.num_beams, config_.vocabulary},
                         at::TensorOptions(device_).dtype(at::kBool));
    seen_BV_.index_fill_(1, upload(at::tensor(known, at::kLong), device_), true);
  }

  // Enough of the best continuations that B of them go on, whatever ends.
  std::vector<Candidate> best(const at::Tensor& logits_BV) const {
    const int64_t beams = logits_BV.size(0), vocabulary = logits_BV.size(1);
    const auto stops = static_cast<int64_t>(config_.stop_ids.size());
    const int64_t count = std::min(std::max<int64_t>(2, 1 + stops) * beams, beams * vocabulary);
    const at::Tensor log_probs = at::log_softmax(logits_BV.to(at::kFloat), -1);
    std::vector<float> scores;
    for (const Hypothesis& h : running_) scores.push_back(h.score);
    const at::Tensor sums = process_logits(log_probs, seen_BV_, penalty_) +
                            upload(at::tensor(scores, at::kFloat), device_).unsqueeze(1);
    const auto [values, places] = sums.flatten().topk(count);
    const at::Tensor finite = at::isfinite(logits_BV).all().reshape({1});
    // One copy to the host; fp64 holds all of it exactly.
    const at::Tensor host =
        at::cat({values.to(at::kDouble), places.to(at::kDouble), finite.to(at::kDouble)}).cpu();
    const double* numbers = host.const_data_ptr<double>();
    if (numbers[2 * count] == 0) {
      throw NonFiniteError("the logits of generated token ", length_ - 1, " are not finite");
    }
    std::vector<Candidate> out;
    for (int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<int64_t>(numbers[count + i]);
      Candidate c;
      c.beam = place / vocabulary;
      c.token = static_cast<int32_t>(place % vocabulary);
      c.score = static_cast<float>(numbers[i]);
      c.ends = is_stop(c.token) || length_ == budget_;
      out.push_back(c);
    }
    return out;
  }

  void keep_running(std::vector<Candidate> candidates) {
    for (Candidate& c : candidates) c.score += c.ends ? kNone : 0.0F;
    sort_by_score(candidates);
    std::vector<Hypothesis> next;
    parents_.clear();
    for (size_t i = 0; i < running_.size(); ++i) {
      const Candidate& c = candidates[i];
      next.push_back({running_[static_cast<size_t>(c.beam)].ids, c.score});
      next.back().ids.push_back(c.token);
      parents_.push_back(c.beam);
    }
    before_ = std::move(running_);
    running_ = std::move(next);
    if (seen_BV_.defined()) {
      const at::Tensor from = upload(at::tensor(parents_, at::kLong), device_);
      seen_BV_ = seen_BV_.index_select(0, from).scatter_(1, tokens().unsqueeze(1), true);
    }
  }

  // Only the first B candidates may become answers; the others are there to go on.
  void keep_finished(const std::vector<Candidate>& candidates) {
    const float divisor = length_divisor(length_, config_.length_penalty);
    for (size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& c = candidates[i];
      Hypothesis h;
      h.done = c.ends && i < running_.size();
      h.score = c.score / divisor;
      h.ids = before_[static_cast<size_t>(c.beam)].ids;
      h.ids.push_back(c.token);
      finished_.push_back(std::move(h));
    }
    // Not by kNone, as transformers does: a length penalty below 0 can make scores as low.
    std::stable_sort(finished_.begin(), finished_.end(),
                     [](const Hypothesis& a, const Hypothesis& b) {
                       return a.done != b.done ? a.done : a.score > b.score;
                     });
    finished_.resize(running_.size());
  }

  // Whether the best running beam, were it to end here, would beat a finished one.
  bool can_improve() const {
    const float now = running_[0].score / length_divisor(length_, config_.length_penalty);
    return std::any_of(finished_.begin(), finished_.end(), [&](const Hypothesis& h) {
      return !h.done || now > finished_.back().score;
    });
  }

  const BeamConfig& config_;
  int64_t budget_, length_ = 0;  // length_: tokens of every running beam
  at::Device device_;
  SamplingConfig penalty_;                               // the repetition penalty alone
  at::Tensor seen_BV_;                                   // bool; defined with a penalty
  std::vector<Hypothesis> running_, finished_, before_;  // before_: running before this token
  std::vector<int64_t> parents_;
  bool improvable_ = true;
};

}  // namespace

BeamResult beam_search(RowDecoder& rows, const at::Tensor& logits_1V,
                       const std::vector<int32_t>& prompt_ids, int64_t budget,
                       const BeamConfig& config, const ForwardContext& ctx) {
  MGM_CHECK(rows.size() == 1 && rows.free_rows() + 1 >= config.num_beams && budget > 0,
            config.num_beams, " beams of ", rows.size(), " + ", rows.free_rows(), " rows");
  const auto known = [&](const at::Tensor& logits) {
    return logits.narrow(1, 0, config.vocabulary);
  };
  Search search(prompt_ids, budget, config, logits_1V.device());
  BeamResult out;
  const int64_t prompt_length = rows.length(0);
  rows.fork(config.num_beams);
  at::Tensor logits_BV = known(logits_1V).expand({config.num_beams, config.vocabulary});
  while (search.advance(logits_BV)) {
    rows.reorder(search.parents(), prompt_length);
    rows.put(0, search.tokens());
    logits_BV = known(rows.step(ctx));
    ++out.steps;
  }
  while (rows.size() > 0) rows.remove(rows.size() - 1);
  out.ids = search.answer().ids;
  MGM_CHECK(search.answer().done && !out.ids.empty(), "a beam search without an answer");
  out.score = search.answer().score;
  out.stopped = search.is_stop(out.ids.back());
  return out;
}

}  // namespace mgm
