// Base64 (RFC 4648, with padding): pictures inside self-contained HTML.
#pragma once

#include <string>
#include <string_view>

namespace mgm {

std::string base64(std::string_view bytes);

}  // namespace mgm
