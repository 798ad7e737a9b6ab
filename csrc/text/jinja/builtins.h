// Filters, tests, functions, and the methods of texts and dictionaries, as jinja2, Python and
// transformers (tojson, raise_exception, strftime_now) define them. An unknown one throws
// Unsupported naming it.
#pragma once

#include "text/jinja/value.h"

namespace mgm::jinja {

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

// value.name and value[key].
Value attribute(const Value& value, const std::string& name);
Value item(const Value& value, const Value& key);
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step);

// A global function by name; undefined: there is none.
Value global_function(const std::string& name);

}  // namespace mgm::jinja
