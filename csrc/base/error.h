// Typed errors. Each kind has one exit code (docs/training.md, "Exit codes"); only cli/main.cpp
// turns a kind into an exit. A message says what, where, the values, and what to do about it.
#pragma once

#include <stdexcept>
#include <string>

#include "base/strings.h"

namespace mgm {

enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,
  kConfig = 2,
  kData = 3,
  kCheckpoint = 4,
  kDist = 5,
  kNonFinite = 6,
  kSigint = 130,   // 128 + SIGINT, after a clean save
  kSigusr1 = 138,  // 128 + SIGUSR1 (preemption notice), after a clean save
  kSigterm = 143,  // 128 + SIGTERM, after a clean save
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

template <ExitCode kCode>
class TypedError : public Error {
 public:
  template <class... Args>
  explicit TypedError(const Args&... args) : Error(kCode, cat(args...)) {}
};

using InternalError = TypedError<ExitCode::kInternal>;  // a bug of ours
using ConfigError = TypedError<ExitCode::kConfig>;      // YAML, --set, command line, geometry
using DataError = TypedError<ExitCode::kData>;          // images, annotation files, tokenizer input
using CheckpointError = TypedError<ExitCode::kCheckpoint>;  // weights and checkpoints, in or out
using DistError = TypedError<ExitCode::kDist>;              // ranks, collectives
using NonFiniteError = TypedError<ExitCode::kNonFinite>;    // NaN or infinity in loss or gradient

}  // namespace mgm

// A programmer's assumption. Message parts follow the condition.
#define MGM_CHECK(condition, ...)                                                             \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      throw ::mgm::InternalError(__FILE__, ":", __LINE__, ": check failed: " #condition ". ", \
                                 ::mgm::cat(__VA_ARGS__));                                    \
    }                                                                                         \
  } while (false)
