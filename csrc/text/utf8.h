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

// Removes white space of Python's str.strip() from both ends.
std::string strip(std::string_view text);

}  // namespace mgm
