// UTF-8 helpers of the text room.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mgm {

// Invalid bytes become U+FFFD, one per maximal invalid part, as Python's errors="replace" does.
// Their number is added to `replaced` if it is given.
std::string valid_utf8(std::string_view text, int64_t* replaced = nullptr);

// Bytes of `text` up to the last whole character.
size_t whole_characters(std::string_view text);

// Bytes of white space of Python's str.strip() at the beginning and at the end; of a text of
// nothing else all of them, both times.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

// Removes both.
std::string strip(std::string_view text);

}  // namespace mgm
