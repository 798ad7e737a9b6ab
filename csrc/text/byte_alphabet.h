// GPT-2's spelling of bytes as printable characters, in which byte-level vocabularies are written
// (openai/gpt-2 encoder.py bytes_to_unicode; ByteLevel of Hugging Face's tokenizers).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mgm {

// Every byte as its character.
std::string spell_bytes(std::string_view bytes);

// The bytes a spelling stands for; none if a character is no byte's.
std::optional<std::string> read_spelled_bytes(std::string_view spelling);

}  // namespace mgm
