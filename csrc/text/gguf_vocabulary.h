// The vocabulary in the metadata of a GGUF file (tokenizer.ggml.*), and the same as the tokenizer
// files that Hugging Face would have beside the model: tokenizer.json for the kind "gpt2"
// (byte-level BPE), tokenizer.model for "llama" (sentencepiece), with a tokenizer_config.json. What
// the file itself says of BOS, EOS, the blank in front and the pre-tokenizer counts. Source:
// src/llama-vocab.cpp of llama.cpp, set_vocab() of convert_hf_to_gguf.py. Throws DataError naming
// file and key.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "formats/gguf.h"
#include "text/tokenizer_settings.h"

namespace mgm {

// llama.cpp's token types, which are those of sentencepiece's model file.
enum class GgufTokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct GgufVocabulary {
  enum class Kind { kByteLevel, kSentencePiece };

  std::string source;
  Kind kind = Kind::kByteLevel;
  std::string architecture, name;  // of the model; may be empty
  std::string pre;                 // byte level; empty: the file names none
  std::vector<std::string> tokens;
  std::vector<GgufTokenType> types;
  std::vector<float> scores;                                // sentencepiece
  std::vector<std::pair<std::string, std::string>> merges;  // byte level
  bool add_bos = false, add_eos = false, add_space_prefix = false;
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;  // -1: none
  std::string chat_template;                       // empty: none
};

GgufVocabulary read_gguf_vocabulary(const GgufFile& file, const std::string& source);

// The first file is the vocabulary. An unknown `pre` is a DataError that lists the known ones.
TokenizerFiles gguf_tokenizer_files(const GgufVocabulary& vocabulary);

}  // namespace mgm
