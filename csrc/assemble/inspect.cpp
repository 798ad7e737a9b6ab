#include "assemble/inspect.h"

#include <algorithm>
#include <functional>
#include <set>

#include "assemble/adapter_dir.h"
#include "assemble/convert.h"
#include "assemble/hf_config.h"
#include "assemble/weights_check.h"
#include "base/error.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/gguf_source.h"
#include "config/run_config.h"
#include "formats/gguf.h"
#include "text/chat_template.h"

namespace mgm {
namespace {

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

SourcePtr open_as_stored(const fs::path& path) {
  if (fs::is_regular_file(path) && is_gguf_file(path)) return open_gguf_as_stored(path);
  if (is_adapter_dir(path)) return std::make_shared<OverlaySource>(open_adapter_layers(path));
  return open_weights(path);
}

void read_tensors(const TensorSource& source, Inspection& out) {
  std::map<std::string, size_t> parts;
  for (const std::string& name : source.names()) {
    const TensorInfo& info = source.info(name);
    uint64_t elements = 1;
    for (const int64_t size : info.shape) elements *= static_cast<uint64_t>(size);
    const std::string file = fs::path(info.file).filename().string();
    out.tensors.push_back({name, info.dtype, info.shape, info.bytes, file});
    out.parameters += elements;
    out.bytes += info.bytes;
    ++out.dtypes[info.dtype];
    ++out.files[file];
    ++parts[part_of(name)];
  }
  for (const auto& [name, count] : parts) out.parts.push_back({name, count, "inside"});
  for (const std::string& what : source.not_tensors()) {
    out.notes.push_back("no tensor: " + fs::path(what).filename().string());
  }
}

std::string text_field(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it != json.end() && it->is_string() ? it->get<std::string>() : "";
}

void read_config(const Json& json, Inspection& out) {
  out.architecture = text_field(json, "model_type");
  const auto classes = json.find("architectures");
  if (classes != json.end() && classes->is_array() && !classes->empty() &&
      classes->front().is_string()) {
    out.class_name = classes->front().get<std::string>();
  }
  if (out.class_name.starts_with("MGM")) out.generation = "mgm";
  if (out.class_name.starts_with("MiniGemini")) out.generation = "mini_gemini";
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                          "num_local_experts", "max_position_embeddings", "image_size_aux"}) {
    const auto it = json.find(key);
    if (it != json.end() && it->is_number_integer()) out.sizes[key] = it->get<int64_t>();
  }
}

// A folder that a config of `dir` names: relative to the current one, else to `dir`.
std::string place_of(const std::string& named, const fs::path& dir) {
  for (const fs::path& candidate : {fs::path(named), dir / named}) {
    if (fs::is_directory(candidate)) return "beside: " + candidate.string();
  }
  return "missing: " + named;
}

// Towers that config.json names and the weights lack: as load_model looks for them.
void find_towers(const Json& json, const fs::path& dir, Inspection& out) {
  for (const auto& [key, part] :
       {std::pair{"mm_vision_tower", "vision tower"}, {"mm_vision_tower_aux", "HR tower"}}) {
    const std::string named = text_field(json, key);
    const auto inside = [&, name = part](const InspectedPart& p) { return p.name == name; };
    if (named.empty() || std::any_of(out.parts.begin(), out.parts.end(), inside)) continue;
    const std::string place = place_of(named, dir);
    if (place.starts_with("missing")) {
      out.notes.push_back(cat("no ", part, ": config.json names ", named, ", which is not there"));
    }
    out.parts.push_back({part, 0, place});
  }
}

void read_adapter(const fs::path& dir, Inspection& out) {
  try {
    out.sizes["r"] = read_adapter_config(dir).rank;
    const Json json = read_config_json(dir / kAdapterConfig);
    const std::string base = text_field(json, "base_model_name_or_path");
    if (!base.empty()) out.parts.push_back({"base model", 0, place_of(base, dir)});
  } catch (const CheckpointError& e) {
    out.notes.push_back(cat("cannot be loaded: ", e.what()));
  }
}

void read_open_clip(const fs::path& file, Inspection& out) {
  const Json json = read_config_json(file);
  const Json::json_pointer name("/model_cfg/vision_cfg/timm_model_name");
  if (json.contains(name) && json.at(name).is_string()) {
    out.architecture = json.at(name).get<std::string>();
  }
}

std::string kind_of(const Inspection& i, const Json& config) {
  const auto has = [&](std::string_view part) {
    return std::any_of(i.parts.begin(), i.parts.end(),
                       [&](const InspectedPart& p) { return p.name == part && p.tensors > 0; });
  };
  if (has("adapter")) return "LoRA adapter";
  if (config.contains("mm_vision_tower")) return "Mini-Gemini model";
  if (has("OpenCLIP ConvNeXt")) return "OpenCLIP ConvNeXt";
  if (has("CLIP vision tower")) return "CLIP";
  if (has("projector")) return has("language model") ? "Mini-Gemini model" : "projector file";
  return has("language model") ? "language model" : "weights";
}

void read_gguf(const fs::path& file, const GgufFile& parsed, Inspection& out) {
  out.format = cat("GGUF ", parsed.version);
  const auto name = parsed.metadata.find("general.architecture");
  if (name != parsed.metadata.end()) out.architecture = name->second.string().value_or("");
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}) {
    const auto value = parsed.metadata.find(key);
    if (value == parsed.metadata.end()) continue;
    out.tokenizer_files.push_back(cat(key, " (", value->second.count, ")"));
  }
  try {
    const Json config = Json::parse(read_gguf_configs(file).config.dump());
    read_config(config, out);
    check_weights_of(config, file.string(), *open_gguf(file));
  } catch (const CheckpointError& e) {
    out.notes.push_back(cat("cannot be loaded: ", e.what()));
  }
}

// The format that load_model would take for the directory.
std::string format_name(const Json& config) {
  const auto own = config.find("mgm");
  const bool has = own != config.end() && own->is_object();
  if (has && own->contains("template") && own->at("template").is_object()) {
    return own->at("template").dump();
  }
  const std::string name = has ? text_field(*own, "template") : "";
  return name.empty() ? RunConfig().text.template_name : name;
}

std::string compare_formats(const ChatTemplate& theirs, const std::string& name,
                            const Tokenizer& tokenizer) {
  using Outcome = TemplateComparison::Outcome;
  const ConversationTemplate ours = load_template(name);
  const std::string taken =
      name.starts_with("{") ? ours.name : name;  // an alias as it stands there
  if (!theirs.unusable.empty()) {
    return cat(theirs.source, ": ", theirs.unusable, "; the format ", taken, " is taken here");
  }
  const TemplateComparison first = compare_chat_template(theirs, ours, tokenizer);
  if (first.outcome == Outcome::kSame) return cat(theirs.source, ": as the format ", taken);
  const bool differs = first.outcome == Outcome::kDiffers;
  std::vector<std::string> same;
  for (const std::string& other : template_names()) {
    const auto result = compare_chat_template(theirs, load_template(other), tokenizer);
    if (result.outcome == Outcome::kSame) same.push_back(other);
  }
  return cat(theirs.source, differs ? ": differs from" : ": not compared with", " the format ",
             taken, " that is taken here: ", first.what,
             "; built-in formats like it: ", same.empty() ? "none" : join(same, ", "));
}

void read_chat_template(const fs::path& path, const Json& config, Inspection& out) {
  std::optional<ChatTemplate> theirs;
  try {
    theirs = find_chat_template(path);
    if (!theirs) return;
    const auto tokenizer = load_tokenizer(path.string());
    out.chat_template = compare_formats(*theirs, format_name(config), *tokenizer);
  } catch (const Error& e) {
    out.chat_template = cat(theirs ? theirs->source + ": " : "", "not compared: ", e.what());
  }
}

std::string format_of(const Inspection& out) {
  std::set<std::string> formats;
  for (const auto& [file, count] : out.files) {
    formats.insert(fs::path(file).extension() == ".safetensors" ? "safetensors" : "torch");
  }
  return join({formats.begin(), formats.end()}, " and ");
}

void read_directory(const fs::path& dir, Json& config, Inspection& out) {
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_tokenizer_file(name) || name == "tokenizer_config.json" ||
        name == "special_tokens_map.json" || name == "added_tokens.json" ||
        name.starts_with("chat_template.")) {
      out.tokenizer_files.push_back(name);
    }
  }
  std::sort(out.tokenizer_files.begin(), out.tokenizer_files.end());
  if (is_adapter_dir(dir)) read_adapter(dir, out);
  const fs::path open_clip = dir / "open_clip_config.json";
  if (fs::exists(open_clip)) read_open_clip(open_clip, out);
  const fs::path file = dir / "config.json";
  if (!fs::exists(file)) return;
  try {
    config = read_config_json(file);
  } catch (const CheckpointError&) {
    config = Json();
  }
  if (config.is_object()) {
    read_config(config, out);
    find_towers(config, dir, out);
  } else {
    config = Json::object();
    out.notes.push_back("config.json is no JSON object");
  }
}

// What a start from the directory would be refused for.
void note_misfit(const fs::path& dir, const Json& config, const TensorSource& source,
                 Inspection& out) {
  if (config.empty() || is_adapter_dir(dir)) return;
  try {
    check_weights_of(config, (dir / "config.json").string(), source);
  } catch (const CheckpointError& e) {
    out.notes.push_back(cat("cannot be loaded: ", e.what()));
  }
}

}  // namespace

std::string part_of(const std::string& name) {
  if (is_adapter_weight(name)) return "adapter";
  if (contains(name, "mm_projector")) return "projector";
  if (contains(name, "vlm_uni_")) return "mining";
  if (contains(name, "vision_tower_aux.")) return "HR tower";
  if (contains(name, "vision_tower.")) return "vision tower";
  if (contains(name, "visual.trunk.")) return "OpenCLIP ConvNeXt";
  if (name.starts_with("vision_model.")) return "CLIP vision tower";
  if (name.starts_with("text_model.")) return "CLIP text tower";
  if (name.starts_with("model.") || name.starts_with("lm_head.") || name.starts_with("blk.") ||
      name.starts_with("token_embd.") || name.starts_with("output")) {
    return "language model";
  }
  return "other";
}

Inspection inspect_weights(const fs::path& given) {
  fs::path path = given;
  if (fs::is_directory(path)) {
    const std::vector<fs::path> ggufs = gguf_files(path);
    // Only where there is nothing else, as open_model_dir does.
    if (ggufs.size() == 1 && open_weights(path)->description() == ggufs[0].string()) {
      path = ggufs[0];
    }
  }
  const SourcePtr source = open_as_stored(path);
  Inspection out;
  out.path = given.string();
  read_tensors(*source, out);
  Json config = Json::object();
  if (fs::is_directory(path)) {
    read_directory(path, config, out);
    note_misfit(path, config, *source, out);
  }
  if (fs::is_directory(given) || is_gguf_file(given)) read_chat_template(given, config, out);
  out.format = format_of(out);
  if (fs::is_regular_file(path) && is_gguf_file(path)) {
    const MappedFile mapped(path);
    read_gguf(
        path,
        parse_gguf({reinterpret_cast<const char*>(mapped.data()), mapped.size()}, path.string()),
        out);
  }
  out.kind = kind_of(out, config);
  return out;
}

OrderedJson to_json(const Inspection& i, bool tensors) {
  OrderedJson j;
  j["path"] = i.path;
  j["kind"] = i.kind;
  j["format"] = i.format;
  j["architecture"] = i.architecture;
  j["class_name"] = i.class_name;
  j["generation"] = i.generation;
  j["config"] = i.sizes;
  j["tensors"] = i.tensors.size();
  j["parameters"] = i.parameters;
  j["bytes"] = i.bytes;
  j["dtypes"] = i.dtypes;
  j["files"] = i.files;
  j["tokenizer"] = i.tokenizer_files;
  j["chat_template"] = i.chat_template;
  j["parts"] = OrderedJson::array();
  for (const InspectedPart& p : i.parts) {
    j["parts"].push_back({{"name", p.name}, {"tensors", p.tensors}, {"place", p.place}});
  }
  j["notes"] = i.notes;
  if (!tensors) return j;
  j["list"] = OrderedJson::array();
  for (const InspectedTensor& t : i.tensors) {
    j["list"].push_back({{"name", t.name},
                         {"dtype", t.dtype},
                         {"shape", t.shape},
                         {"bytes", t.bytes},
                         {"file", t.file}});
  }
  return j;
}

}  // namespace mgm
