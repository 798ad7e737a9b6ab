#include "train/build.h"

#include <algorithm>
#include <set>

#include "assemble/initial_weights.h"
#include "base/error.h"
#include "base/log.h"
#include "model/adapters.h"
#include "nn/weight_packer.h"
#include "optim/param_rules.h"
#include "text/chat_template.h"
#include "types/staged_upload.h"

namespace mgm {
namespace {

void check_recompute_patterns(const ResolvedConfig& resolved, const std::vector<Param*>& params,
                              std::vector<ConfigProblem>& problems) {
  std::set<std::string> groups;
  for (const Param* param : params) groups.insert(param->spec.group);
  const std::vector<RecomputeRule>& rules = resolved.config.train.recompute;
  for (size_t i = 0; i < rules.size(); ++i) {
    const bool hit = std::any_of(groups.begin(), groups.end(), [&](const std::string& group) {
      return glob_match(rules[i].match, group);
    });
    if (hit) continue;
    const std::string near = closest(rules[i].match, {groups.begin(), groups.end()});
    problems.push_back({cat("train.recompute[", i, "].match"),
                        cat("'", rules[i].match, "' matches no block of this model",
                            near.empty() ? "" : cat("; did you mean '", near, "'?"))});
  }
}

// Packed weights have no gradient.
void check_packed_are_frozen(const ModelParts& parts, const ModelConfig& model,
                             std::vector<ConfigProblem>& problems) {
  std::vector<std::string> trained;
  for (size_t i = 0; i < parts.params.size(); ++i) {
    const ParamSpec& spec = parts.params[i]->spec;
    if (spec.format != WeightFormat::kDense && parts.policies[i].train) {
      trained.push_back(spec.name);
    }
  }
  if (trained.empty()) return;
  problems.push_back(
      {"model.llm.quantize",
       cat("packs ", trained.size(), " weights that train.rules train (", trained.front(),
           " is the first); packed weights stay frozen: ",
           model.adapter.kind == AdapterKind::kNone
               ? "set model.adapter.kind: lora and train.rules: [{preset: stage1}, "
                 "{preset: adapter}]"
               : "train.rules: [{preset: stage1}, {preset: adapter}] trains the bridge and the "
                 "adapters alone")});
}

constexpr const char* kNothingTrains =
    "so that nothing would train: [{preset: stage1}] trains the projector and the mining heads, "
    "[{preset: stage2}] the language model too";

// Where the key is not written at all the file may be a part of others; what starts a run asks for
// it then (check_inputs_exist).
void check_something_trains(const ModelParts& parts, const ResolvedConfig& resolved,
                            std::vector<ConfigProblem>& problems) {
  if (resolved.origins.count("train.rules") == 0) return;
  if (std::any_of(parts.policies.begin(), parts.policies.end(),
                  [](const ParamPolicy& policy) { return policy.train; })) {
    return;
  }
  problems.push_back(
      {"train.rules",
       cat(resolved.config.train.rules.empty() ? "is empty" : "freezes every parameter", ", ",
           kNothingTrains)});
}

}  // namespace

ModelParts describe_model(const ResolvedConfig& resolved) {
  ModelParts parts;
  parts.model = std::make_unique<MiniGemini>(resolved.config.model, resolved.config.image,
                                             resolved.config.dist.expert_parallel > 1);
  parts.params = parts.model->params();
  RuleOutcome rules = resolve_rules(parts.params, resolved.config);
  check_recompute_patterns(resolved, parts.params, rules.problems);
  for (const ConfigProblem& problem :
       check_targets(resolved.config.model.adapter, parts.model->decoder().linears())) {
    rules.problems.push_back(problem);
  }
  parts.policies = std::move(rules.policies);
  check_packed_are_frozen(parts, resolved.config.model, rules.problems);
  if (rules.problems.empty()) check_something_trains(parts, resolved, rules.problems);
  if (!rules.problems.empty()) throw_problems(resolved, rules.problems);
  return parts;
}

void check_inputs_exist(const ResolvedConfig& resolved) {
  const ModelConfig& model = resolved.config.model;
  std::vector<std::pair<std::string, std::string>> paths = {
      {"text.tokenizer", resolved.config.text.tokenizer},
      {"model.adapter.path", model.adapter.path}};
  if (model.init == ModelInit::kPretrained && !model.path.empty()) {
    paths.emplace_back("model.path", model.path);
  } else if (model.init == ModelInit::kPretrained) {
    paths.emplace_back("model.llm.path", model.llm.path);
    paths.emplace_back("model.vision_tower.path", model.vision_tower.path);
    if (model.hr_encoder != HrEncoder::kNone) {
      paths.emplace_back("model.convnext.path", model.convnext.path);
    }
  }
  const std::vector<DataSource>& sources = resolved.config.data.sources;
  for (size_t i = 0; i < sources.size(); ++i) {
    paths.emplace_back(cat("data.sources[", i, "].annotations"), sources[i].annotations);
    paths.emplace_back(cat("data.sources[", i, "].images"), sources[i].images);
  }
  std::vector<ConfigProblem> problems;
  for (const auto& [key, path] : paths) {
    if (path.empty() || fs::exists(path)) continue;
    problems.push_back(
        {key, cat(path, ": no such file or folder, seen from ", fs::current_path().string())});
  }
  if (resolved.config.train.rules.empty()) {
    const bool written = resolved.origins.count("train.rules") > 0;
    problems.push_back(
        {"train.rules", cat(written ? "is empty, " : "is not set, ", kNothingTrains)});
  }
  const std::string& projector = model.projector.path;
  if (fs::is_directory(projector)) {
    problems.push_back(
        {"model.projector.path", cat(projector, ": is a folder; name the file in it, as ",
                                     (fs::path(projector) / "mm_projector.bin").string())});
  }
  if (!problems.empty()) throw_problems(resolved, problems);
}

ConversationTemplate conversation_template(const ResolvedConfig& resolved) {
  try {
    return load_template(resolved.config.text.template_name);
  } catch (const ConfigError& e) {
    throw_problems(resolved, {{"text.template", e.what()}});
  }
}

DataParts open_data(const ResolvedConfig& resolved) {
  const RunConfig& config = resolved.config;
  if (config.data.sources.empty()) {
    throw_problems(resolved, {{"data.sources", "needs at least one annotation file to train on"}});
  }
  DataParts parts;
  parts.tokenizer = load_tokenizer(tokenizer_path(config));
  const ConversationTemplate conversation = conversation_template(resolved);
  for (const std::string& token : missing_end_tokens(conversation, *parts.tokenizer)) {
    throw_problems(resolved, {{"text.template",
                               cat(conversation.name, " ends answers with '", token,
                                   "', which is no token of ", tokenizer_path(config),
                                   ": the end of an answer would be taught as ",
                                   "ordinary text; take the template of this language model")}});
  }
  const std::string warning = chat_template_warning(
      {tokenizer_path(config), llm_path(config.model)}, conversation, *parts.tokenizer);
  if (!warning.empty()) log::warn(warning + "; text.template takes another format");
  const std::string endless = endless_answers_warning(conversation, *parts.tokenizer);
  if (!endless.empty()) log::warn(endless + "; name the token under the format's stop");
  parts.index = std::make_unique<AnnotationIndex>(config.data.sources);
  parts.builder = std::make_unique<SampleBuilder>(config, *parts.index, *parts.tokenizer);
  parts.plan =
      std::make_unique<Plan>(sample_lengths(*parts.index, parts.builder->geometry().tokens()),
                             config.data, config.train.global_batch, config.train.seed);
  if (config.data.expected_samples > 0 &&
      config.data.expected_samples != parts.plan->num_samples()) {
    log::warn(cat("data.expected_samples is ", config.data.expected_samples, ", the data has ",
                  parts.plan->num_samples(), " samples"));
  }
  parts.total_steps = config.train.max_steps > 0
                          ? config.train.max_steps
                          : parts.plan->steps_per_epoch() * config.train.epochs;
  return parts;
}

std::vector<ConfigProblem> drawn_tower_problems(const RunConfig& config, const ModelParts& parts) {
  const std::pair<const char*, std::string> towers[] = {
      {"model.vision_tower.path", "model.vision_tower."},
      {"model.convnext.path", "model.vision_tower_aux."}};
  std::vector<ConfigProblem> problems;
  for (const auto& [key, prefix] : towers) {
    std::vector<std::string> frozen;
    for (size_t i = 0; i < parts.params.size(); ++i) {
      const std::string& name = parts.params[i]->spec.name;
      if (!parts.policies[i].train && name.rfind(prefix, 0) == 0 &&
          is_drawn_tower(config.model, name)) {
        frozen.push_back(name);
      }
    }
    if (frozen.empty()) continue;
    problems.push_back({key, cat("is empty, so the tower is drawn from train.seed, but ",
                                 frozen.size(), " of its parameters never train (", frozen.front(),
                                 " is the first); name the directory of its weights, or train all "
                                 "of it: train.rules: [{match: \"",
                                 prefix, "*\"}]")});
  }
  return problems;
}

std::unique_ptr<ParamStore> make_store(const ResolvedConfig& resolved, const ModelParts& parts,
                                       const DeviceSetup& device, const Topology& topology,
                                       FrozenHasher& packed) {
  const DistConfig& dist = resolved.config.dist;
  StoreSettings settings;
  settings.device = device.device;
  settings.dtype = device.dtype;
  settings.gradients = true;
  settings.topology = topology;
  settings.bucket_dtype = dist.reduce_dtype == DtypeKind::kBfloat16 ? at::kBFloat16 : at::kFloat;
  settings.strict = dist.reduction == Reduction::kStrict;
  // On the CPU the state is in host memory as it is; the start of the run says so.
  settings.offload = dist.offload == Offload::kOptimizer && device.device.is_cuda();
  if (settings.offload && device.dtype != at::kBFloat16) {
    throw_problems(resolved, {{"dist.offload", "optimizer needs train.dtype: bfloat16"}});
  }
  const std::vector<ConfigProblem> problems = drawn_tower_problems(resolved.config, parts);
  if (!problems.empty()) throw_problems(resolved, problems);
  auto store = std::make_unique<ParamStore>(parts.params, parts.policies, settings);
  WeightPacker packer(device.device, device.dtype);
  // Weights whose masters stay on the host go there first.
  const at::Device first = settings.offload ? at::Device(at::kCPU) : device.device;
  StagedUpload upload;
  initial_weights(
      resolved.config, parts.params,
      [&](Param& param, int64_t begin, const at::Tensor& values) {
        if (param.spec.format == WeightFormat::kDense) {
          store->assign(param.spec.name, begin, upload(values, first));
        } else {
          packed.add(param.spec, begin, packer.add(param, begin, values));
        }
      },
      [&](const Param& param) {
        if (param.spec.format != WeightFormat::kDense) return ElementRange{0, param.spec.numel()};
        if (!store->contains(param.spec.name)) return ElementRange{};  // an expert of another rank
        const ParamStore::Range range = store->owned(param.spec.name);
        return ElementRange{range.first, range.count};
      });
  return store;
}

}  // namespace mgm
