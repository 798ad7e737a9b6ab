#include "train/rehearsal_run.h"

#include <ATen/core/ScalarType.h>

#include <algorithm>

#include "base/error.h"
#include "data/loader.h"
#include "data/plan.h"
#include "train/build.h"
#include "train/plan/planned_model.h"

namespace mgm {
namespace {

constexpr int64_t kSteps = 6;             // from the plan
constexpr int64_t kSearchedSteps = 2000;  // for one of text alone

bool data_is_there(const DataConfig& data) {
  return !data.sources.empty() &&
         std::all_of(data.sources.begin(), data.sources.end(),
                     [](const DataSource& source) { return fs::exists(source.annotations); });
}

int64_t micro_batches_of(const RunConfig& config, int world) {
  return micro_batches_per_rank(config.train.global_batch, config.train.micro_batch,
                                leaf_micro_batches(config), world);
}

// As data/loader.cpp deals a global batch.
RehearsedStep deal(const std::vector<int64_t>& samples, const std::vector<SampleLength>& lengths,
                   const RunConfig& config, int world) {
  RehearsedStep out;
  const int64_t leaf = leaf_micro_batches(config), micro = config.train.micro_batch;
  out.ranks.resize(static_cast<size_t>(world));
  for (size_t first = 0; first < samples.size(); first += static_cast<size_t>(micro)) {
    RankBatch batch;
    for (size_t i = first; i < first + static_cast<size_t>(micro); ++i) {
      if (samples[i] == kHole) continue;
      batch.targets = true;
      batch.images = batch.images || lengths[static_cast<size_t>(samples[i])].has_image;
    }
    const int64_t run = static_cast<int64_t>(first) / micro / leaf;
    out.ranks[static_cast<size_t>(run % world)].push_back(batch);
  }
  return out;
}

bool text_alone(const RehearsedStep& step) {
  return std::none_of(step.ranks.begin(), step.ranks.end(), [](const auto& batches) {
    return std::any_of(batches.begin(), batches.end(),
                       [](const RankBatch& batch) { return batch.images; });
  });
}

// Ranks that have micro-batches, none of them with pictures.
int text_only_ranks(const RehearsedStep& step) {
  return static_cast<int>(
      std::count_if(step.ranks.begin(), step.ranks.end(), [](const auto& batches) {
        return std::none_of(batches.begin(), batches.end(),
                            [](const RankBatch& batch) { return batch.images; });
      }));
}

std::vector<RehearsedStep> planned_steps(const RunConfig& config, int64_t visual_tokens,
                                         int world) {
  const AnnotationIndex index(config.data.sources);
  const std::vector<SampleLength> lengths = sample_lengths(index, visual_tokens);
  const Plan plan(lengths, config.data, config.train.global_batch, config.train.seed);
  std::vector<RehearsedStep> out;
  bool text = false;
  for (int64_t s = 0; s < std::min(plan.steps_per_epoch(), kSearchedSteps); ++s) {
    if (s >= kSteps && text) break;
    RehearsedStep step = deal(plan.batch(s), lengths, config, world);
    const bool alone = text_alone(step);
    if (s >= kSteps && !alone) continue;
    text = text || alone;
    step.what = cat("step ", s + 1, " of the data plan");
    out.push_back(std::move(step));
  }
  return out;
}

std::string dtype_name(double element) {
  return at::toString(element == 2 ? at::kBFloat16 : at::kFloat);
}

}  // namespace

RehearsalRun rehearsal_run(const ResolvedConfig& resolved, int world, int local_world) {
  const RunConfig& config = resolved.config;
  micro_batches_of(config, world);
  make_topology(config.dist, 0, world, local_world);
  const ModelParts parts = describe_model(resolved);
  const PlannedModel model = plan_model(config, *parts.model, parts.policies);
  RehearsalRun run;
  run.dist = config.dist;
  run.world = world;
  run.local_world = local_world;
  run.leaf = leaf_micro_batches(config);
  run.compute_dtype = dtype_name(model.element);
  run.reduce_dtype = dtype_name(model.reduce_element);
  run.sizes = model.sizes;
  run.order = model.order;
  run.experts = config.model.llm.num_experts;
  run.row_draws =
      config.model.adapter.kind != AdapterKind::kNone && config.model.adapter.dropout > 0;
  return run;
}

std::vector<RehearsedStep> rehearsal_steps(const ResolvedConfig& resolved, int world) {
  const RunConfig& config = resolved.config;
  if (data_is_there(config.data)) {
    const MiniGemini model(config.model, config.image);
    return planned_steps(config, model.geometry().tokens(), world);
  }
  return drawn_steps(world, micro_batches_of(config, world),
                     static_cast<uint64_t>(config.train.seed));
}

std::string rehearsal_report(const ResolvedConfig& resolved, int world, int local_world) {
  const RehearsalRun run = rehearsal_run(resolved, world, local_world);
  const std::vector<RehearsedStep> steps = rehearsal_steps(resolved, world);
  const Rehearsal rehearsal = rehearse(run, steps);
  if (!rehearsal.differences.empty()) {
    throw DistError("the ranks' collectives differ:\n  ", join(rehearsal.differences, "\n  "));
  }
  const Topology topology = make_topology(run.dist, 0, world, local_world);
  std::string out =
      cat("rehearsal of ", world, " rank", world == 1 ? "" : "s", ", ", name_of(topology.mode));
  if (topology.replicas > 1 && topology.shard_size > 1) {
    out += cat(", ", topology.replicas, " groups of ", topology.shard_size);
  }
  out += cat("\n\n", strf("%-36s %12s %16s %12s\n", "step", "micro-batches", "text-only ranks",
                          "collectives"));
  int64_t all = 0;
  for (size_t s = 0; s < steps.size(); ++s) {
    all += rehearsal.per_step[s];
    out += strf("%-36s %13zu %16d %12s\n", steps[s].what.c_str(), steps[s].ranks[0].size(),
                text_only_ranks(steps[s]), with_commas(rehearsal.per_step[s]).c_str());
  }
  out +=
      cat("\n", strf("%-14s %-16s %12s %20s\n", "group", "operation", "collectives", "elements"));
  for (const auto& [key, total] : rehearsal.totals) {
    out += strf("%-14s %-16s %12s %20s\n", key.first.c_str(), key.second.c_str(),
                with_commas(total.collectives).c_str(), with_commas(total.elements).c_str());
  }
  return out + (world == 1 ? "\none rank: nothing is communicated\n"
                           : cat("\nall ", world, " ranks issue the same ", with_commas(all),
                                 " collectives in the same order\n"));
}

}  // namespace mgm
