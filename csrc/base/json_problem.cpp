#include "base/json_problem.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/json_scan.h"
#include "base/strings.h"

namespace mgm {
namespace {

constexpr int kTypeId = 302, kReferenceId = 303, kAtId = 304, kIndexId = 305, kKeyId = 403,
              kOverflowId = 406;

// What stands between the first pair of quotes.
std::string quoted(std::string_view what) {
  const size_t begin = what.find('\''), end = what.rfind('\'');
  return begin < end ? std::string(what.substr(begin + 1, end - begin - 1)) : std::string();
}

std::string shortened(const std::string& number) {
  return number.size() > 40 ? number.substr(0, 40) + "..." : number;
}

bool is_number_character(char c) {
  return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

// Calls visit(offset, token) for every number, until it returns true; returns that offset, or npos.
template <class Visit>
size_t find_number(std::string_view text, const Visit& visit) {
  JsonStrings strings;
  for (size_t i = 0; i < text.size(); ++i) {
    if (strings.at(text, i) || (text[i] != '-' && (text[i] < '0' || text[i] > '9'))) continue;
    size_t end = i;
    while (end < text.size() && is_number_character(text[end])) ++end;
    if (visit(text.substr(i, end - i))) return i;
    i = end - 1;
  }
  return text.npos;
}

template <class T>
bool holds(std::string_view token) {
  T value{};
  return std::from_chars(token.data(), token.data() + token.size(), value).ec == std::errc();
}

}  // namespace

std::string json_problem(const Json::exception& problem) {
  std::string_view what = problem.what();
  if (what.starts_with("[json.exception.")) what.remove_prefix(what.find("] ") + 2);
  switch (problem.id) {
    case kTypeId:  // "type must be string, but is number"
      return replace_all(replace_all(std::string(what), "type must be ", "expected "), ", but is ",
                         ", got ");
    case kReferenceId:  // "incompatible ReferenceType for get_ref, actual type is number"
      return cat("unexpected type: ", what.substr(what.rfind(' ') + 1));
    case kAtId:
    case kIndexId:  // "cannot use at() with number"
      return cat("expected an object or a list, got ", what.substr(what.rfind(' ') + 1));
    case kKeyId:
      return cat("the key '", quoted(what), "' is missing");
    case kOverflowId:
      return cat("the number ", shortened(quoted(what)),
                 " is beyond what a 64-bit float holds (1.8e308)");
    default:
      break;
  }
  // "parse error at line 1, column 5: syntax error while parsing array - invalid literal; last
  // read: '[tru'"
  if (const size_t dash = what.find(" - "); dash != what.npos)
    return std::string(what.substr(dash + 3));
  const size_t colon = what.find(": ");
  return std::string(colon == what.npos ? what : what.substr(colon + 2));
}

size_t json_offset(const Json::exception& problem, std::string_view text) {
  if (const auto* parse = dynamic_cast<const Json::parse_error*>(&problem)) {
    return std::min(parse->byte > 0 ? parse->byte - 1 : 0, text.size());
  }
  const std::string number = problem.id == kOverflowId ? quoted(problem.what()) : "";
  const size_t found = find_number(text, [&](std::string_view token) { return token == number; });
  return found == text.npos ? 0 : found;
}

size_t find_big_integer(std::string_view text, std::string& digits) {
  return find_number(text, [&](std::string_view token) {
    if (token.find_first_of(".eE") != token.npos) return false;
    if (holds<int64_t>(token) || holds<uint64_t>(token)) return false;
    digits = shortened(std::string(token));
    return true;
  });
}

Json parse_json_line(std::string_view line, size_t number, const std::string& source) {
  try {
    return parse_json(line, source);
  } catch (const DataError&) {
    std::string placed(number - 1, '\n');
    placed += line;
    return parse_json(placed, source);
  }
}

}  // namespace mgm
