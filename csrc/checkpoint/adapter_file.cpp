#include "checkpoint/adapter_file.h"

#include <set>

#include "base/error.h"
#include "checkpoint/weight_loader.h"

namespace mgm {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";

// Old files of PEFT name the adapter too: "lora_A.default.weight". Below an adapted head or
// embedding PEFT saves the weight itself, as "base_layer.weight".
std::optional<std::string> our_name(const std::string& name) {
  std::string bare = name.rfind(kPrefix, 0) == 0 ? name.substr(kPrefix.size()) : name;
  bare = replace_all(bare, ".base_layer.weight", ".weight");
  return replace_all(replace_all(bare, ".lora_A.default.weight", kA), ".lora_B.default.weight", kB);
}

// The first of `names` that is there; empty if none is.
fs::path find_file(const fs::path& dir, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (fs::exists(dir / name)) return dir / name;
  }
  return {};
}

fs::path adapter_file(const fs::path& dir) {
  const fs::path file = find_file(dir, {kAdapterFile, "adapter_model.bin"});
  if (file.empty()) {
    throw CheckpointError(dir.string(), ": holds no adapter; looked for ", kAdapterFile,
                          " and adapter_model.bin");
  }
  return file;
}

}  // namespace

bool is_adapter_weight(const std::string& name) { return name.ends_with(kA) || name.ends_with(kB); }

std::string peft_name(const std::string& name) { return std::string(kPrefix) + name; }

bool is_adapter_dir(const fs::path& dir) {
  return fs::exists(dir / kAdapterConfig) &&
         find_file(dir, {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                         "pytorch_model.bin.index.json"})
             .empty();
}

std::vector<OverlayLayer> open_adapter_layers(const fs::path& dir) {
  std::vector<OverlayLayer> layers = {{open_tensor_file(adapter_file(dir)), our_name}};
  const fs::path others = find_file(dir, {kOthersFile, "non_lora_trainables.bin"});
  if (!others.empty()) layers.push_back({open_tensor_file(others), our_name});
  return layers;
}

std::vector<OverlayLayer> open_adapter_layers(const fs::path& dir, bool tied_embeddings) {
  std::vector<OverlayLayer> layers = open_adapter_layers(dir);
  if (!tied_embeddings) return layers;
  OverlayLayer& adapter = layers.front();
  const OverlaySource named({adapter});
  if (!named.contains(kEmbeddingWeight)) return layers;
  if (!named.contains(kHeadWeight) || !equal_tensors(named, kHeadWeight, kEmbeddingWeight)) {
    throw CheckpointError(
        named.info(kEmbeddingWeight).file, ": holds an embedding (modules_to_save) ",
        named.contains(kHeadWeight) ? "and another head"
                                    : "without the head, which PEFT then leaves as the base has it",
        "; the model ties the two. Train it with PEFT's ensure_weight_tying, or give the model a "
        "head of its own: tie_word_embeddings false in its config.json, and lm_head.weight beside ",
        kEmbeddingWeight, " in its weights");
  }
  adapter.map = [](const std::string& name) {
    std::optional<std::string> ours = our_name(name);
    if (ours == kHeadWeight) ours.reset();
    return ours;
  };
  return layers;
}

std::vector<std::string> adapted_linears(const fs::path& dir) {
  std::set<std::string> out;
  const SourcePtr source = open_tensor_file(adapter_file(dir));
  for (const std::string& name : source->names()) {
    const std::string ours = *our_name(name);
    if (is_adapter_weight(ours)) out.insert(ours.substr(0, ours.size() - kA.size()));
  }
  if (out.empty())
    throw CheckpointError(dir.string(), ": its adapter file holds no lora_A, lora_B");
  return {out.begin(), out.end()};
}

}  // namespace mgm
