// Byte-pair encoding of one word, built from a vocabulary and ranked merges in memory, whatever
// file they come from. The result is that of Hugging Face's tokenizers (models/bpe): the merge of
// lowest rank first, the leftmost of equals. Long words cost n log n. A small cache holds recent
// words; encode() may run on several threads at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mgm {

// Tokens by id and ids by token; ids may have holes.
class Vocabulary {
 public:
  // Throws DataError beginning with `where` on an id or a token that comes twice, a negative id, or
  // one far beyond the number of tokens.
  Vocabulary(std::vector<std::pair<std::string, int32_t>> tokens, const std::string& where);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;

  int32_t find(std::string_view token) const {  // -1: none
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }
  bool has(int32_t id) const { return id >= 0 && id < end_id() && present_[size_t(id)]; }
  const std::string& token(int32_t id) const { return tokens_[size_t(id)]; }
  int32_t end_id() const { return static_cast<int32_t>(tokens_.size()); }  // the largest id + 1

 private:
  std::vector<std::string> tokens_;
  std::vector<bool> present_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views of tokens_
};

struct BpeMerge {
  int32_t left, right, merged;
  int32_t rank;
};

struct BpeOptions {
  bool bytes = false;          // a word begins as its bytes; otherwise as its characters
  bool byte_fallback = false;  // an unknown character becomes <0xNN> tokens where all of them exist
  bool fuse_unk = false;       // neighbouring unknown characters become one unknown token
  bool ignore_merges = false;  // a word that is a token is that token
  std::string unk_token;       // empty: an unknown character gives no token
  std::string continuing_subword_prefix, end_of_word_suffix;
};

// Merges of a list of token pairs, ranked by their place in it. Throws DataError beginning with
// `where` if a part or the whole is not in the vocabulary.
std::vector<BpeMerge> listed_merges(const std::vector<std::pair<std::string, std::string>>& pairs,
                                    const Vocabulary& vocabulary, const BpeOptions& options,
                                    const std::string& where);

// Every way to join two tokens into a third, ranked by the third's id (tiktoken's rule).
std::vector<BpeMerge> merges_of_ranks(const Vocabulary& vocabulary);

// A token and the bytes of the word it covers.
struct BpeToken {
  int32_t id;
  uint32_t begin, end;
};

class Bpe {
 public:
  // Throws DataError beginning with `where` if the unknown token is not in the vocabulary.
  Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options,
      const std::string& where);
  ~Bpe();

  // Appends the tokens of a word (valid UTF-8 unless it begins as bytes).
  void encode(std::string_view word, std::vector<BpeToken>& out) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }
  const BpeOptions& options() const { return options_; }

 private:
  struct Scratch;
  struct CacheSlot;
  struct PairEntry {
    uint64_t pair = ~uint64_t{0};
    int32_t rank = 0, merged = 0;
  };

  const PairEntry* find_pair(int32_t left, int32_t right) const;
  void add_pair(const BpeMerge& merge);
  void encode_uncached(std::string_view word, std::vector<BpeToken>& out) const;
  void first_symbols(std::string_view word, std::vector<BpeToken>& out) const;
  void character_symbols(std::string_view word, std::vector<BpeToken>& out) const;
  int32_t character_id(std::string_view word, size_t begin, size_t end) const;
  bool append_bytes(std::string_view word, size_t begin, size_t end,
                    std::vector<BpeToken>& out) const;
  void merge_short(std::vector<BpeToken>& symbols) const;
  void merge_long(std::vector<BpeToken>& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  int32_t unk_ = -1;
  int32_t byte_id_[256];           // of the one-byte token; -1: none
  int32_t fallback_id_[256];       // of <0xNN>; -1: none
  std::vector<int32_t> short_id_;  // of the characters below U+10000
  std::vector<PairEntry> pairs_;   // open addressing, a power of two
  int pair_shift_ = 0;
  std::unique_ptr<CacheSlot[]> cache_;
};

}  // namespace mgm
