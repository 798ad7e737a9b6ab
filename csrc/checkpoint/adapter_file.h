// The weights of low-rank adapters in PEFT's layout (peft 0.18, utils/save_and_load.py): a
// directory with adapter_config.json (assemble/adapter_dir.h), adapter_model.safetensors, and, as
// LLaVA leaves it, a file of what trained beside the adapters. Files of both sources are read; ours
// are safetensors.
//
// Names: ours are "<linear>.lora_A.weight" and "<linear>.lora_B.weight"; PEFT puts
// "base_model.model." in front.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/tensor_source.h"

namespace mgm {

inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline constexpr const char* kAdapterFile = "adapter_model.safetensors";
inline constexpr const char* kOthersFile = "non_lora_trainables.safetensors";

bool is_adapter_weight(const std::string& name);
std::string peft_name(const std::string& name);

// Whether a folder is an adapter and nothing more: it has adapter_config.json and no model.
bool is_adapter_dir(const fs::path& dir);

// adapter_model.safetensors or .bin, then non_lora_trainables.safetensors or .bin where there is
// one, under our names; what covers a base model's weights keeps its name. Layers for an overlay
// whose first layers are the base. Throws CheckpointError.
std::vector<OverlayLayer> open_adapter_layers(const fs::path& dir);
// The same for a model whose head may be tied to its embedding. PEFT's file replaces only the one
// it names: an embedding there without an equal head beside it would untie them, a CheckpointError.
std::vector<OverlayLayer> open_adapter_layers(const fs::path& dir, bool tied_embeddings);

// The linears that the adapters of `dir` belong to, sorted.
std::vector<std::string> adapted_linears(const fs::path& dir);

}  // namespace mgm
