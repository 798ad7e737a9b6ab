#include "text/bpe.h"

#include <utf8proc.h>

#include <algorithm>
#include <functional>
#include <queue>

#include "base/error.h"

namespace mgm {
namespace {

constexpr size_t kCacheSlots = 1 << 14;
constexpr size_t kCachedWordBytes = 64;   // longer words seldom come again
constexpr size_t kShortWordSymbols = 48;  // up to here a scan beats the queue
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
constexpr int32_t kNone = -1;

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
}

size_t character_length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::pair<std::string, int32_t>> tokens,
                       const std::string& where) {
  int32_t largest = -1;
  for (const auto& [token, id] : tokens) {
    if (id < 0) throw DataError(where, ": token '", token, "' has the id ", id);
    largest = std::max(largest, id);
  }
  if (static_cast<size_t>(largest) + 1 > 16 * tokens.size() + 65536) {
    throw DataError(where, ": id ", largest, " in a vocabulary of ", tokens.size(), " tokens");
  }
  tokens_.resize(size_t(largest + 1));
  present_.resize(tokens_.size());
  ids_.reserve(tokens.size());
  for (auto& [token, id] : tokens) {
    if (present_[size_t(id)]) {
      throw DataError(where, ": tokens '", tokens_[size_t(id)], "' and '", token,
                      "' have the same id ", id);
    }
    present_[size_t(id)] = true;
    tokens_[size_t(id)] = std::move(token);
    if (!ids_.emplace(tokens_[size_t(id)], id).second) {
      throw DataError(where, ": token '", tokens_[size_t(id)], "' has the ids ",
                      ids_.at(tokens_[size_t(id)]), " and ", id);
    }
  }
}

std::vector<BpeMerge> listed_merges(const std::vector<std::pair<std::string, std::string>>& pairs,
                                    const Vocabulary& vocabulary, const BpeOptions& options,
                                    const std::string& where) {
  std::vector<BpeMerge> merges;
  merges.reserve(pairs.size());
  std::string whole;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto& [left, right] = pairs[i];
    const size_t prefix = std::min(options.continuing_subword_prefix.size(), right.size());
    whole = left + right.substr(prefix);
    const BpeMerge merge{vocabulary.find(left), vocabulary.find(right), vocabulary.find(whole),
                         static_cast<int32_t>(i)};
    for (const auto& [id, text] : {std::pair<int32_t, const std::string&>{merge.left, left},
                                   {merge.right, right},
                                   {merge.merged, whole}}) {
      if (id >= 0) continue;
      throw DataError(where, ": merge ", i + 1, " ('", left, "' and '", right, "'): '", text,
                      "' is not in the vocabulary");
    }
    merges.push_back(merge);
  }
  return merges;
}

std::vector<BpeMerge> merges_of_ranks(const Vocabulary& vocabulary) {
  std::vector<BpeMerge> merges;
  for (int32_t id = 0; id < vocabulary.end_id(); ++id) {
    if (!vocabulary.has(id)) continue;
    const std::string_view token = vocabulary.token(id);
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const int32_t left = vocabulary.find(token.substr(0, cut));
      const int32_t right = left < 0 ? -1 : vocabulary.find(token.substr(cut));
      if (right >= 0) merges.push_back({left, right, id, id});
    }
  }
  return merges;
}

// A word and its tokens. `busy` is only ever tried: who finds it taken goes without the cache.
struct Bpe::CacheSlot {
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  std::string word;
  std::vector<BpeToken> tokens;
};

Bpe::Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options,
         const std::string& where)
    : vocabulary_(std::move(vocabulary)),
      options_(std::move(options)),
      cache_(std::make_unique<CacheSlot[]>(kCacheSlots)) {
  if (!options_.unk_token.empty()) {
    unk_ = vocabulary_.find(options_.unk_token);
    if (unk_ < 0) {
      throw DataError(where, ": the unknown token '", options_.unk_token,
                      "' is not in the vocabulary");
    }
  }
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    byte_id_[b] = vocabulary_.find(std::string_view(&byte, 1));
    fallback_id_[b] = vocabulary_.find(strf("<0x%02X>", unsigned(b)));
  }
  if (!options_.bytes) {
    short_id_.assign(0x10000, kNone);
    for (int32_t c = 0; c < 0x10000; ++c) {
      utf8proc_uint8_t buffer[4];
      const auto length = utf8proc_encode_char(c, buffer);
      short_id_[size_t(c)] = vocabulary_.find(
          {reinterpret_cast<const char*>(buffer), static_cast<size_t>(std::max(length, {}))});
    }
  }
  int bits = 4;
  while ((size_t{1} << bits) < 2 * merges.size()) ++bits;
  pair_shift_ = 64 - bits;
  pairs_.resize(size_t{1} << bits);
  for (const BpeMerge& merge : merges) add_pair(merge);
}

Bpe::~Bpe() = default;

void Bpe::add_pair(const BpeMerge& merge) {
  const uint64_t key = pair_key(merge.left, merge.right);
  size_t at = key * kGolden >> pair_shift_;
  while (pairs_[at].pair != key && pairs_[at].pair != ~uint64_t{0}) {
    at = (at + 1) & (pairs_.size() - 1);
  }
  pairs_[at] = {key, merge.rank, merge.merged};  // a pair listed twice has its later rank
}

const Bpe::PairEntry* Bpe::find_pair(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t at = key * kGolden >> pair_shift_;; at = (at + 1) & (pairs_.size() - 1)) {
    if (pairs_[at].pair == key) return &pairs_[at];
    if (pairs_[at].pair == ~uint64_t{0}) return nullptr;
  }
}

void Bpe::encode(std::string_view word, std::vector<BpeToken>& out) const {
  if (word.empty()) return;
  if (options_.ignore_merges) {
    const int32_t id = vocabulary_.find(word);
    if (id >= 0) {
      out.push_back({id, 0, static_cast<uint32_t>(word.size())});
      return;
    }
  }
  if (word.size() > kCachedWordBytes) {
    encode_uncached(word, out);
    return;
  }
  CacheSlot& slot = cache_[std::hash<std::string_view>{}(word) % kCacheSlots];
  if (slot.busy.test_and_set(std::memory_order_acquire)) {
    encode_uncached(word, out);
    return;
  }
  if (slot.word != word) {
    slot.tokens.clear();
    encode_uncached(word, slot.tokens);
    slot.word = word;
  }
  out.insert(out.end(), slot.tokens.begin(), slot.tokens.end());
  slot.busy.clear(std::memory_order_release);
}

void Bpe::encode_uncached(std::string_view word, std::vector<BpeToken>& out) const {
  static thread_local std::vector<BpeToken> symbols;
  symbols.clear();
  first_symbols(word, symbols);
  if (symbols.size() <= kShortWordSymbols) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

void Bpe::first_symbols(std::string_view word, std::vector<BpeToken>& out) const {
  if (!options_.bytes) return character_symbols(word, out);
  for (size_t i = 0; i < word.size(); ++i) {
    const int32_t id = byte_id_[static_cast<uint8_t>(word[i])];
    const int32_t known = id >= 0 ? id : unk_;
    const bool fused = id < 0 && options_.fuse_unk && !out.empty() && out.back().id == unk_;
    if (fused) {
      out.back().end = static_cast<uint32_t>(i + 1);
    } else if (known >= 0) {
      out.push_back({known, static_cast<uint32_t>(i), static_cast<uint32_t>(i + 1)});
    }
  }
}

// BPE::merge_word, in whose order an unknown character is written when a known one comes: byte
// tokens overtake it.
void Bpe::character_symbols(std::string_view word, std::vector<BpeToken>& out) const {
  BpeToken unknown{kNone, 0, 0};
  const auto flush = [&] {
    if (unknown.id >= 0) out.push_back(unknown);
    unknown.id = kNone;
  };
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = std::min(begin + character_length(word[begin]), word.size());
    const int32_t id = character_id(word, begin, end);
    if (id >= 0) {
      flush();
      out.push_back({id, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
    } else if (options_.byte_fallback && append_bytes(word, begin, end, out)) {
      // spelled in bytes
    } else if (unk_ >= 0) {
      if (unknown.id >= 0 && options_.fuse_unk) {
        unknown.end = static_cast<uint32_t>(end);
      } else {
        flush();
        unknown = {unk_, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)};
      }
    }
    begin = end;
  }
  flush();
}

int32_t Bpe::character_id(std::string_view word, size_t begin, size_t end) const {
  const bool prefixed = begin > 0 && !options_.continuing_subword_prefix.empty();
  const bool suffixed = end == word.size() && !options_.end_of_word_suffix.empty();
  const std::string_view character = word.substr(begin, end - begin);
  if (prefixed || suffixed) {
    return vocabulary_.find(cat(prefixed ? options_.continuing_subword_prefix : "", character,
                                suffixed ? options_.end_of_word_suffix : ""));
  }
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(character[i]) & 0x3F; };
  const auto lead = static_cast<uint8_t>(character[0]);
  switch (character.size()) {
    case 1:
      return short_id_[lead];
    case 2:
      return short_id_[(lead & 0x1Fu) << 6 | byte(1)];
    case 3:
      return short_id_[(lead & 0x0Fu) << 12 | byte(1) << 6 | byte(2)];
    default:
      return vocabulary_.find(character);
  }
}

bool Bpe::append_bytes(std::string_view word, size_t begin, size_t end,
                       std::vector<BpeToken>& out) const {
  for (size_t i = begin; i < end; ++i) {
    if (fallback_id_[static_cast<uint8_t>(word[i])] < 0) return false;
  }
  for (size_t i = begin; i < end; ++i) {
    out.push_back({fallback_id_[static_cast<uint8_t>(word[i])], static_cast<uint32_t>(i),
                   static_cast<uint32_t>(i + 1)});
  }
  return true;
}

void Bpe::merge_short(std::vector<BpeToken>& symbols) const {
  constexpr int32_t kNoRank = INT32_MAX;
  int32_t rank[kShortWordSymbols], merged[kShortWordSymbols];
  size_t n = symbols.size();
  const auto look_up = [&](size_t i) {
    const PairEntry* pair = i + 1 < n ? find_pair(symbols[i].id, symbols[i + 1].id) : nullptr;
    rank[i] = pair ? pair->rank : kNoRank;
    merged[i] = pair ? pair->merged : kNone;
  };
  for (size_t i = 0; i < n; ++i) look_up(i);
  while (n > 1) {
    const size_t best = static_cast<size_t>(std::min_element(rank, rank + n) - rank);
    if (rank[best] == kNoRank) break;
    symbols[best] = {merged[best], symbols[best].begin, symbols[best + 1].end};
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::move(rank + best + 2, rank + n, rank + best + 1);
    std::move(merged + best + 2, merged + n, merged + best + 1);
    --n;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

void Bpe::merge_long(std::vector<BpeToken>& symbols) const {
  struct Candidate {
    int32_t rank, merged;
    uint32_t at;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  constexpr uint32_t kEnd = UINT32_MAX;
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> next(n), previous(n);
  std::vector<Candidate> first;
  const auto candidate = [&](uint32_t at, auto add) {
    const PairEntry* pair = find_pair(symbols[at].id, symbols[next[at]].id);
    if (pair) add(Candidate{pair->rank, pair->merged, at});
  };
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
    if (i + 1 < n) candidate(i, [&](const Candidate& c) { first.push_back(c); });
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(first));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const uint32_t right = symbols[top.at].id == kNone ? kEnd : next[top.at];
    if (right == kEnd) continue;
    const PairEntry* pair = find_pair(symbols[top.at].id, symbols[right].id);
    if (!pair || pair->merged != top.merged) continue;  // one of the two has changed since
    symbols[top.at] = {top.merged, symbols[top.at].begin, symbols[right].end};
    symbols[right].id = kNone;
    next[top.at] = next[right];
    if (next[right] != kEnd) previous[next[right]] = top.at;
    const auto push = [&](const Candidate& c) { queue.push(c); };
    if (previous[top.at] != kEnd) candidate(previous[top.at], push);
    if (next[top.at] != kEnd) candidate(top.at, push);
  }
  std::erase_if(symbols, [](const BpeToken& symbol) { return symbol.id == kNone; });
}

}  // namespace mgm
