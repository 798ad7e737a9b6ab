#include "assemble/adapter_dir.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "assemble/hf_config.h"
#include "assemble/json_fields.h"
#include "base/error.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/mm_projector_file.h"

namespace mgm {
namespace {

std::string leaf(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// Last parts of names where they say which linears are meant, as PEFT's own configs have them; else
// every name.
std::vector<std::string> target_modules(const std::vector<Linear*>& linears) {
  std::set<std::string> adapted, bare;
  std::vector<std::string> names;
  for (const Linear* linear : linears) {
    (linear->lora() ? adapted : bare).insert(leaf(linear->prefix()));
    if (linear->lora()) names.push_back(linear->prefix());
  }
  const bool partly = std::any_of(adapted.begin(), adapted.end(),
                                  [&](const std::string& l) { return bare.count(l) > 0; });
  return partly ? names : std::vector<std::string>(adapted.begin(), adapted.end());
}

// What a plain LoRA may say, as peft 0.18 writes it.
constexpr const char* kPlain[] = {"auto_mapping",
                                  "base_model_name_or_path",
                                  "bias",
                                  "corda_config",
                                  "eva_config",
                                  "ensure_weight_tying",
                                  "exclude_modules",
                                  "inference_mode",
                                  "init_lora_weights",
                                  "layers_pattern",
                                  "layers_to_transform",
                                  "loftq_config",
                                  "lora_alpha",
                                  "lora_dropout",
                                  "megatron_config",
                                  "megatron_core",
                                  "modules_to_save",
                                  "peft_type",
                                  "peft_version",
                                  "qalora_group_size",
                                  "r",
                                  "revision",
                                  "runtime_config",
                                  "target_modules",
                                  "task_type",
                                  "use_rslora"};

// Anything else that is set changes the function of an adapter in a way that is not built here, or
// is of a version that may.
void refuse_variants(const Json& config, const std::string& source) {
  for (const auto& [key, value] : config.items()) {
    const bool unset = value.is_null() || value == false || value == "" ||
                       ((value.is_array() || value.is_object()) && value.empty());
    if (unset || std::find(std::begin(kPlain), std::end(kPlain), key) != std::end(kPlain)) continue;
    throw CheckpointError(source, ": ", key, " is ", value.dump(), "; only plain LoRA on linears ",
                          "is read. If it changes nothing, remove it");
  }
  const JsonFields f(config, source);
  const auto kind = f.get<std::string>("peft_type");
  if (kind != "LORA") throw CheckpointError(source, ": peft_type '", kind, "' is not LORA");
  // Others begin by taking the product of A and B out of the base, or by rounding it.
  if (f.has("init_lora_weights") && f.get<Json>("init_lora_weights").is_string()) {
    const auto init = f.get<std::string>("init_lora_weights");
    if (init != "gaussian" && init != "eva" && init != "orthogonal") {
      throw CheckpointError(source, ": init_lora_weights '", init, "' belongs to a base that it ",
                            "changed; convert it to plain LoRA with PEFT first");
    }
  }
  const auto bias = f.get_or<std::string>("bias", "none");
  if (bias != "none") throw CheckpointError(source, ": bias '", bias, "' is not none");
}

// A module that the config says is in the files.
void check_saved_modules(const JsonFields& f, const fs::path& dir) {
  if (!f.has("modules_to_save")) return;
  const OverlaySource source(open_adapter_layers(dir));
  for (const Json& module : f.get<Json>("modules_to_save")) {
    const std::string part = cat(".", module.is_string() ? module.get<std::string>() : "", ".");
    const auto& names = source.names();
    const bool saved = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return cat(".", name).find(part) != std::string::npos && !is_adapter_weight(name);
    });
    if (saved) continue;
    throw CheckpointError(f.source(), ": modules_to_save has ", module.dump(), ", but no file of ",
                          "the adapter holds a weight of it");
  }
}

JsonFields open_config(const fs::path& dir) {
  const fs::path file = dir / kAdapterConfig;
  if (!fs::exists(file)) {
    throw CheckpointError(file.string(), ": no such file: a directory of a LoRA adapter has one");
  }
  const Json json = read_config_json(file);
  refuse_variants(json, file.string());
  return {json, file.string()};
}

// 16, not 16.0: as PEFT writes it.
OrderedJson number(double value) {
  const auto whole = static_cast<int64_t>(value);
  return double(whole) == value ? OrderedJson(whole) : OrderedJson(value);
}

}  // namespace

AdapterConfig read_adapter_config(const fs::path& dir) {
  const JsonFields f = open_config(dir);
  check_saved_modules(f, dir);
  AdapterConfig out;
  out.kind = AdapterKind::kLora;
  out.rank = f.get<int64_t>("r");
  out.alpha = f.get<double>("lora_alpha");
  out.dropout = f.get_or<double>("lora_dropout", 0);
  out.rslora = f.get_or<bool>("use_rslora", false);
  if (out.rank < 1 || !(out.alpha > 0) || !(out.dropout >= 0 && out.dropout < 1)) {
    throw CheckpointError(f.source(), ": r ", out.rank, ", lora_alpha ", out.alpha,
                          ", lora_dropout ", out.dropout, " are no adapter's");
  }
  out.targets = adapted_linears(dir);
  return out;
}

void check_adapter_is_whole(const fs::path& dir, const std::vector<std::string>& linears) {
  const JsonFields f = open_config(dir);
  // A pattern, or only some layers: PEFT's own rules say which.
  for (const char* key : {"layers_to_transform", "exclude_modules"}) {
    if (f.has(key)) return;
  }
  const Json targets = f.has("target_modules") ? f.get<Json>("target_modules") : Json();
  if (!targets.is_array()) return;
  const std::vector<std::string> held = adapted_linears(dir);
  std::vector<std::string> lacking;
  for (const std::string& linear : linears) {
    const bool named = std::any_of(targets.begin(), targets.end(), [&](const Json& target) {
      if (!target.is_string()) return false;
      const auto name = target.get<std::string>();  // PEFT's rule: the whole name, or its end
      return linear == name || linear.ends_with("." + name);
    });
    if (named && linear.starts_with("model.layers.") &&
        !std::binary_search(held.begin(), held.end(), linear)) {
      lacking.push_back(linear);
    }
  }
  if (lacking.empty()) return;
  throw CheckpointError(f.source(), ": target_modules names ", lacking.size(), " linears that the ",
                        "files hold no adapter of, ", lacking.front(), " the first: the adapter ",
                        "is not whole, or of a model with fewer layers");
}

fs::path adapter_base(const fs::path& dir) {
  const JsonFields f = open_config(dir);
  const auto named = f.get_or<std::string>("base_model_name_or_path", "");
  for (const fs::path& candidate : {fs::path(named), dir / named}) {
    if (!named.empty() && fs::exists(candidate)) return candidate;
  }
  throw CheckpointError(f.source(), ": base_model_name_or_path '", named,
                        "' is no path here; weights are read from local paths only");
}

OrderedJson to_peft_config(const AdapterConfig& adapter, const std::vector<Linear*>& linears,
                           const std::string& base) {
  return {{"alpha_pattern", OrderedJson::object()},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path", base.empty() ? OrderedJson() : OrderedJson(base)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", true},
          {"layers_pattern", nullptr},
          {"layers_to_transform", nullptr},
          {"lora_alpha", number(adapter.alpha)},
          {"lora_dropout", adapter.dropout},
          {"modules_to_save", nullptr},
          {"peft_type", "LORA"},
          {"r", adapter.rank},
          {"rank_pattern", OrderedJson::object()},
          {"revision", nullptr},
          {"target_modules", target_modules(linears)},
          {"task_type", "CAUSAL_LM"},
          {"use_dora", false},
          {"use_rslora", adapter.rslora}};
}

void write_adapter(const fs::path& dir, const ModelContent& content,
                   const std::vector<Linear*>& linears,
                   const std::function<bool(const std::string& name)>& is_of_base,
                   const std::string& base, at::ScalarType dtype,
                   const HfDirectoryOptions& options) {
  HfDirectory out;
  out.files = model_files(content, dtype, /*llm_only=*/false);
  std::map<std::string, Param*> by_name;
  std::vector<TensorSpec> adapters, others;
  for (Param* param : content.params) {
    const std::string& name = param->spec.name;
    const bool adapter = is_adapter_weight(name);
    if (!adapter && !is_projector_or_mining(name) && is_of_base(name)) continue;
    const std::string written = adapter ? peft_name(name) : name;
    by_name[written] = param;
    (adapter ? adapters : others).push_back({written, dtype, param->spec.shape});
  }
  out.tensor_files[kAdapterFile] = adapters;
  if (!others.empty()) out.tensor_files[kOthersFile] = others;
  out.get = [&](const std::string& name) { return content.value(*by_name.at(name)).to(dtype); };
  const AdapterConfig& adapter = content.description.model.adapter;
  out.files[kAdapterConfig] = to_peft_config(adapter, linears, base).dump(2) + "\n";
  write_hf_directory(dir, out, options);
}

}  // namespace mgm
