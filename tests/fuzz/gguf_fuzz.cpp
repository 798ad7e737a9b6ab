// Any bytes as a GGUF file: a CheckpointError, or metadata and tensors that lie inside the file and
// can be unpacked; of its metadata a config.json, or a CheckpointError; of its vocabulary tokenizer
// files, or a DataError.
//
// sources: csrc/formats/gguf.cpp csrc/formats/gguf_types.cpp csrc/formats/dtype.cpp
//
// sources: csrc/checkpoint/gguf_config.cpp csrc/checkpoint/gguf_names.cpp
//
// sources: csrc/text/gguf_vocabulary.cpp csrc/text/gguf_tokenizer_files.cpp csrc/text/utf8.cpp
#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "checkpoint/gguf_config.h"
#include "checkpoint/gguf_names.h"
#include "formats/gguf.h"
#include "text/gguf_vocabulary.h"

namespace {

// Every element once, nested ones too; the sum keeps the reads.
size_t walk(const mgm::GgufValue& value) {
  size_t sum =
      value.integer().has_value() + value.boolean().has_value() + value.number().has_value();
  if (const auto text = value.string()) sum += std::count(text->begin(), text->end(), 'a');
  if (const auto elements = value.elements()) {
    for (const mgm::GgufValue& element : *elements) sum += walk(element);
  }
  return sum;
}

std::vector<float> values_of(const mgm::GgufTensor& tensor, const uint8_t* data) {
  if (!mgm::can_dequantise(tensor.type)) return {};
  std::vector<float> out((tensor.end - tensor.begin) / tensor.type.bytes * tensor.type.block);
  mgm::dequantise(tensor.type, data + tensor.begin, out.size(), out.data());
  return out;
}

// What the metadata become beside the weights, and the names these get.
size_t walk_config(const mgm::GgufFile& file, const uint8_t* data) {
  try {
    const auto floats = [&](const std::string& name) -> std::vector<float> {
      for (const mgm::GgufTensor& t : file.tensors) {
        if (t.name == name) return values_of(t, data);
      }
      std::abort();
    };
    size_t sum = mgm::gguf_to_hf_config(file, "input", floats).dump().size();
    const std::string architecture = mgm::gguf_architecture(file, "input");
    for (const mgm::GgufTensor& t : file.tensors) {
      const auto target = mgm::map_gguf_name(architecture, t.name);
      if (target) sum += target->name.size();
    }
    return sum;
  } catch (const mgm::CheckpointError&) {
    return 0;
  }
}

size_t walk_vocabulary(const mgm::GgufFile& file) {
  try {
    const auto files = mgm::gguf_tokenizer_files(mgm::read_gguf_vocabulary(file, "input"));
    if (files.size() != 2 || files[0].second.empty()) std::abort();
    return files[0].second.size();
  } catch (const mgm::DataError&) {
    return 0;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const mgm::GgufFile file = mgm::parse_gguf(bytes, "input");
    size_t sum = 0;
    for (const auto& [key, value] : file.metadata) sum += walk(value);
    sum += walk_vocabulary(file) + walk_config(file, data);
    for (const mgm::GgufTensor& t : file.tensors) {
      if (t.begin > t.end || t.end > size) std::abort();
      sum += values_of(t, data).size();
    }
    if (sum == SIZE_MAX) std::abort();
  } catch (const mgm::CheckpointError&) {
  }
  return 0;
}
