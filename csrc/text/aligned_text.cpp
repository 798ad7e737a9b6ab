#include "text/aligned_text.h"

namespace mgm {

TextRewriter::TextRewriter(const AlignedText& from)
    : from_(from), to_(std::string_view(), from.offset_) {
  to_.changed_ = true;
  to_.own_.reserve(from.text().size() + 16);
  to_.origins_.reserve(from.text().size() + 16);
}

void TextRewriter::keep(size_t begin, size_t end) {
  to_.own_ += from_.text().substr(begin, end - begin);
  for (size_t i = begin; i < end; ++i) {
    to_.origins_.push_back({from_.original_begin(i), from_.original_end(i + 1)});
  }
}

void TextRewriter::put(std::string_view text, size_t begin, size_t end) {
  const int64_t first = from_.original_begin(begin);
  const int64_t last = begin < end ? from_.original_end(end) : first;
  to_.own_ += text;
  to_.origins_.insert(to_.origins_.end(), text.size(), {first, last});
}

AlignedText with_prefix(const AlignedText& text, size_t begin, size_t end,
                        std::string_view prefix) {
  TextRewriter out(text);
  out.put(prefix, begin, begin);
  out.keep(begin, end);
  return out.finish();
}

}  // namespace mgm
