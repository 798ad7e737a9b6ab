// Methods of Python's texts and dictionaries.
#pragma once

#include "text/jinja/value.h"

namespace mgm::jinja {

// Also for those that are not supported: calling them says so.
bool has_method(const Value& value, const std::string& name);
Value call_method(const Value& value, const std::string& name, const Arguments& arguments);

}  // namespace mgm::jinja
