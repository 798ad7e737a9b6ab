// From llama.cpp's names of tensors to those of Hugging Face, with what its conversion did to the
// values and has to be undone. Architectures: llama (Mistral and Mixtral too, which llama.cpp calls
// llama), gemma, gemma2, qwen2, qwen3, phi3. Source: gguf-py/gguf/tensor_mapping.py and the
// modify_tensors() of convert_hf_to_gguf.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mgm {

enum class GgufUndo {
  kNone,
  kRowsOfHeads,    // attn_q: rows of each head lie as pairs, not as halves
  kRowsOfKvHeads,  // attn_k: the same
  kPlusOne,        // norms of Gemma are stored as 1 + w
};

struct GgufTarget {
  std::string name;      // Hugging Face's; "{}" stands for the expert where `experts`
  bool experts = false;  // one tensor of all experts, outermost dimension
  GgufUndo undo = GgufUndo::kNone;
};

// general.architecture of the known ones.
const std::vector<std::string>& gguf_architectures();

// Nothing for a name that is not known. `architecture` is one of the above.
std::optional<GgufTarget> map_gguf_name(const std::string& architecture, const std::string& name);

// Tensors that are part of the config, not weights: rope_freqs.weight, rope_factors_*.weight.
bool is_gguf_config_tensor(const std::string& name);

}  // namespace mgm
