#include "text/added_tokens.h"

#include <algorithm>

#include "text/regex.h"

namespace mgm {
namespace {

// The white space and word character tests of AddedVocabulary.
struct Neighbours {
  Regex blanks_after{R"(\A\s*)", Regex::Dialect::kRust, "added tokens"};
  Regex word_before{R"(\w\z)", Regex::Dialect::kRust, "added tokens"};
  Regex word_after{R"(\A\w)", Regex::Dialect::kRust, "added tokens"};
};

const Neighbours& neighbours() {
  static const Neighbours made;
  return made;
}

bool matches(const Regex& regex, std::string_view text) {
  Match match;
  return regex.search(text, 0, match);
}

// Where the white space at the end of `text` begins. It is short: looked for from the end.
size_t blanks_begin(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t at = begin - 1;
    while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    Match match;
    const std::string_view one = text.substr(at, begin - at);
    if (!neighbours().blanks_after.search(one, 0, match) || match.end == 0) break;
    begin = at;
  }
  return begin;
}

std::string_view last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return text.substr(at);
}

}  // namespace

void AddedTokenFinder::add(const std::string& spelling, const AddedToken& token) {
  if (spelling.empty()) return;  // the normalizer left nothing of it
  int32_t node = 0;
  for (const char c : spelling) {
    const uint64_t edge = uint64_t(node) << 8 | static_cast<uint8_t>(c);
    const auto [it, fresh] = edges_.emplace(edge, int32_t(token_of_node_.size()));
    if (fresh) token_of_node_.push_back(-1);
    node = it->second;
  }
  int32_t& at_node = token_of_node_[size_t(node)];
  if (at_node < 0) at_node = static_cast<int32_t>(tokens_.size());  // the first of equals
  tokens_.push_back(token);
  begins_[static_cast<uint8_t>(spelling[0])] = true;
}

size_t AddedTokenFinder::longest_at(std::string_view text, size_t at, int32_t& token) const {
  size_t longest = 0;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto it = edges_.find(uint64_t(node) << 8 | static_cast<uint8_t>(text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (token_of_node_[size_t(node)] >= 0) {
      token = token_of_node_[size_t(node)];
      longest = i + 1 - at;
    }
  }
  return longest;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::split(std::string_view text,
                                                            bool split_special) const {
  std::vector<Part> parts;
  size_t done = 0;  // everything before is in `parts`
  for (size_t at = 0; at < text.size();) {
    int32_t found = -1;
    const size_t length = begins_[static_cast<uint8_t>(text[at])] ? longest_at(text, at, found) : 0;
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[size_t(found)];
    size_t begin = at, end = at + length;
    at = end;
    if (token.special && split_special) continue;
    if (token.single_word) {
      const bool inside =
          (begin > 0 && matches(neighbours().word_before, last_character(text.substr(0, begin)))) ||
          matches(neighbours().word_after, text.substr(end));
      if (inside) continue;
    }
    if (token.lstrip) begin = std::max(blanks_begin(text.substr(0, begin)), done);
    if (token.rstrip) {
      Match blanks;
      if (neighbours().blanks_after.search(text.substr(end), 0, blanks)) end += blanks.end;
    }
    if (done < begin) parts.push_back({done, begin, nullptr});
    if (begin >= end) continue;  // blanks that the token before took already
    parts.push_back({begin, end, &token});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), nullptr});
  return parts;
}

}  // namespace mgm
