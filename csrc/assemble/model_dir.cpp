#include "assemble/model_dir.h"

#include <ATen/ATen.h>

#include "assemble/adapter_dir.h"
#include "assemble/backbone_files.h"
#include "assemble/json_fields.h"
#include "assemble/published_weights.h"
#include "assemble/tower_config.h"
#include "base/error.h"
#include "base/log.h"
#include "base/timer.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/mm_projector_file.h"
#include "checkpoint/weight_loader.h"
#include "model/adapters.h"
#include "nn/weight_packer.h"
#include "text/chat_template.h"
#include "types/staged_upload.h"

namespace mgm {
namespace {

// The weights of `base`, towers beside it included, and what an adapter's directory lays on top.
SourcePtr open_weights(const fs::path& base, const fs::path& dir, const fs::path& adapter,
                       const ModelDescription& description) {
  std::vector<OverlayLayer> top;
  if (!adapter.empty()) {
    top = open_adapter_layers(adapter, description.model.llm.tie_embeddings);
  }
  const std::vector<OverlayLayer> layers = open_published(base, dir, description.model, top);
  return layers.size() == 1 ? layers.front().source : std::make_shared<OverlaySource>(layers);
}

// What config.json names may be a row of a file that is not here.
ConversationTemplate own_template(const fs::path& config, const std::string& name) {
  try {
    return load_template(name);
  } catch (const ConfigError& e) {
    throw CheckpointError(config.string(), ": its chat template '", name, "' cannot be had (",
                          e.what(), "); --template names another");
  }
}

void warn_of_chat_template(const fs::path& dir, const ConversationTemplate& conversation,
                           const Tokenizer& tokenizer) {
  const std::string warning = chat_template_warning({dir}, conversation, tokenizer);
  if (!warning.empty()) log::warn(warning + "; --template takes another format");
}

Json read_config(const fs::path& path) {
  if (!fs::exists(path)) {
    const bool adapter = is_adapter_dir(path.parent_path());
    throw CheckpointError(
        path.string(), ": no such file: a model directory has one",
        adapter ? "; this is an adapter: name its model, and it with --adapter" : "");
  }
  return read_config_json(path);
}

// What transformers would take from the file at do_sample false too. Sampling is --temperature's.
void name_unused_settings(const Json& json, const std::string& source) {
  const std::pair<const char*, Json> neutral[] = {{"repetition_penalty", 1.0},
                                                  {"no_repeat_ngram_size", 0},
                                                  {"encoder_repetition_penalty", 1.0},
                                                  {"num_beams", 1},
                                                  {"num_beam_groups", 1},
                                                  {"length_penalty", 1.0},
                                                  {"min_length", 0},
                                                  {"min_new_tokens", 0},
                                                  {"suppress_tokens", nullptr},
                                                  {"bad_words_ids", nullptr},
                                                  {"begin_suppress_tokens", nullptr},
                                                  {"sequence_bias", nullptr},
                                                  {"forced_bos_token_id", nullptr},
                                                  {"forced_eos_token_id", nullptr},
                                                  {"guidance_scale", 1.0},
                                                  {"exponential_decay_length_penalty", nullptr}};
  std::vector<std::string> used;
  for (const auto& [key, value] : neutral) {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null() || *it == value) continue;
    if ((it->is_array() || it->is_object()) && it->empty()) continue;
    used.push_back(cat(key, " ", it->dump().substr(0, 40)));
  }
  if (used.empty()) return;
  log::warn(cat(source, ": ", join(used, ", "), ": not applied, where transformers would; see ",
                "--repetition-penalty, --beams and --length-penalty"));
}

std::vector<int32_t> read_stop_ids(const fs::path& dir, const Json& config, int64_t vocabulary) {
  const fs::path generation = dir / "generation_config.json";
  const bool own = fs::exists(generation);
  const fs::path source = own ? generation : dir / "config.json";
  const Json json = own ? read_config(generation) : config;
  const JsonFields fields(json, source.string());
  if (own) name_unused_settings(json, source.string());
  if (!fields.has("eos_token_id")) return {};
  const Json& value = json.at("eos_token_id");
  std::vector<int32_t> out;
  for (const Json& id : value.is_array() ? value : Json::array({value})) {
    if (!id.is_number_integer()) {
      throw CheckpointError(source.string(), ": field 'eos_token_id' must be a token id or a list ",
                            "of them, got ", value.dump());
    }
    const auto token = id.get<int64_t>();
    if (token >= 0 && token < vocabulary) {
      out.push_back(static_cast<int32_t>(token));
    } else {
      log::warn(cat(source.string(), ": eos_token_id ", token, " is no token of the tokenizer, ",
                    "which has ", vocabulary, ": no answer can end with it"));
    }
  }
  return out;
}

// What towers beside the shards say of themselves holds for a config.json too.
void check_towers(const fs::path& dir, const ModelDescription& description,
                  const std::string& source) {
  RunConfig config;
  config.model = description.model;
  config.image = description.image;
  config.model.init = ModelInit::kPretrained;
  config.model.path = dir.string();
  for (const ConfigProblem& problem : tower_problems(config)) {
    throw CheckpointError(source, ": does not go with its towers: ", problem.key, ": ",
                          problem.message);
  }
}

// Where a model's weights are.
struct Places {
  fs::path base, adapter;  // adapter: empty if there is none
};

Places find_places(const fs::path& dir, const ModelLoadOptions& options) {
  if (!is_adapter_dir(dir)) return {dir, options.adapter};
  if (!options.adapter.empty()) {
    throw ConfigError(dir.string(), " is an adapter itself; --adapter ", options.adapter.string(),
                      " cannot go on top of it");
  }
  return {adapter_base(dir), dir};
}

// Memory for a matrix of all experts of a block, of which `param` is one's: on a GPU they are one
// product where they lie together (ops/grouped_linear.h).
class ExpertPlaces {
 public:
  explicit ExpertPlaces(int64_t experts) : experts_(experts) {}
  at::Tensor place(const ParamSpec& spec, const at::TensorOptions& options) {
    std::string matrix = spec.name;
    const std::string number = cat(".experts.", spec.expert, ".");
    matrix.replace(matrix.find(number), number.size(), ".experts.*.");
    at::Tensor& all = slabs_[matrix];
    if (!all.defined()) {
      std::vector<int64_t> shape = spec.shape;
      shape.insert(shape.begin(), experts_);
      all = at::empty(shape, options);
    }
    return all[spec.expert];
  }

 private:
  int64_t experts_;
  std::map<std::string, at::Tensor> slabs_;
};

// One tensor after another goes where it belongs, packed where the model holds it so. Weights that
// stay on the CPU in their own type are the mapped file's pages: no copy is made, and processes on
// one host share them.
LoadReport bind_weights(const MiniGemini& model, const TensorSource& source,
                        at::Device first_device, at::ScalarType dtype) {
  LoadOptions load;
  load.dtype = dtype;
  WeightPacker packer(first_device, dtype);
  ExpertPlaces places(model.decoder().config().num_experts);
  StagedUpload upload;
  return load_weights(
      model.params(), source, load, [&](Param& param, int64_t first, const at::Tensor& v) {
        const at::Device device = model.decoder().device_of(param.spec.group, first_device);
        if (param.spec.format != WeightFormat::kDense) {
          packer.move_to(device);
          packer.add(param, first, v);
        } else if (param.spec.expert >= 0 && device.is_cuda()) {
          param.value = places.place(param.spec, v.options().device(device).dtype(dtype))
                            .copy_(upload(v, device));
        } else {
          param.value = upload(v, device).to(dtype);
        }
      });
}

// Bytes of the packed weights, in words; "" without any.
std::string packed_text(const std::vector<Param*>& params, at::ScalarType dtype) {
  double packed = 0, dense = 0;
  for (const Param* param : params) {
    if (!param->packed.defined()) continue;
    packed += double(param->packed.nbytes());
    dense += double(param->spec.numel()) * double(at::elementSize(dtype));
  }
  if (packed == 0) return "";
  return cat("; ", human_bytes(dense), " of them packed to ", human_bytes(packed));
}

// The adapter of a description whose model has it, or CheckpointError.
void check_adapter(const fs::path& adapter, const ModelDescription& description,
                   const MiniGemini& model) {
  const auto linears = model.decoder().linears();
  const auto problems = check_targets(description.model.adapter, linears);
  if (problems.empty()) {
    std::vector<std::string> names;
    for (const Linear* linear : linears) names.push_back(linear->prefix());
    return check_adapter_is_whole(adapter, names);
  }
  throw CheckpointError(
      adapter.string(), ": ", problems.size(),
      " of its adapters belong to no linear of this model: ", problems.front().message);
}

}  // namespace

ForwardContext LoadedModel::context(BlockRunner& runner) const {
  ForwardContext out{runner};
  out.drop_path = drop_path_seed.has_value();
  out.seed = drop_path_seed.value_or(0);
  return out;
}

LoadedModel load_model(const fs::path& dir, const ModelLoadOptions& options) {
  LoadedModel loaded;
  const fs::path config = dir / "config.json";
  const Json json = read_config(config);
  loaded.description = read_hf_config(json, config.string());
  ModelDescription& description = loaded.description;
  if (!options.template_name.empty()) {
    description.text.template_name = options.template_name;
  } else if (!json.contains("mgm")) {
    log::warn(cat(config.string(), " names no chat template; '", description.text.template_name,
                  "' is used, --template takes another"));
  }
  const ConversationTemplate conversation =
      options.template_name.empty() ? own_template(config, description.text.template_name)
                                    : load_template(options.template_name);
  if (options.mining) description.model.mining.kernel = *options.mining;
  description.model.llm.quantize = options.quantize;
  check_towers(dir, description, config.string());
  const auto [base, adapter] = find_places(dir, options);
  if (!adapter.empty()) description.model.adapter = read_adapter_config(adapter);
  loaded.model = std::make_unique<MiniGemini>(description.model, description.image);
  if (!adapter.empty()) check_adapter(adapter, description, *loaded.model);
  loaded.tokenizer = load_tokenizer(dir.string());
  if (loaded.tokenizer->vocab_size() > description.model.llm.vocab_size) {
    throw CheckpointError(dir.string(), ": its tokenizer has ", loaded.tokenizer->vocab_size(),
                          " tokens, its embedding ", description.model.llm.vocab_size, " rows");
  }
  warn_of_chat_template(dir, conversation, *loaded.tokenizer);
  loaded.drop_path_seed = options.drop_path_seed;
  loaded.stop_ids = read_stop_ids(dir, json, loaded.tokenizer->vocab_size());
  const SourcePtr source = open_weights(base, dir, adapter, description);
  const std::vector<Param*> params = loaded.model->params();
  const at::Device device = options.place ? options.place(loaded) : options.device;
  const Timer timer;
  const LoadReport report = bind_weights(*loaded.model, *source, device, options.dtype);
  log::info(cat("model: ", report.loaded, " tensors, ", human_bytes(double(report.bytes)), " from ",
                source->description(), packed_text(params, options.dtype),
                strf(" in %.2f s", timer.seconds())));
  return loaded;
}

std::map<std::string, std::string> model_files(const ModelContent& content, at::ScalarType dtype,
                                               bool llm_only) {
  std::map<std::string, std::string> out;
  for (const auto& [name, text] : content.tokenizer.files()) out[name] = text;
  const SpecialIds ids{content.tokenizer.bos_id(), content.tokenizer.eos_id(),
                       content.tokenizer.pad_id()};
  const std::string type = dtype == at::kBFloat16 ? "bfloat16"
                           : dtype == at::kHalf   ? "float16"
                                                  : "float32";
  OrderedJson config = llm_only ? to_llm_config(content.description.model.llm, ids, type)
                                : to_hf_config(content.description, ids, type);
  if (!llm_only) {
    config["optimize_vision_tower"] = content.vision_tower_trained;
    config["optimize_vision_tower_aux"] = content.hr_encoder_trained;
  }
  out["config.json"] = config.dump(2) + "\n";
  for (auto& [name, text] : backbone_files(content.backbone, ids)) out.try_emplace(name, text);
  return out;
}

void write_model(const fs::path& dir, const ModelContent& content, at::ScalarType dtype,
                 bool llm_only, const HfDirectoryOptions& options) {
  HfDirectory out;
  std::map<std::string, Param*> by_name;
  for (Param* param : content.params) {
    const std::string& name = param->spec.name;
    if (is_adapter_weight(name) || (llm_only && in_projector_file(name))) continue;
    by_name[name] = param;
    out.tensors.push_back({name, dtype, param->spec.shape});
  }
  out.get = [&](const std::string& name) { return content.value(*by_name.at(name)).to(dtype); };
  out.files = model_files(content, dtype, llm_only);
  write_hf_directory(dir, out, options);
}

}  // namespace mgm
