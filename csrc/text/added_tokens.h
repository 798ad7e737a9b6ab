// Added and special tokens: found in text before anything else sees it, the longest at the leftmost
// place. Follows AddedVocabulary of Hugging Face's tokenizers: tokens that are not `normalized` are
// looked for in the text itself, the others in the normalized text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mgm {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool lstrip = false, rstrip = false;  // takes the white space beside it
  bool single_word = false;             // only where no word character is beside it
  bool normalized = false;
};

class AddedTokenFinder {
 public:
  // `spelling` is what is looked for; the content, or what the normalizer makes of it.
  void add(const std::string& spelling, const AddedToken& token);

  struct Part {
    size_t begin, end;
    const AddedToken* token;  // null: other text
  };
  // The whole text in parts, in order; with `split_special` special tokens are text. Pointers live
  // as long as this.
  std::vector<Part> split(std::string_view text, bool split_special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  // The longest spelling that begins at byte `at`: its length, 0: none.
  size_t longest_at(std::string_view text, size_t at, int32_t& token) const;

  // A trie: (node, byte) -> node. Node 0 is the root.
  std::unordered_map<uint64_t, int32_t> edges_;
  std::vector<int32_t> token_of_node_{-1};
  std::array<bool, 256> begins_{};  // bytes that a spelling begins with
  std::vector<AddedToken> tokens_;
};

}  // namespace mgm
