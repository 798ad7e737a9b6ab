// What can be wrong with one sample. A value, not an exception: `mgm data check` lists them all,
// the loader stops at the first or skips them (data.on_error).
#pragma once

#include <cstdint>
#include <string>

namespace mgm {

enum class ProblemKind {
  kRecord,        // not a record: broken JSON, a field of a wrong type
  kConversation,  // turns that no template can render (begins with the assistant, empty answer)
  kMarkers,       // as many image markers as pictures are needed
  kTooLong,       // more tokens than text.max_length, visual tokens included
  kNoTarget,      // no supervised token
  kMissingImage,  // the file is not there or cannot be read
  kBrokenImage,   // the file is no picture, is damaged, or is too large
};
inline constexpr int kNumProblemKinds = 7;

struct Problem {
  ProblemKind kind = ProblemKind::kRecord;
  int64_t index = 0;    // of the sample, in the concatenated sources
  std::string where;    // "train.json: record 12"
  std::string id;       // the record's own id; "" if it has none
  std::string message;  // what, with the numbers and what to do
};

const char* kind_name(ProblemKind kind);       // "missing image"
std::string describe(const Problem& problem);  // where, id, kind and message in one line

}  // namespace mgm
