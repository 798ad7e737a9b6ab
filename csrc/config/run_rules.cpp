// Rules of a RunConfig that span fields: resolve_and_check.
#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "config/image_geometry.h"
#include "config/llm_arch.h"
#include "config/run_config.h"

namespace mgm {
namespace {

// Sizes of the published OpenCLIP ConvNeXts.
void apply_convnext_preset(ModelConfig& model) {
  ConvnextConfig& c = model.convnext;
  switch (model.hr_encoder) {
    case HrEncoder::kConvnextBase:
      c.depths = {3, 3, 27, 3}, c.dims = {128, 256, 512, 1024}, c.norm_eps = 1e-6;
      break;
    case HrEncoder::kConvnextLarge:
      c.depths = {3, 3, 27, 3}, c.dims = {192, 384, 768, 1536}, c.norm_eps = 1e-6;
      break;
    case HrEncoder::kConvnextXxlarge:
      c.depths = {3, 4, 30, 3}, c.dims = {384, 768, 1536, 3072}, c.norm_eps = 1e-5;
      break;
    case HrEncoder::kConvnext:
    case HrEncoder::kNone:
      break;
  }
}

class Checks {
 public:
  // `keys`: those that the rule reads, first the one it is reported under.
  template <class... Args>
  void expect(bool ok, const std::vector<std::string>& keys, const Args&... message) {
    if (!ok) problems.push_back({keys.front(), cat(message...), keys});
  }
  std::vector<ConfigProblem> problems;
};

void check_llm_sizes(const LlmConfig& llm, Checks& checks) {
  checks.expect(
      llm.head_dim > 0 || llm.hidden_size % llm.num_heads == 0,
      {"model.llm.num_heads", "model.llm.hidden_size", "model.llm.head_dim", "model.llm.arch"},
      llm.num_heads, " heads do not divide hidden_size ", llm.hidden_size,
      "; set head_dim if that is meant");
  checks.expect(llm.num_heads % llm.num_kv_heads == 0,
                {"model.llm.num_kv_heads", "model.llm.num_heads", "model.llm.arch"},
                llm.num_kv_heads, " key heads do not divide ", llm.num_heads, " query heads");
  check_llm(llm, checks.problems);
  const int64_t head_dim = head_width(llm);
  checks.expect(
      head_dim % 2 == 0,
      {"model.llm.head_dim", "model.llm.num_heads", "model.llm.hidden_size", "model.llm.arch"},
      "rotary embedding needs an even head width, got ", head_dim);
}

void check_model(const ModelConfig& model, Checks& checks) {
  const LlmConfig& llm = model.llm;
  const bool known = llm.arch != LlmArch::kAuto;  // else its sizes are not known yet
  if (known) check_llm_sizes(llm, checks);
  const VisionTowerConfig& tower = model.vision_tower;
  checks.expect(tower.hidden_size % tower.num_heads == 0,
                {"model.vision_tower.num_heads", "model.vision_tower.hidden_size"}, tower.num_heads,
                " heads do not divide hidden_size ", tower.hidden_size);
  checks.expect(
      tower.select_layer >= -(tower.num_layers + 1) && tower.select_layer <= tower.num_layers,
      {"model.vision_tower.select_layer", "model.vision_tower.num_layers"}, tower.select_layer,
      " is outside the ", tower.num_layers + 1, " hidden states (", -(tower.num_layers + 1), " .. ",
      tower.num_layers, ")");
  if (model.hr_encoder != HrEncoder::kNone) {
    checks.expect(model.convnext.depths.size() == 4, {"model.convnext.depths", "model.hr_encoder"},
                  "needs 4 stages, got ", model.convnext.depths.size());
    checks.expect(model.convnext.dims.size() == 4, {"model.convnext.dims", "model.hr_encoder"},
                  "needs 4 stages, got ", model.convnext.dims.size());
  }
  checks.expect(model.adapter.kind == AdapterKind::kNone || model.adapter.alpha > 0,
                {"model.adapter.alpha", "model.adapter.kind"},
                "must be above 0, or the adapters do nothing");
  checks.expect(model.adapter.kind != AdapterKind::kNone || model.adapter.path.empty(),
                {"model.adapter.path", "model.adapter.kind"},
                "is set, but model.adapter.kind is none");
  const std::string& type = model.projector.type;
  bool mlp = false;
  for (int depth = 1; depth <= 16; ++depth) mlp = mlp || type == cat("mlp", depth, "x_gelu");
  checks.expect(type == "linear" || type == "identity" || mlp, {"model.projector.type"}, "'", type,
                "' is not linear, identity or mlpNx_gelu with N from 1 to 16");
  checks.expect(!known || type != "identity" || tower.hidden_size == llm.hidden_size,
                {"model.projector.type", "model.vision_tower.hidden_size", "model.llm.hidden_size",
                 "model.llm.arch"},
                "identity needs vision_tower.hidden_size ", tower.hidden_size,
                " = llm.hidden_size ", llm.hidden_size);
}

void check_experts(const RunConfig& config, Checks& checks) {
  const LlmConfig& llm = config.model.llm;
  const int64_t ranks = config.dist.expert_parallel, experts = llm.num_experts;
  if (ranks == 1 || llm.arch == LlmArch::kAuto) return;
  const std::vector<std::string> keys = {"dist.expert_parallel", "model.llm.num_experts",
                                         "model.llm.arch"};
  if (experts == 0) {
    checks.expect(false, keys, "deals experts to ", ranks, " ranks, but model.llm has none; use 1");
    return;
  }
  checks.expect(llm.quantize == Quantize::kNone, {keys.front(), "model.llm.quantize"},
                "deals experts to ranks, but those that model.llm.quantize packs are whole on "
                "every rank; use 1");
  if (experts % ranks == 0) return;
  int64_t below = std::min(ranks, experts), above = below;
  while (experts % below != 0) --below;
  while (experts % above != 0) ++above;
  checks.expect(false, keys, ranks, " ranks do not divide ", experts, " experts; nearest: ", below,
                above != below ? cat(" or ", above) : "");
}

void check_ranks(const RunConfig& config, Checks& checks) {
  check_experts(config, checks);
  const DistConfig& dist = config.dist;
  const bool cut = dist.mode == DistMode::kZero3 || dist.mode == DistMode::kHybrid;
  checks.expect(
      !cut || config.model.llm.quantize == Quantize::kNone, {"dist.mode", "model.llm.quantize"},
      "cuts the weights over the ranks, but those that model.llm.quantize packs are whole "
      "on every rank; use replicate, zero1 or zero2");
  if (dist.reduction != Reduction::kStrict) return;
  const int64_t shards = dist.virtual_shards, batch = config.train.global_batch;
  checks.expect(batch % shards == 0,
                {"dist.virtual_shards", "train.global_batch", "dist.reduction"}, shards,
                " leaves do not divide train.global_batch ", batch);
  checks.expect(
      batch % shards != 0 || batch / shards % config.train.micro_batch == 0,
      {"dist.virtual_shards", "train.global_batch", "train.micro_batch", "dist.reduction"},
      "a leaf of ", batch / shards, " samples does not divide into micro-batches of ",
      config.train.micro_batch);
}

void check_training(const RunConfig& config, Checks& checks) {
  const TrainConfig& train = config.train;
  if (train.global_batch % train.micro_batch != 0) {
    int64_t below = std::min(train.micro_batch, train.global_batch);
    while (train.global_batch % below != 0) --below;
    int64_t above = std::min(train.micro_batch, train.global_batch);
    while (train.global_batch % above != 0) ++above;
    const int64_t multiple = train.global_batch / train.micro_batch * train.micro_batch;
    checks.expect(false, {"train.micro_batch", "train.global_batch"}, train.micro_batch,
                  " does not divide global_batch ", train.global_batch, "; nearest: micro_batch ",
                  below, above != below ? cat(" or ", above) : "", ", or global_batch ",
                  multiple > 0 ? cat(multiple, " or ") : "", multiple + train.micro_batch);
  }
  checks.expect(config.optimizer.betas.size() == 2, {"optimizer.betas"}, "needs 2 numbers, got ",
                config.optimizer.betas.size());
  for (size_t i = 0; i < train.rules.size(); ++i) {
    const TrainRule& rule = train.rules[i];
    const std::string key = cat("train.rules[", i, "]");
    if (rule.match.empty() == (rule.preset == RulePreset::kNone)) {
      checks.expect(false, {key}, "needs either match or preset");
    }
  }
  checks.expect(config.image.mean.size() == 3, {"image.mean"}, "needs 3 numbers, got ",
                config.image.mean.size());
  checks.expect(config.image.std.size() == 3, {"image.std"}, "needs 3 numbers, got ",
                config.image.std.size());
  for (const double std : config.image.std) {
    checks.expect(std > 0, {"image.std"}, "must be above 0, got ", std);
  }
}

}  // namespace

std::vector<ConfigProblem> resolve_and_check(RunConfig& config) {
  apply_convnext_preset(config.model);
  Checks checks;
  check_model(config.model, checks);
  check_training(config, checks);
  check_ranks(config, checks);
  const auto geometry =
      make_geometry(config.image, config.model.vision_tower, config.model.hr_encoder);
  if (const auto* problem = std::get_if<ConfigProblem>(&geometry)) {
    checks.problems.push_back(*problem);
  } else {
    const int64_t tokens = std::get<ImageGeometry>(geometry).tokens();
    checks.expect(tokens < config.text.max_length,
                  {"text.max_length", "image", "model.vision_tower", "model.hr_encoder"},
                  config.text.max_length, " leaves no room for text beside ", tokens,
                  " visual tokens");
    const LlmConfig& llm = config.model.llm;
    checks.expect(llm.arch == LlmArch::kAuto || config.text.max_length <= llm.max_positions,
                  {"text.max_length", "model.llm.max_positions", "model.llm.arch"},
                  config.text.max_length, " is above model.llm.max_positions ", llm.max_positions);
  }
  return std::move(checks.problems);
}

}  // namespace mgm
