#include "assemble/convert.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "assemble/hf_config.h"
#include "assemble/inspect.h"
#include "assemble/merge_adapter.h"
#include "assemble/published_weights.h"
#include "assemble/weights_check.h"
#include "base/error.h"
#include "base/file_access.h"
#include "base/json.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/gguf_source.h"
#include "checkpoint/name_maps.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.npos, end) == 0;
}

bool is_weights_file(const std::string& name) {
  for (const char* end : {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json"}) {
    if (ends_with(name, end)) return true;
  }
  return false;
}

// What belongs to a model and is no code: configs, tokenizers, chat templates, licences.
bool is_small_file(const std::string& name) {
  for (const char* end : {".json", ".txt", ".model", ".jinja", ".tiktoken"}) {
    if (ends_with(name, end)) return !ends_with(name, ".index.json");
  }
  return name.rfind("LICENSE", 0) == 0 || name.rfind("NOTICE", 0) == 0;
}

const char* hf_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    default:
      return nullptr;
  }
}

// The type most bytes have.
at::ScalarType main_type(const std::vector<TensorSpec>& tensors) {
  std::map<at::ScalarType, uint64_t> bytes;
  for (const TensorSpec& spec : tensors) bytes[spec.type] += spec.bytes();
  return std::max_element(bytes.begin(), bytes.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

void set_dtype(OrderedJson& config, at::ScalarType type) {
  const char* name = hf_dtype(type);
  if (!name) return;
  // transformers writes `dtype` since 4.56 and reads either.
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = name;
  for (auto& [key, part] : config.items()) {  // vision_config of a CLIP: a tower is read by that
    for (const char* field : {"dtype", "torch_dtype"}) {
      if (part.is_object() && part.contains(field) && part[field].is_string()) part[field] = name;
    }
  }
}

// MiniGeminiLlamaForCausalLM is MGMLlamaForCausalLM today, mini_gemini mgm. False: it is not old.
bool write_todays_names(OrderedJson& config) {
  bool old = false;
  const auto rename = [&](OrderedJson& value, std::string_view before, std::string_view now) {
    if (!value.is_string()) return;
    const auto text = value.get<std::string>();
    if (!text.starts_with(before)) return;
    value = cat(now, text.substr(before.size()));
    old = true;
  };
  if (config.contains("model_type")) rename(config["model_type"], "mini_gemini", "mgm");
  if (config.contains("architectures") && config["architectures"].is_array()) {
    for (OrderedJson& name : config["architectures"]) rename(name, "MiniGemini", "MGM");
  }
  return old;
}

void add_directory_files(const fs::path& dir, const ConvertRequest& request, HfDirectory& out,
                         ConvertReport& report) {
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_weights_file(name) || (report.added > 0 && name == kAdapterConfig)) continue;
    if (!entry.is_regular_file() || !is_small_file(name)) {
      report.not_copied.push_back(name);
      continue;
    }
    out.files[name] = read_file(entry.path());
    report.copied.push_back(name);
  }
  std::sort(report.copied.begin(), report.copied.end());
  std::sort(report.not_copied.begin(), report.not_copied.end());
  const auto config = out.files.find("config.json");
  if (config == out.files.end()) return;
  read_config_json(dir / "config.json");  // that it can be parsed
  OrderedJson json = OrderedJson::parse(config->second, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw CheckpointError((dir / "config.json").string(), ": is no JSON object");
  }
  const bool old = write_todays_names(json);
  std::optional<at::ScalarType> type = request.dtype;
  if (report.added > 0 && !type) type = main_type(out.tensors);  // the base's, not the adapter's
  if (type) set_dtype(json, *type);
  if (old || type) config->second = json.dump(2) + "\n";
}

void add_gguf_files(const fs::path& file, HfDirectory& out) {
  GgufConfigs configs = read_gguf_configs(file);
  set_dtype(configs.config, main_type(out.tensors));
  out.files["config.json"] = configs.config.dump(2) + "\n";
  if (!configs.generation.empty()) {
    out.files["generation_config.json"] = configs.generation.dump(2) + "\n";
  }
}

// Those beside the weights go before the one inside.
void add_gguf_tokenizer(const fs::path& file, HfDirectory& out, ConvertReport& report) {
  for (const auto& [name, text] : out.files) {
    if (is_tokenizer_file(name)) return;
  }
  try {
    const auto tokenizer = load_tokenizer(file.string());
    for (const auto& [name, text] : tokenizer->files()) out.files[name] = text;
  } catch (const DataError& e) {
    report.tokenizer_problem = e.what();
  }
}

// Towers that the weights lack and config.json names relative to `dir`: the new folder has none.
void find_towers_left(const Json& json, const fs::path& dir, const TensorSource& weights,
                      ConvertReport& report) {
  for (const auto& [key, prefix] : {std::pair{"mm_vision_tower", "model.vision_tower."},
                                    {"mm_vision_tower_aux", "model.vision_tower_aux."}}) {
    const auto it = json.find(key);
    if (it == json.end() || !it->is_string() || any_name(weights, prefix)) continue;
    const auto named = it->get<std::string>();
    if (named.empty() && report.added > 0 && std::string_view(key) == "mm_vision_tower") {
      throw CheckpointError(dir.string(), ": its vision tower lies in the model that the adapter ",
                            "was trained on; fold it into that one");
    }
    if (named.empty() || fs::is_directory(named) || !fs::is_directory(dir / named)) continue;
    report.towers_left.push_back((dir / named).string());
  }
}

// The GGUF file that `path` is or that open_model_dir takes from it.
std::optional<fs::path> gguf_of(const fs::path& path, const TensorSource& source) {
  if (fs::is_regular_file(path)) return is_gguf_file(path) ? std::optional(path) : std::nullopt;
  const fs::path opened = source.description();
  return fs::is_regular_file(opened) && is_gguf_file(opened) ? std::optional(opened) : std::nullopt;
}

at::Tensor as_type(const at::Tensor& value, const TensorSpec& spec, const std::string& file) {
  if (value.scalar_type() == spec.type) return value;
  at::Tensor out = value.to(spec.type);
  if (spec.type == at::kHalf && !at::isfinite(out).all().item<bool>() &&
      at::isfinite(value).all().item<bool>()) {
    throw CheckpointError(file, ": tensor '", spec.name,
                          "' has values beyond fp16's 65504 (the largest is ",
                          value.abs().max().item<double>(), "); take --dtype bf16 or fp32");
  }
  return out;
}

// Tensors that are written together: to shards of a model, or to the one file of that name.
struct Part {
  std::string file;  // empty: shards
  SourcePtr source;
};

std::vector<Part> adapter_parts(const fs::path& dir) {
  std::vector<OverlayLayer> layers = open_adapter_layers(dir);
  layers[0].map = [map = layers[0].map](const std::string& name) { return peft_name(*map(name)); };
  std::vector<Part> out;
  for (const OverlayLayer& layer : layers) {
    out.push_back({out.empty() ? kAdapterFile : kOthersFile,
                   std::make_shared<OverlaySource>(std::vector{layer})});
  }
  return out;
}

// The state_dict of a training checkpoint alone: moments of its optimizer are no weights.
Part open_clip_part(const SourcePtr& source, ConvertReport& report) {
  const auto& names = source->names();
  const auto in_state_dict = [](const std::string& name) {
    return name.starts_with("state_dict.");
  };
  const bool training = std::any_of(names.begin(), names.end(), in_state_dict);
  const auto bare = std::make_shared<OverlaySource>(std::vector{
      OverlayLayer{source, [&](const std::string& name) {
                     const bool weight = !training || in_state_dict(name);
                     return weight ? std::optional(bare_openclip_name(name)) : std::nullopt;
                   }}});
  report.left_out = bare->dropped().size();
  return {"open_clip_model.safetensors", bare};
}

std::vector<Part> open_parts(const fs::path& from, ConvertReport& report) {
  if (fs::is_directory(from) && is_adapter_dir(from)) return adapter_parts(from);
  const SourcePtr source = open_weights(from);
  for (const std::string& name : source->names()) {
    if (part_of(name) == "OpenCLIP ConvNeXt") return {open_clip_part(source, report)};
  }
  return {{"", source}};
}

void fold_adapter(const fs::path& adapter, Part& part, ConvertReport& report) {
  const auto merge = std::make_shared<AdapterMerge>(part.source, adapter);
  report.folded = merge->folded().size();
  for (const std::string& name : merge->replaced()) {
    report.replaced += merge->folded().count(name) == 0;
  }
  report.added = merge->added().size();
  part.source = merge;
}

// What reads a tensor for writing, and in which type: filled part by part.
class Conversion {
 public:
  Conversion(const ConvertRequest& request, ConvertReport& report)
      : request_(request), report_(report) {}

  std::vector<TensorSpec> add(const Part& part) {
    std::vector<TensorSpec> out;
    for (const std::string& name : part.source->names()) {
      const TensorInfo& info = part.source->info(name);
      const bool is_float = at::isFloatingType(info.type) && hf_dtype(info.type);
      out.push_back({name, is_float ? request_.dtype.value_or(info.type) : info.type, info.shape});
      tensors_[name] = {part.source, out.back()};
      report_.bytes += out.back().bytes();
      report_.converted += dtype_name(out.back().type) != info.dtype;
      report_.language_model |= part.file.empty() && part_of(name) == "language model";
    }
    report_.tensors += out.size();
    for (const std::string& what : part.source->not_tensors()) report_.not_tensors.push_back(what);
    return out;
  }

  at::Tensor get(const std::string& name) const {
    const auto& [source, spec] = tensors_.at(name);
    return as_type(source->read(name), spec, source->info(name).file);
  }

 private:
  const ConvertRequest& request_;
  ConvertReport& report_;
  std::map<std::string, std::pair<SourcePtr, TensorSpec>> tensors_;
};

void check_request(const ConvertRequest& request) {
  refuse_replacing("--out", request.out, request.from, "the source");
  if (!request.adapter.empty()) {
    refuse_replacing("--out", request.out, request.adapter, "the adapter");
    if (is_adapter_dir(request.from)) {
      throw ConfigError(request.from.string(), " is an adapter itself; --adapter ",
                        request.adapter.string(), " is folded into a model");
    }
  }
  check_hf_target(request.out, request.directory.replace);
}

}  // namespace

SourcePtr open_weights(const fs::path& path) {
  if (!fs::exists(path)) throw CheckpointError(path.string(), ": no such file or folder");
  if (fs::is_directory(path)) return open_model_dir(path);
  return path.extension() == ".json" ? open_sharded(path) : open_tensor_file(path);
}

bool is_tokenizer_file(const std::string& name) {
  return name == "tokenizer.json" || name == "tokenizer.model" || name == "tekken.json" ||
         name == "vocab.json" || name == "merges.txt" || ends_with(name, ".tiktoken");
}

ConvertReport convert_weights(const ConvertRequest& request) {
  check_request(request);
  ConvertReport report;
  HfDirectory out;
  Conversion conversion(request, report);
  std::vector<Part> parts = open_parts(request.from, report);
  if (!request.adapter.empty()) fold_adapter(request.adapter, parts.front(), report);
  for (const Part& part : parts) {
    (part.file.empty() ? out.tensors : out.tensor_files[part.file]) = conversion.add(part);
  }
  out.get = [&](const std::string& name) { return conversion.get(name); };
  const bool adapters_model = report.added > 0;
  const fs::path of_weights =
      fs::is_directory(request.from) ? request.from : request.from.parent_path();
  const fs::path dir = adapters_model ? request.adapter : of_weights;
  // A file alone is converted alone: what else lies in its folder need not be its model's.
  if (adapters_model || fs::is_directory(request.from) || request.from.extension() == ".json") {
    add_directory_files(dir.empty() ? fs::path(".") : dir, request, out, report);
  }
  const auto gguf = adapters_model ? std::nullopt : gguf_of(request.from, *parts.front().source);
  if (gguf) {
    add_gguf_files(*gguf, out);
    add_gguf_tokenizer(*gguf, out, report);
  }
  // What a start from it would be refused for is not written with success.
  const auto config = out.files.find("config.json");
  if (config != out.files.end() && parts.front().file.empty()) {
    const Json json = Json::parse(config->second);
    check_weights_of(json, (gguf ? *gguf : dir / "config.json").string(), *parts.front().source);
    find_towers_left(json, dir, *parts.front().source, report);
  }
  for (const auto& [name, text] : out.files) report.tokenizer |= is_tokenizer_file(name);
  write_hf_directory(request.out, out, request.directory);
  return report;
}

}  // namespace mgm
