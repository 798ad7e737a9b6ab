// Base64 (RFC 4648, with padding): pictures inside self-contained HTML, tokens of tiktoken files.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mgm {

std::string base64(std::string_view bytes);

// The bytes; none if the text is not whole, padded base64.
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace mgm
