// The pre-tokenizers of a tokenizer.json, which cut text into the words that byte-pair encoding
// works on: Split, ByteLevel, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation,
// Sequence. Equal to Hugging Face's tokenizers. ByteLevel's spelling of bytes as characters is not
// carried out: the vocabulary is read as bytes instead, so nothing may follow ByteLevel.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "text/aligned_text.h"
#include "text/component.h"
#include "text/regex.h"

namespace mgm {

// A part [begin, end) of a text.
struct Piece {
  const AlignedText* text;
  size_t begin, end;
  std::string_view view() const { return text->text().substr(begin, end - begin); }
};

struct Pieces {
  std::vector<Piece> list;
  std::deque<AlignedText> made;  // texts that a step changed
};

struct PreTokenizer {
  std::vector<std::function<void(Pieces&)>> steps;
  bool byte_level = false;  // words are bytes
};

PreTokenizer read_pre_tokenizer(const Component& component);

// One Split with behaviour Isolated.
PreTokenizer isolating_pre_tokenizer(const Regex& pattern);

}  // namespace mgm
