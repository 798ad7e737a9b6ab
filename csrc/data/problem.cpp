#include "data/problem.h"

#include "base/strings.h"

namespace mgm {

const char* kind_name(ProblemKind kind) {
  switch (kind) {
    case ProblemKind::kRecord:
      return "malformed record";
    case ProblemKind::kConversation:
      return "unusable conversation";
    case ProblemKind::kMarkers:
      return "image marker mismatch";
    case ProblemKind::kTooLong:
      return "cut by the length limit";
    case ProblemKind::kNoTarget:
      return "no supervised token";
    case ProblemKind::kMissingImage:
      return "missing image";
    case ProblemKind::kBrokenImage:
      return "broken image";
  }
  return "unknown";
}

std::string describe(const Problem& problem) {
  if (problem.kind == ProblemKind::kRecord) return problem.message;  // says where, to the column
  return cat(problem.where, problem.id.empty() ? "" : cat(" (id '", problem.id, "')"), ": ",
             kind_name(problem.kind), ": ", problem.message);
}

}  // namespace mgm
