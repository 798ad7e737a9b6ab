// Text on its way through normalisation, every byte of which knows the bytes of the original that
// it stands for; token spans come from it. Text that nothing has changed is a view and costs
// nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

class AlignedText {
 public:
  // `text` lies at byte `offset` of the original and must outlive this.
  AlignedText(std::string_view text, int64_t offset) : view_(text), offset_(offset) {}

  std::string_view text() const { return changed_ ? std::string_view(own_) : view_; }
  // Where the part [begin, end) of this text begins and ends in the original.
  int64_t original_begin(size_t begin) const {
    if (!changed_) return offset_ + static_cast<int64_t>(begin);
    if (begin < origins_.size()) return origins_[begin].begin;
    return origins_.empty() ? offset_ : origins_.back().end;
  }
  int64_t original_end(size_t end) const {
    if (!changed_) return offset_ + static_cast<int64_t>(end);
    return end > 0 ? origins_[end - 1].end : original_begin(0);
  }

 private:
  friend class TextRewriter;
  struct Origin {
    int64_t begin, end;
  };

  std::string_view view_;
  int64_t offset_ = 0;
  bool changed_ = false;
  std::string own_;
  std::vector<Origin> origins_;  // of every byte of own_
};

// Builds a changed text from left to right.
class TextRewriter {
 public:
  explicit TextRewriter(const AlignedText& from);
  void keep(size_t begin, size_t end);  // these bytes as they are
  // `text` for the bytes [begin, end), which may be none.
  void put(std::string_view text, size_t begin, size_t end);
  AlignedText finish() { return std::move(to_); }

 private:
  const AlignedText& from_;
  AlignedText to_;
};

// The part [begin, end) of `text` with `prefix` before it.
AlignedText with_prefix(const AlignedText& text, size_t begin, size_t end, std::string_view prefix);

}  // namespace mgm
