// The normalizers of a tokenizer.json: NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, Sequence.
// Equal to Hugging Face's tokenizers, with the Unicode tables of utf8proc. Reading throws DataError
// naming file and component on any other.
#pragma once

#include <functional>
#include <vector>

#include "text/aligned_text.h"
#include "text/component.h"
#include "text/regex.h"

namespace mgm {

using Normalizer = std::vector<std::function<void(AlignedText&)>>;  // one after the other

Normalizer read_normalizer(const Component& component);

void normalize(const Normalizer& normalizer, AlignedText& text);

// `pattern` of a component: {"String": text} or {"Regex": expression}.
Regex read_pattern(const Component& component);

}  // namespace mgm
