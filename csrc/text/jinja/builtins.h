// Filters, tests, functions, and the methods of texts and dictionaries, as jinja2, Python and
// transformers (tojson, raise_exception, strftime_now) define them. An unknown one throws
// Unsupported naming it.
#pragma once

#include "text/jinja/run.h"

namespace mgm::jinja {

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Run& run);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

// value.name and value[key].
Value attribute(const Value& value, const std::string& name);
Value item(const Value& value, const Value& key);
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step);

// The value, which a namespace is to hold; throws Unsupported where it is one or holds one: they
// change, and could be put into themselves.
const Value& not_a_namespace(const Value& value);

// A global function by name; undefined: there is none.
Value global_function(const std::string& name);

}  // namespace mgm::jinja
