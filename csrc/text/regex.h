// Regular expressions of tokenizers, through PCRE2 with Unicode properties and its just-in-time
// compiler. Two dialects are read: Oniguruma's (tokenizer.json) and the one of Rust's fancy-regex
// (tiktoken); where PCRE2 means something else by the same spelling, the pattern is rewritten
// (\s, \w) or refused. Offsets are bytes. Matching is safe from several threads.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace mgm {

struct Match {
  size_t begin = 0, end = 0;
};

class Regex {
 public:
  enum class Dialect { kOniguruma, kRust };

  // Throws DataError beginning with `where`.
  Regex(const std::string& pattern, Dialect dialect, const std::string& where);
  // A literal text.
  static Regex literal(const std::string& text, const std::string& where);

  // The first match at or after byte `from` of valid UTF-8; false: none.
  bool search(std::string_view text, size_t from, Match& match) const;

  // Calls `f(begin, end)` for every match from left to right. An empty match right behind the last
  // one is skipped, as the find_iter of both libraries does.
  template <class F>
  void for_each(std::string_view text, F f) const {
    size_t from = 0;
    bool any = false;
    size_t last_end = 0;
    Match match;
    while (from <= text.size() && search(text, from, match)) {
      if (match.begin == match.end && any && match.end == last_end) {
        from = next_character(text, match.end);
        continue;
      }
      f(match.begin, match.end);
      from = last_end = match.end;
      any = true;
    }
  }

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static std::shared_ptr<const Code> compile(const std::string& pattern, Dialect dialect,
                                             bool literal, const std::string& where);
  static size_t next_character(std::string_view text, size_t at);

  std::shared_ptr<const Code> code_;
};

}  // namespace mgm
