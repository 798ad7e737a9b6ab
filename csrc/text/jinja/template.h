// A Jinja template as Hugging Face's chat templates are: the part of the language that published
// ones use (if, for, set, macro, filters, tests, slices, namespaces), with the white space rules
// and functions of transformers (4.57: trim_blocks, lstrip_blocks, raise_exception, strftime_now,
// tojson). What is beyond that is never guessed at: rendering throws Unsupported naming it.
#pragma once

#include <string>

#include "base/json.h"
#include "text/jinja/value.h"

namespace mgm::jinja {

// `names`: an object, the variables the template sees. Throws Unsupported or Failure (value.h).
std::string render(const std::string& source, const OrderedJson& names);

}  // namespace mgm::jinja
