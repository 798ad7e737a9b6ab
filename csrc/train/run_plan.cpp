#include "train/run_plan.h"

#include <algorithm>

#include "base/strings.h"
#include "checkpoint/adapter_file.h"
#include "dist/topology.h"
#include "optim/lr_schedule.h"
#include "train/build.h"
#include "train/plan/report.h"

namespace mgm {
namespace {

const char* const kEmbedding = "llm embedding";
const char* const kBlocks = "llm blocks";
const char* const kAdapters = "llm adapters";
const char* const kHead = "llm head";
const char* const kClip = "LR encoder (clip)";
const char* const kConvnext = "HR encoder (convnext)";
const char* const kMining = "patch info mining";
const char* const kProjector = "projector";

const char* part_of(const std::string& name) {
  const auto starts = [&](const char* prefix) { return name.rfind(prefix, 0) == 0; };
  if (starts("model.embed_tokens.")) return kEmbedding;
  if (is_adapter_weight(name)) return kAdapters;
  if (starts("model.layers.")) return kBlocks;
  if (starts("model.norm.") || starts("lm_head.")) return kHead;
  if (starts("model.vision_tower_aux.")) return kConvnext;
  if (starts("model.vision_tower.")) return kClip;
  if (starts("model.vlm_uni_")) return kMining;
  return kProjector;
}

const char* part_of(UseKind kind) {
  switch (kind) {
    case UseKind::kClipEmbedding:
    case UseKind::kClipBlock:
      return kClip;
    case UseKind::kConvnextStem:
    case UseKind::kConvnextStage:
      return kConvnext;
    case UseKind::kMining:
      return kMining;
    case UseKind::kProjector:
      return kProjector;
    case UseKind::kEmbedding:
      return kEmbedding;
    case UseKind::kDecoderBlock:
    case UseKind::kExperts:
      return kBlocks;
    case UseKind::kHead:
      return kHead;
  }
  return kProjector;
}

std::string describe_steps(const RunConfig& config) {
  const int64_t samples = config.data.expected_samples, batch = config.train.global_batch;
  const int64_t steps = config.train.max_steps > 0
                            ? config.train.max_steps
                            : (samples + batch - 1) / batch * config.train.epochs;
  if (steps == 0) return "steps: unknown; set data.expected_samples or train.max_steps\n";
  return cat("steps: ", with_commas(steps), " (",
             LrSchedule(config.schedule, config.optimizer.lr, steps).warmup_steps(),
             " warm-up) over ", with_commas(samples), " samples x ", config.train.epochs, " epoch",
             config.train.epochs == 1 ? "" : "s", "\n");
}

std::string describe_run(const PlannedModel& model, std::vector<PartPlan> parts) {
  const RunConfig& config = model.config;
  const ImageGeometry& g = model.geometry;
  std::string out = format_trained_table(parts);
  out += cat("\nimage: HR ",
             g.window > 0 ? cat(g.hr_size, " px, window ", g.window, "x", g.window) : "none", "; ",
             g.lr_views(), " LR view", g.lr_views() == 1 ? "" : "s", " of ", g.lr_size, " px; ",
             g.tokens(), " visual tokens\n");
  out += cat("batch: ", config.train.global_batch,
             " samples a step = ", config.train.global_batch / config.train.micro_batch, " x ",
             config.train.micro_batch, " over all ranks\n", describe_steps(config));

  const BatchShape sample = even_shape(model, 1, assumed_tokens(model), 1);
  const std::vector<UseFlops> flops = use_flops(model, sample);
  UseFlops sum;
  const auto add = [](UseFlops& to, const UseFlops& more) {
    to.forward += more.forward;
    to.backward += more.backward;
    to.recompute += more.recompute;
  };
  for (size_t u = 0; u < flops.size(); ++u) {
    for (PartPlan& part : parts) {
      if (part.name == part_of(model.uses[u].kind)) add(part.flops, flops[u]);
    }
    add(sum, flops[u]);
  }
  out += cat("\nFLOPs for a sample of ", g.tokens(), " visual and ", sample.targets,
             " text tokens (assumed)\n");
  out += strf("%-24s %12s %12s %12s\n", "part", "forward", "backward", "recompute");
  for (const PartPlan& part : parts) {
    if (part.flops.forward == 0) continue;
    out +=
        strf("%-24s %12s %12s %12s\n", part.name.c_str(), human_count(part.flops.forward).c_str(),
             human_count(part.flops.backward).c_str(), human_count(part.flops.recompute).c_str());
  }
  return out +
         cat("one step: ", human_count(sum.all() * double(config.train.global_batch)), "FLOP\n\n");
}

}  // namespace

std::vector<PartPlan> count_parts(const std::vector<Param*>& params,
                                  const std::vector<ParamPolicy>& policies) {
  std::vector<PartPlan> parts;
  for (const char* name :
       {kEmbedding, kBlocks, kAdapters, kHead, kClip, kConvnext, kMining, kProjector}) {
    parts.push_back({name, 0, 0, {}});
  }
  for (size_t i = 0; i < params.size(); ++i) {
    for (PartPlan& part : parts) {
      if (part.name != part_of(params[i]->spec.name)) continue;
      part.params += params[i]->spec.numel();
      if (policies[i].train) part.trained += params[i]->spec.numel();
    }
  }
  return parts;
}

std::string format_trained_table(const std::vector<PartPlan>& parts) {
  std::string out = strf("%-24s %18s %18s\n", "part", "parameters", "trained");
  int64_t params = 0, trained = 0;
  for (const PartPlan& part : parts) {
    if (part.params == 0) continue;
    params += part.params;
    trained += part.trained;
    out += strf("%-24s %18s %18s\n", part.name.c_str(), with_commas(part.params).c_str(),
                part.trained == 0 ? "frozen" : with_commas(part.trained).c_str());
  }
  out +=
      strf("%-24s %18s %18s\n", "total", with_commas(params).c_str(), with_commas(trained).c_str());
  return out;
}

std::string plan_report(const ResolvedConfig& resolved, const PlanRequest& request,
                        const std::vector<int>& worlds, PlanFormat format) {
  const ModelParts parts = describe_model(resolved);
  const PlannedModel model = plan_model(resolved.config, *parts.model, parts.policies);
  std::vector<ClusterPlan> plans;
  for (const int world : worlds) {
    PlanRequest asked = request;
    asked.cluster.world = world;
    make_topology(resolved.config.dist, 0, world, asked.cluster.gpus_per_node);  // or says why not
    plans.push_back(plan_cluster(model, asked));
  }
  if (format == PlanFormat::kMarkdown) return plan_markdown(plans);
  if (format == PlanFormat::kJson) {
    OrderedJson out = OrderedJson::array();
    for (const ClusterPlan& plan : plans) out.push_back(plan_json(model, plan));
    return out.dump(2) + "\n";
  }
  std::string out = describe_run(model, count_parts(parts.params, parts.policies));
  for (size_t i = 0; i < plans.size(); ++i) out += (i ? "\n" : "") + plan_text(model, plans[i]);
  return out;
}

BatchShape shape_of(const Batch& batch) {
  return {batch.seq.segments(), batch.seq.total(), batch.num_images(), batch.num_targets(),
          batch.seq.max_length};
}

BatchShape larger(const BatchShape& a, const BatchShape& b) {
  return {std::max(a.segments, b.segments), std::max(a.rows, b.rows), std::max(a.images, b.images),
          std::max(a.targets, b.targets), std::max(a.longest, b.longest)};
}

double planned_peak(const RunConfig& config, const MiniGemini& model,
                    const std::vector<ParamPolicy>& policies, const Topology& topology,
                    const BatchShape& largest, int64_t micro_batches) {
  return plan_memory(plan_model(config, model, policies), topology,
                     config.dist.offload == Offload::kOptimizer, largest, micro_batches)
      .peak();
}

std::string compare_with_plan(double measured, double planned) {
  return cat("peak memory ", human_bytes(measured), ", planned ", human_bytes(planned),
             strf(" (%+.1f %%)", 100 * (planned / measured - 1)));
}

}  // namespace mgm
