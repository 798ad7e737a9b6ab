// One sample made visible: what the model reads, which tokens are supervised, what becomes of the
// pictures.
#pragma once

#include <string>

#include "data/sample.h"

namespace mgm {

// Supervised tokens stand between `open` and `close` (terminal colours, or marks in plain text).
struct Marks {
  std::string open = "[[";
  std::string close = "]]";
};
std::string show_text(const Sample& sample, const SampleBuilder& builder, const Marks& marks);

// A page of its own: pictures inside, supervised tokens coloured, ids under the pointer.
std::string show_html(const Sample& sample, const SampleBuilder& builder);

}  // namespace mgm
