#include "base/json.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_problem.h"
#include "base/json_scan.h"

namespace mgm {
namespace {

// Values are copied and written by recursion, so that a file of brackets alone would overflow the
// stack.
void check_depth(std::string_view text, const std::string& source) {
  constexpr int kMaxDepth = 512;
  int depth = 0;
  JsonStrings strings;
  for (size_t i = 0; i < text.size(); ++i) {
    if (strings.at(text, i)) continue;
    const char c = text[i];
    if (c == '[' || c == '{') {
      if (++depth <= kMaxDepth) continue;
      throw DataError(source,
                      ": not valid JSON for this program: lists and objects nest deeper than ",
                      kMaxDepth, " at byte ", i);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  check_depth(text, source);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    const size_t at = json_offset(e, text);
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(at), '\n');
    const size_t newline = at == 0 ? text.npos : text.rfind('\n', at - 1);
    const size_t column = newline == text.npos ? at + 1 : at - newline;
    const bool valid = dynamic_cast<const Json::parse_error*>(&e) == nullptr;  // but too large
    throw DataError(source, ":", line, ":", column,
                    valid ? ": " : ": not valid JSON: ", json_problem(e));
  }
}

Json read_json(const fs::path& path) { return parse_json(read_file(path), path.string()); }

}  // namespace mgm
