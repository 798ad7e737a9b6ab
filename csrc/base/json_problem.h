// What a user is told of an exception of the JSON library, whose own texts begin with
// "[json.exception...]".
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace mgm {

// In words and without a place: "expected string, got number", "the key 'size' is missing",
// "unexpected ']'; expected a value".
std::string json_problem(const Json::exception& problem);

// Where in the text that was parsed: an offset in bytes.
size_t json_offset(const Json::exception& problem, std::string_view text);

// One of many lines of a file, as parse_json(): errors name the line, counted from 1.
Json parse_json_line(std::string_view line, size_t number, const std::string& source);

// A whole number of `text` that neither int64 nor uint64 holds: its offset and digits; npos: none.
size_t find_big_integer(std::string_view text, std::string& digits);

}  // namespace mgm
