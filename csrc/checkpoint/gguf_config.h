// The metadata of a GGUF file as the config.json that Hugging Face would have beside the same
// weights. What the format does not hold follows from the tensors (a tied head, biases, the factors
// of scaled rope) or from llama.cpp's own rules. Source: set_gguf_parameters() of
// convert_hf_to_gguf.py, src/llama-model.cpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "formats/gguf.h"

namespace mgm {

// `floats`: the values of a tensor by its name in the file. Throws CheckpointError naming `source`
// and the key that is missing or of another kind, an architecture that is not known (gguf_names.h),
// and rope scaling that cannot be expressed.
OrderedJson gguf_to_hf_config(
    const GgufFile& file, const std::string& source,
    const std::function<std::vector<float>(const std::string& tensor)>& floats);

// bos_token_id, eos_token_id and pad_token_id, those that are there: generation_config.json.
OrderedJson gguf_generation_config(const GgufFile& file);

// general.architecture, checked to be a known one.
std::string gguf_architecture(const GgufFile& file, const std::string& source);

}  // namespace mgm
