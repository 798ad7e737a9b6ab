#include "text/tokenizer.h"

#include "text/utf8.h"

namespace mgm {

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  for (const TokenSpan& token : encode_spans(text)) ids.push_back(token.id);
  return ids;
}

std::string StreamDecoder::push(int32_t id) {
  ids_.push_back(id);
  const std::string all = tokenizer_.decode(ids_, /*skip_special=*/true);
  // A character spelled in byte pieces decodes to U+FFFD until its last byte is there.
  std::string_view certain = std::string_view(all).substr(0, whole_characters(all));
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  while (certain.size() >= kReplacement.size() &&
         certain.substr(certain.size() - kReplacement.size()) == kReplacement) {
    certain.remove_suffix(kReplacement.size());
  }
  if (certain.size() <= text_.size()) return "";
  std::string fresh(certain.substr(text_.size()));
  text_ = std::string(certain);
  return fresh;
}

std::string StreamDecoder::finish() {
  const std::string all = tokenizer_.decode(ids_, /*skip_special=*/true);
  std::string rest = all.size() > text_.size() ? all.substr(text_.size()) : "";
  text_ = all;
  return rest;
}

}  // namespace mgm
