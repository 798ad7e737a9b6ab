#include "train/plan/modes.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "train/step_agreement.h"

namespace mgm {
namespace {

constexpr int kMostRanks = 4096;  // that more ranks are looked for
// Steps that differ by less take the same time.
constexpr double kSameTime = 0.002;

// The modes that are worth telling apart on these ranks; hybrid where it is more than one group.
std::vector<ModePlan> possible_modes(const RunConfig& run, const Cluster& cluster) {
  const DistConfig& config = run.dist;
  std::vector<ModePlan> out;
  if (config.reduction == Reduction::kStrict && config.virtual_shards % cluster.world != 0) {
    return out;
  }
  for (const DistMode mode : {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                              DistMode::kZero3, DistMode::kHybrid}) {
    DistConfig dist = config;
    dist.mode = mode;
    const int64_t shard = dist.shard_size > 0 ? dist.shard_size : cluster.gpus_per_node;
    const bool hybrid = mode == DistMode::kHybrid;
    const bool cut = hybrid || mode == DistMode::kZero3;
    if (cut && run.model.llm.quantize != Quantize::kNone) continue;  // as config/run_rules.cpp says
    if (hybrid && (shard >= cluster.world || cluster.world % shard != 0)) continue;
    if (hybrid && shard % dist.expert_parallel != 0) continue;
    ModePlan plan;
    plan.mode = mode;
    plan.topology = make_topology(dist, 0, cluster.world, cluster.gpus_per_node);
    out.push_back(std::move(plan));
  }
  return out;
}

int64_t accumulation_of(const RunConfig& config, int world) {
  const bool strict = config.dist.reduction == Reduction::kStrict;
  const int64_t leaf = strict ? leaf_micro_batches(config) : 1;
  const int64_t per_pass = config.train.micro_batch * leaf * world;
  return leaf * std::max<int64_t>(1, (config.train.global_batch + per_pass - 1) / per_pass);
}

bool same(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * b; }

// Which of two modes that fit to take: the faster one; of equals the one that sends less, then the
// smaller one.
bool cheaper(const ModePlan& mode, const ModePlan& other) {
  if (!same(mode.comm.step_s, other.comm.step_s, kSameTime)) {
    return mode.comm.step_s < other.comm.step_s;
  }
  if (!same(mode.comm.bytes(), other.comm.bytes(), kSameTime)) {
    return mode.comm.bytes() < other.comm.bytes();
  }
  return mode.memory.total() < other.memory.total() * (1 - kSameTime);
}

// Begins with what the config says, so that it stays among equals.
int cheapest(const std::vector<ModePlan>& modes, int configured) {
  const auto at = [&](int i) -> const ModePlan& { return modes[static_cast<size_t>(i)]; };
  int best = configured >= 0 && at(configured).fits ? configured : -1;
  for (int i = 0; i < static_cast<int>(modes.size()); ++i) {
    if (at(i).fits && (best < 0 || cheaper(at(i), at(best)))) best = i;
  }
  return best;
}

ClusterPlan plan_modes(const PlannedModel& model, const PlanRequest& request) {
  ClusterPlan out;
  out.request = request;
  const RunConfig& config = model.config;
  out.micro_batch = config.train.micro_batch;
  out.accumulation = accumulation_of(config, request.cluster.world);
  out.global_batch = out.micro_batch * out.accumulation * request.cluster.world;
  const auto shape = [&](int64_t tokens) {
    return even_shape(model, out.micro_batch, request.tokens > 0 ? request.tokens : tokens,
                      request.images);
  };
  out.memory_shape = shape(config.text.max_length);
  out.time_shape = shape(assumed_tokens(model));
  for (const bool offload : {false, true}) {
    for (ModePlan& mode : possible_modes(config, request.cluster)) {
      mode.offload = offload;
      mode.memory = plan_memory(model, mode.topology, offload, out.memory_shape, out.accumulation);
      mode.comm = plan_comm(model, mode.topology, offload, request.cluster, out.time_shape,
                            out.accumulation);
      mode.fits = mode.memory.total() <= request.cluster.gpu_memory;
      if (mode.mode == config.dist.mode &&
          offload == (config.dist.offload == Offload::kOptimizer)) {
        out.configured = static_cast<int>(out.modes.size());
      }
      out.modes.push_back(std::move(mode));
    }
  }
  out.best = cheapest(out.modes, out.configured);
  return out;
}

// Changes of one thing that make some mode fit, each in words.
std::vector<std::string> what_helps(const PlannedModel& model, const PlanRequest& request) {
  std::vector<std::string> out;
  const auto try_one = [&](const PlannedModel& changed, const PlanRequest& asked,
                           const std::string& what) {
    const ClusterPlan plan = plan_modes(changed, asked);
    if (plan.best < 0) return false;
    const ModePlan& mode = plan.modes[static_cast<size_t>(plan.best)];
    out.push_back(cat(what, ": ", mode.name(), " takes ", human_bytes(mode.memory.total())));
    return true;
  };
  const bool recomputes =
      std::all_of(model.uses.begin(), model.uses.end(), [](const PlannedUse& use) {
        return (use.kind != UseKind::kDecoderBlock && use.kind != UseKind::kExperts) ||
               use.recompute == RecomputePolicy::kFull;
      });
  if (!recomputes) {
    try_one(model.with_decoder_recompute(RecomputePolicy::kFull), request,
            "train.recompute: full for model.layers.*");
  }
  for (int64_t micro = model.config.train.micro_batch / 2; micro >= 1; micro /= 2) {
    PlannedModel changed = model;
    changed.config.train.micro_batch = micro;
    if (try_one(changed, request, cat("train.micro_batch ", micro))) break;
  }
  for (int world = 2 * request.cluster.world; world <= kMostRanks; world *= 2) {
    PlanRequest asked = request;
    asked.cluster.world = world;
    if (try_one(model, asked, cat(world, " ranks"))) break;
  }
  return out;
}

}  // namespace

std::string ModePlan::name() const {
  std::string out = name_of(mode);
  if (mode == DistMode::kHybrid) out += cat(" ", topology.shard_size);
  return out + (offload ? ", offload" : "");
}

double ClusterPlan::samples_per_s(const ModePlan& mode) const {
  return double(global_batch) / mode.comm.step_s;
}

ClusterPlan plan_cluster(const PlannedModel& model, const PlanRequest& request) {
  ClusterPlan out = plan_modes(model, request);
  if (out.best < 0) out.help = what_helps(model, request);
  return out;
}

}  // namespace mgm
