#include "base/json.h"

#include <algorithm>

#include "base/error.h"

namespace mgm {

Json parse_json(std::string_view text, const std::string& source) {
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& e) {
    const size_t at = std::min(e.byte > 0 ? e.byte - 1 : 0, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(at), '\n');
    const size_t newline = at == 0 ? text.npos : text.rfind('\n', at - 1);
    const size_t column = newline == text.npos ? at + 1 : at - newline;
    const std::string_view what = e.what();
    const size_t colon = what.find("; ");
    throw DataError(source, ":", line, ":", column,
                    ": not valid JSON: ", colon == what.npos ? what : what.substr(colon + 2));
  } catch (const Json::out_of_range& e) {  // a number that no double holds
    throw DataError(source, ": not valid JSON: ", e.what());
  }
}

Json read_json(const fs::path& path) { return parse_json(read_file(path), path.string()); }

}  // namespace mgm
