// Length of a text in words, as Python's len(text.split()): runs of characters that are not Unicode
// white space. The length that the reference groups samples by.
#pragma once

#include <cstdint>
#include <string_view>

namespace mgm {

int64_t count_words(std::string_view utf8);  // valid UTF-8

}  // namespace mgm
