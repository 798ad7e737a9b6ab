// The decoders of a tokenizer.json, which turn tokens back into text: ByteLevel, ByteFallback,
// Replace, Strip, Metaspace, Fuse, Sequence. Equal to Hugging Face's tokenizers; bytes that are no
// UTF-8 become U+FFFD.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "text/component.h"

namespace mgm {

struct TokenDecoder {
  std::vector<std::function<void(std::vector<std::string>&)>> steps;
  bool byte_fallback = false;  // a run of <0xNN> is decoded as a whole
  bool is_there = false;       // without one tokens are joined by blanks
};

bool is_fallback_byte(const std::string& token);  // <0xNN>

TokenDecoder read_token_decoder(const Component& component);
TokenDecoder byte_level_decoder();

// The text of the tokens.
std::string decode_tokens(const TokenDecoder& decoder, std::vector<std::string> tokens);

}  // namespace mgm
