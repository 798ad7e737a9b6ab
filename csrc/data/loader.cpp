#include "data/loader.h"

#include "base/error.h"
#include "base/log.h"
#include "data/annotations.h"
#include "data/pack.h"

namespace mgm {
namespace {

constexpr size_t kWarnings = 20;  // bad samples named in the log; the rest is counted

int64_t accumulation_of(const Plan& plan, const LoaderRange& range) {
  MGM_CHECK(range.micro_batch > 0 && range.world > 0 && range.rank >= 0 && range.rank < range.world,
            "micro_batch ", range.micro_batch, ", rank ", range.rank, " of ", range.world);
  MGM_CHECK(range.leaf > 0, "leaf of ", range.leaf);
  return micro_batches_per_rank(plan.global_batch(), range.micro_batch, range.leaf, range.world);
}

}  // namespace

int64_t micro_batches_per_rank(int64_t global_batch, int64_t micro_batch, int64_t leaf,
                               int64_t world) {
  const int64_t pass = micro_batch * leaf * world;
  if (global_batch % pass != 0) {
    const int64_t below = global_batch / pass * pass;
    throw ConfigError("train.global_batch ", global_batch, " does not divide into ", world,
                      " ranks with train.micro_batch ", micro_batch,
                      leaf > 1 ? cat(" and strict leaves of ", leaf, " of them") : "",
                      "; nearest global batches: ", below > 0 ? cat(below, " or ") : "",
                      below + pass);
  }
  return global_batch / pass * leaf;
}

Loader::Loader(const Plan& plan, const SampleBuilder& builder, const DataConfig& data,
               const LoaderRange& range)
    : plan_(plan),
      builder_(builder),
      on_error_(data.on_error),
      range_(range),
      accumulation_(accumulation_of(plan, range)),
      next_step_(range.first_step) {
  const AnnotationIndex& index = builder.annotations();
  MGM_CHECK(plan.num_samples() == index.size(), "a plan of ", plan.num_samples(), " samples over ",
            index.size(), " records");
  if (data.expected_samples > 0 && data.expected_samples != index.size()) {
    log::warn(cat("data.expected_samples is ", with_commas(data.expected_samples),
                  ", the data have ", with_commas(index.size()), " records"));
  }
  if (on_error_ == OnError::kStop && index.first_malformed() >= 0) {
    index.record(index.first_malformed());  // throws, naming it
  }
  workers_.emplace(static_cast<int>(data.workers), data.prefetch, range.first_step * accumulation_,
                   range.end_step * accumulation_, [this](int64_t number) { return make(number); });
}

// Micro-batch `number` of this rank, counted over all steps.
Loader::MicroBatch Loader::make(int64_t number) const {
  const int64_t step = number / accumulation_;
  const int64_t round = number % accumulation_ / range_.leaf, inside = number % range_.leaf;
  const int64_t slice = (round * range_.world + range_.rank) * range_.leaf + inside;
  const std::vector<int64_t> batch = plan_.batch(step);
  MicroBatch out;
  std::vector<Sample> samples;
  for (int64_t i = slice * range_.micro_batch; i < (slice + 1) * range_.micro_batch; ++i) {
    const int64_t index = batch[static_cast<size_t>(i)];
    if (index == kHole) continue;
    SampleResult result = builder_.build(index);
    if (auto* problem = std::get_if<Problem>(&result)) {
      if (on_error_ == OnError::kStop) {
        throw DataError(describe(*problem), " (`mgm data check` lists every such sample; ",
                        "data.on_error: skip leaves them out and counts them)");
      }
      out.problems.push_back(std::move(*problem));
      continue;
    }
    samples.push_back(std::move(std::get<Sample>(result)));
    out.collapsed_markers += samples.back().collapsed_markers;
    out.rewritten_paths += samples.back().rewritten_paths;
  }
  const int64_t holes = range_.micro_batch - static_cast<int64_t>(samples.size());
  out.batch = pack(samples, holes, plan_.epoch_of(step));
  return out;
}

std::optional<StepBatches> Loader::next() {
  if (next_step_ >= range_.end_step) return std::nullopt;
  StepBatches step;
  step.step = next_step_++;
  for (int64_t a = 0; a < accumulation_; ++a) {
    std::optional<MicroBatch> micro = workers_->next();
    MGM_CHECK(micro.has_value(), "step ", step.step, " has no micro-batch ", a);
    for (Problem& problem : micro->problems) {
      report(problem);
      step.skipped.push_back(std::move(problem));
    }
    step.holes += micro->batch.holes;
    step.collapsed_markers += micro->collapsed_markers;
    step.rewritten_paths += micro->rewritten_paths;
    step.micro.push_back(std::move(micro->batch));
  }
  if (next_step_ == range_.end_step && total_skipped_ > 0) {
    log::warn(cat("data: bad samples skipped: ", total_skipped_, " in all, ", reported_.size(),
                  " different; `mgm data check` lists them"));
  }
  return step;
}

void Loader::report(const Problem& problem) {
  ++total_skipped_;
  if (!reported_.insert(problem.index).second) return;
  if (reported_.size() <= kWarnings) {
    log::warn(cat("data: skipped ", describe(problem)));
  } else if (reported_.size() == kWarnings + 1) {
    log::warn("data: more bad samples are skipped; from here on they are only counted");
  }
}

}  // namespace mgm
