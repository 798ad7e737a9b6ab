// Text helpers shared by every layer: message building, suggestions for misspelt names, human
// units.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

// Concatenates anything that has operator<<. The one way messages are built in this tree.
template <class... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// printf into a string, checked by the compiler.
[[gnu::format(printf, 1, 2)]] std::string strf(const char* format, ...);

std::vector<std::string> split(std::string_view text, char separator);
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::string_view trim(std::string_view text);  // ASCII white space on both sides
std::string replace_all(std::string text, std::string_view from, std::string_view to);
// Control characters but newline and tab as \xNN: what a file holds moves no terminal's cursor.
std::string printable(std::string_view text);
std::string to_lower(std::string_view text);  // ASCII only

// The candidate nearest to `word` by edit distance, or "" when none is near enough to be a
// misspelling.
std::string closest(std::string_view word, const std::vector<std::string>& candidates);

// `*` matches any run of characters, `?` one; everything else is literal.
bool glob_match(std::string_view pattern, std::string_view text);

std::string human_bytes(double bytes);      // "1.50 GiB"
std::string human_count(double count);      // "7.27 B", "1.20 M"
std::string human_seconds(double seconds);  // "1h02m", "3m05s", "2.4s"
std::string with_commas(int64_t value);     // "7,266,093,504"

}  // namespace mgm
