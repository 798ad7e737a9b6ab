// FLOPs count a multiply-add as two. S side of the HR canvas, C widths, T tokens.
#include "train/run_plan.h"

#include <cmath>

#include "base/strings.h"
#include "optim/lr_schedule.h"

namespace mgm {
namespace {

const char* const kEmbedding = "llm embedding";
const char* const kBlocks = "llm blocks";
const char* const kHead = "llm head";
const char* const kClip = "LR encoder (clip)";
const char* const kConvnext = "HR encoder (convnext)";
const char* const kMining = "patch info mining";
const char* const kProjector = "projector";

const char* part_of(const std::string& name) {
  const auto starts = [&](const char* prefix) { return name.rfind(prefix, 0) == 0; };
  if (starts("model.embed_tokens.")) return kEmbedding;
  if (starts("model.layers.")) return kBlocks;
  if (starts("model.norm.") || starts("lm_head.")) return kHead;
  if (starts("model.vision_tower_aux.")) return kConvnext;
  if (starts("model.vision_tower.")) return kClip;
  if (starts("model.vlm_uni_")) return kMining;
  return kProjector;
}

double clip_forward(const VisionTowerConfig& v, const ImageGeometry& g, int64_t blocks) {
  const double tokens = double(g.lr_patches * g.lr_patches + 1), width = double(v.hidden_size);
  const double block = 2 * tokens * (4 * width * width + 2 * width * double(v.intermediate_size)) +
                       4 * tokens * tokens * width;
  const double patches = 2 * tokens * width * 3 * double(v.patch_size * v.patch_size);
  return double(g.lr_views()) * (patches + double(blocks) * block);
}

double convnext_forward(const ConvnextConfig& c, double hr_size) {
  double flops = 0, side = std::floor(hr_size / 4);
  for (size_t s = 0; s < c.dims.size(); ++s) {
    const double width = double(c.dims[s]), area = side * side;
    flops += s == 0 ? 2 * area * 48 * width : 2 * area * 4 * double(c.dims[s - 1]) * width;
    flops += double(c.depths[s]) * area * (2 * 49 * width + 16 * width * width);
    side = std::floor(side / 2);
  }
  return flops;
}

double mining_forward(const ModelConfig& m, const ImageGeometry& g) {
  double channels = 0;
  for (const int64_t dim : m.convnext.dims) channels += double(dim);
  const double queries = double(g.tokens()), width = double(m.vision_tower.hidden_size);
  const double window = double(g.window * g.window);
  const double query = 2 * queries * width * width;
  if (m.mining.kernel == MiningKernel::kAbsorbed) {
    return query + 4 * queries * channels * width + 4 * queries * window * channels;
  }
  return query + 4 * queries * window * channels * width + 4 * queries * window * width;
}

double projector_forward(const ProjectorConfig& p, double tokens, double in, double out) {
  if (p.type == "identity") return 0;
  const int depth = p.type == "linear" ? 1 : std::stoi(p.type.substr(3));
  return 2 * tokens * (in * out + (depth - 1) * out * out);
}

// Matrix parameters a token passes in one decoder block.
double block_matrix_params(const LlmConfig& c) {
  const double width = double(c.hidden_size), head = double(head_width(c));
  const double attention =
      2 * width * head * double(c.num_heads) + 2 * width * head * double(c.num_kv_heads);
  const double mlp = 3 * width * double(c.intermediate_size);
  if (c.num_experts == 0) return attention + mlp;
  return attention + mlp * double(c.experts_per_token) + width * double(c.num_experts);
}

double blocks_forward(const LlmConfig& c, double tokens) {
  // Causal attention touches half of the tokens x tokens scores, twice (scores and values).
  const double attention = 2 * tokens * tokens * double(head_width(c) * c.num_heads);
  return double(c.num_layers) * (2 * tokens * block_matrix_params(c) + attention);
}

RecomputePolicy policy_of(const std::vector<RecomputeRule>& rules, const std::string& group) {
  RecomputePolicy policy = RecomputePolicy::kNone;
  for (const RecomputeRule& rule : rules) {
    if (glob_match(rule.match, group)) policy = rule.policy;
  }
  return policy;
}

// Bytes of one decoder block's saved tensors per token: norms' inputs and outputs, q k v before and
// after rotation, attention output, gate, up and their product.
double block_activation_bytes(const LlmConfig& c, double element) {
  const double width = double(c.hidden_size), kv = double(c.num_kv_heads * head_width(c));
  return element * (6 * width + 4 * kv + 4 * double(c.intermediate_size));
}

bool any_trained(const std::vector<PartPlan>& parts, std::initializer_list<const char*> names) {
  for (const PartPlan& part : parts) {
    for (const char* name : names) {
      if (part.name == name && part.trained > 0) return true;
    }
  }
  return false;
}

}  // namespace

int64_t RunPlan::params() const {
  int64_t n = 0;
  for (const PartPlan& part : parts) n += part.params;
  return n;
}

int64_t RunPlan::trained() const {
  int64_t n = 0;
  for (const PartPlan& part : parts) n += part.trained;
  return n;
}

double RunPlan::step_flops(int64_t global_batch) const {
  double flops = 0;
  for (const PartPlan& part : parts) {
    flops += part.forward_flops + part.backward_flops + part.recompute_flops;
  }
  return flops * double(global_batch);
}

std::vector<PartPlan> count_parts(const std::vector<Param*>& params,
                                  const std::vector<ParamPolicy>& policies) {
  std::vector<PartPlan> parts;
  for (const char* name : {kEmbedding, kBlocks, kHead, kClip, kConvnext, kMining, kProjector}) {
    parts.push_back({name, 0, 0, 0, 0, 0});
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

RunPlan make_run_plan(const RunConfig& config, const MiniGemini& model,
                      const std::vector<ParamPolicy>& policies, int64_t text_tokens) {
  RunPlan plan;
  const ModelConfig& m = config.model;
  plan.parts = count_parts(model.params(), policies);
  plan.geometry = model.geometry();
  plan.visual_tokens = plan.geometry.tokens();
  plan.text_tokens = std::min(text_tokens, config.text.max_length - plan.visual_tokens);
  const double tokens = double(plan.visual_tokens + plan.text_tokens);
  const double targets = double(plan.text_tokens);

  const double lr_width = double(m.vision_tower.hidden_size), width = double(m.llm.hidden_size);
  const bool hr = m.hr_encoder != HrEncoder::kNone;
  const bool llm_grad =
      any_trained(plan.parts, {kEmbedding, kBlocks, kHead, kClip, kConvnext, kMining, kProjector});
  const bool tower_grad = any_trained(plan.parts, {kClip, kConvnext});
  for (PartPlan& part : plan.parts) {
    bool passes_gradient = llm_grad;
    if (part.name == kBlocks) {
      part.forward_flops = blocks_forward(m.llm, tokens);
      if (policy_of(config.train.recompute, "model.layers.0") != RecomputePolicy::kNone) {
        part.recompute_flops = part.forward_flops;
      }
    } else if (part.name == kHead) {
      part.forward_flops = 2 * targets * width * double(m.llm.vocab_size);
    } else if (part.name == kClip) {
      const int64_t blocks = m.vision_tower.select_layer >= 0
                                 ? m.vision_tower.select_layer
                                 : m.vision_tower.num_layers + 1 + m.vision_tower.select_layer;
      part.forward_flops = clip_forward(m.vision_tower, plan.geometry, blocks);
      passes_gradient = part.trained > 0;
    } else if (part.name == kConvnext && hr) {
      part.forward_flops = convnext_forward(m.convnext, double(config.image.hr_size));
      passes_gradient = part.trained > 0;
    } else if (part.name == kMining && hr) {
      part.forward_flops = mining_forward(m, plan.geometry);
      passes_gradient = tower_grad || part.trained > 0;
    } else if (part.name == kProjector) {
      part.forward_flops =
          projector_forward(m.projector, double(plan.visual_tokens), lr_width, width);
    }
    // Gradients of inputs cost one forward, gradients of weights another in proportion to what
    // trains.
    const double trained_share = part.params > 0 ? double(part.trained) / double(part.params) : 0;
    part.backward_flops = part.forward_flops * ((passes_gradient ? 1 : 0) + trained_share);
  }

  const double element = config.train.dtype == DtypeKind::kFloat32 ? 4 : 2;
  plan.micro_batches = config.train.global_batch / config.train.micro_batch;
  plan.weights = element * double(plan.params());
  plan.master = element == 4 ? 0 : 4.0 * double(plan.trained());
  plan.moments = 8.0 * double(plan.trained());
  plan.gradients = 4.0 * double(plan.trained());
  const double rows = double(config.train.micro_batch) * tokens;
  const double block = rows * block_activation_bytes(m.llm, element);
  const RecomputePolicy policy = policy_of(config.train.recompute, "model.layers.0");
  const double kept = rows * element * width * (policy == RecomputePolicy::kSelective ? 2 : 1);
  plan.activations = policy == RecomputePolicy::kNone ? double(m.llm.num_layers) * block
                                                      : double(m.llm.num_layers) * kept + 2 * block;
  plan.logits =
      double(config.train.micro_batch) * targets * double(m.llm.vocab_size) * (element + 8);

  plan.samples = config.data.expected_samples;
  const int64_t per_epoch =
      (plan.samples + config.train.global_batch - 1) / config.train.global_batch;
  plan.steps =
      config.train.max_steps > 0 ? config.train.max_steps : per_epoch * config.train.epochs;
  plan.warmup_steps = LrSchedule(config.schedule, config.optimizer.lr, plan.steps).warmup_steps();
  return plan;
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

std::string format_run_plan(const RunPlan& plan, const RunConfig& config) {
  std::string out = format_trained_table(plan.parts);
  const ImageGeometry& g = plan.geometry;
  out += cat("\nimage: HR ",
             g.window > 0 ? cat(g.hr_size, " px, window ", g.window, "x", g.window) : "none", "; ",
             g.lr_views(), " LR view", g.lr_views() == 1 ? "" : "s", " of ", g.lr_size, " px; ",
             plan.visual_tokens, " visual tokens\n");
  out += cat("batch: ", config.train.global_batch, " samples a step = ", plan.micro_batches, " x ",
             config.train.micro_batch, " on one rank\n");
  out += plan.steps > 0
             ? cat("steps: ", with_commas(plan.steps), " (", plan.warmup_steps, " warm-up) over ",
                   with_commas(plan.samples), " samples x ", config.train.epochs, " epoch",
                   config.train.epochs == 1 ? "" : "s", "\n")
             : std::string("steps: unknown; set data.expected_samples or train.max_steps\n");
  out += cat("\nFLOPs for a sample of ", plan.visual_tokens, " visual and ", plan.text_tokens,
             " text tokens (assumed)\n");
  out += strf("%-24s %12s %12s %12s\n", "part", "forward", "backward", "recompute");
  for (const PartPlan& part : plan.parts) {
    if (part.forward_flops == 0) continue;
    out +=
        strf("%-24s %12s %12s %12s\n", part.name.c_str(), human_count(part.forward_flops).c_str(),
             human_count(part.backward_flops).c_str(), human_count(part.recompute_flops).c_str());
  }
  out += cat("one step: ", human_count(plan.step_flops(config.train.global_batch)), "FLOP\n");
  out += "\nmemory of one rank\n";
  const std::pair<const char*, double> rows[] = {{"weights", plan.weights},
                                                 {"fp32 master", plan.master},
                                                 {"Adam moments", plan.moments},
                                                 {"fp32 gradients", plan.gradients},
                                                 {"activations (est.)", plan.activations},
                                                 {"logits", plan.logits},
                                                 {"total", plan.total_bytes()}};
  for (const auto& [name, bytes] : rows) {
    out += strf("%-24s %12s\n", name, human_bytes(bytes).c_str());
  }
  return out;
}

}  // namespace mgm
