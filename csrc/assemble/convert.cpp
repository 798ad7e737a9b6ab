#include "assemble/convert.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "assemble/hf_config.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/gguf_source.h"
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
}

void add_directory_files(const fs::path& dir, const ConvertRequest& request, HfDirectory& out,
                         ConvertReport& report) {
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_weights_file(name)) continue;
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
  if (config == out.files.end() || !request.dtype) return;
  read_config_json(dir / "config.json");  // that it can be parsed
  OrderedJson json = OrderedJson::parse(config->second, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw CheckpointError((dir / "config.json").string(), ": is no JSON object");
  }
  set_dtype(json, *request.dtype);
  config->second = json.dump(2) + "\n";
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

// The GGUF file that `path` is or that open_model_dir takes from it.
std::optional<fs::path> gguf_of(const fs::path& path, const TensorSource& source) {
  if (fs::is_regular_file(path)) return is_gguf_file(path) ? std::optional(path) : std::nullopt;
  const fs::path opened = source.description();
  return fs::is_regular_file(opened) && is_gguf_file(opened) ? std::optional(opened) : std::nullopt;
}

at::Tensor as_type(const TensorSource& source, const TensorSpec& spec) {
  const at::Tensor value = source.read(spec.name);
  if (value.scalar_type() == spec.type) return value;
  at::Tensor out = value.to(spec.type);
  if (spec.type == at::kHalf && !at::isfinite(out).all().item<bool>() &&
      at::isfinite(value).all().item<bool>()) {
    throw CheckpointError(source.info(spec.name).file, ": tensor '", spec.name,
                          "' has values beyond fp16's 65504 (the largest is ",
                          value.abs().max().item<double>(), "); take --dtype bf16 or fp32");
  }
  return out;
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
  std::error_code ignored;
  if (fs::exists(request.out) && fs::equivalent(request.from, request.out, ignored)) {
    throw ConfigError("--out: ", request.out.string(), " is the source itself");
  }
  const fs::path around = request.from.has_parent_path() ? request.from.parent_path() : ".";
  if (fs::exists(request.out) && !fs::is_directory(request.from) &&
      fs::equivalent(around, request.out, ignored)) {
    throw ConfigError("--out: ", request.out.string(), " is the folder of the source, which would ",
                      "be replaced with it; choose another folder");
  }
  check_hf_target(request.out, request.directory.replace);
  const SourcePtr source = open_weights(request.from);
  ConvertReport report;
  HfDirectory out;
  std::map<std::string, TensorSpec> by_name;
  for (const std::string& name : source->names()) {
    const TensorInfo& info = source->info(name);
    const bool is_float = at::isFloatingType(info.type) && hf_dtype(info.type);
    const at::ScalarType type = is_float ? request.dtype.value_or(info.type) : info.type;
    out.tensors.push_back({name, type, info.shape});
    by_name[name] = out.tensors.back();
    report.bytes += out.tensors.back().bytes();
    report.converted += dtype_name(type) != info.dtype;
  }
  report.tensors = out.tensors.size();
  report.not_tensors = source->not_tensors();
  out.get = [&](const std::string& name) { return as_type(*source, by_name.at(name)); };
  const fs::path dir = fs::is_directory(request.from) ? request.from : request.from.parent_path();
  // A file alone is converted alone: what else lies in its folder need not be its model's.
  if (fs::is_directory(request.from) || request.from.extension() == ".json") {
    add_directory_files(dir.empty() ? fs::path(".") : dir, request, out, report);
  }
  if (const auto gguf = gguf_of(request.from, *source)) {
    add_gguf_files(*gguf, out);
    add_gguf_tokenizer(*gguf, out, report);
  }
  for (const auto& [name, text] : out.files) report.tokenizer |= is_tokenizer_file(name);
  write_hf_directory(request.out, out, request.directory);
  return report;
}

}  // namespace mgm
