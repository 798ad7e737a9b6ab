// Text inside HTML.
#pragma once

#include <string>
#include <string_view>

namespace mgm {

// &, <, > and quotes as entities: any text is safe between tags and in attributes.
std::string html_escape(std::string_view text);

}  // namespace mgm
