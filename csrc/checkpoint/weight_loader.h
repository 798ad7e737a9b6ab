// Weights from a TensorSource into declared parameters. Everything is compared first, from headers
// alone, and every problem is told at once; only then are bytes read.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/tensor_source.h"
#include "types/param.h"

namespace mgm {

inline constexpr const char* kEmbeddingWeight = "model.embed_tokens.weight";
inline constexpr const char* kHeadWeight = "lm_head.weight";

struct ElementRange {
  int64_t first = 0, count = 0;
};

struct LoadOptions {
  // Tensors of the source that no parameter takes are an error, or, if allowed, in
  // report.unexpected.
  bool allow_unexpected = false;
  // Parameters that the source lacks are an error, or, where this allows it, in report.missing and
  // untouched. Not set: allows none.
  std::function<bool(const Param&)> may_lack;
  // Ends the message if parameters are missing.
  std::string advice;
  // Tensors ("file: name") that did not even get into the source: unexpected too.
  std::vector<std::string> unused;
  // Reads every weight once more and refuses NaN and infinity by name.
  bool check_finite = true;
  // For parameters whose value is not bound yet.
  at::ScalarType dtype = at::kFloat;
  // Which elements of a parameter are wanted; of a mapped file only these are touched. Not set:
  // all of them.
  std::function<ElementRange(const Param&)> range;
};

struct LoadReport {
  int64_t loaded = 0;     // tensors
  uint64_t bytes = 0;     // of the loaded ones in the files
  int64_t converted = 0;  // of another dtype in the file than the parameter's
  std::vector<std::string> ignored, unexpected, missing;
};

// Takes elements [first, first + values.numel()) of one weight: a CPU tensor in the file's dtype,
// perhaps a read-only view (TensorSource). Without LoadOptions::range it is the whole weight in its
// shape.
using WeightSink = std::function<void(Param& param, int64_t first, const at::Tensor& values)>;

// Default sink: a bound Param::value is copied into, converting; an unbound one is set to a
// copy in options.dtype.
//
// Throws CheckpointError with all problems: missing and unexpected names, shapes (with the likely
// cause), dtypes that are no weights, NaN or infinity. A head tied to the embedding is not declared
// as a parameter; a file that has `lm_head.weight` nevertheless must have it equal to
// `model.embed_tokens.weight`.
LoadReport load_weights(const std::vector<Param*>& params, const TensorSource& source,
                        const LoadOptions& options = {}, const WeightSink& sink = {});

// Only the comparison, from headers: throws for names, shapes and dtypes as load_weights does.
void compare_weights(const std::vector<Param*>& params, const TensorSource& source,
                     const LoadOptions& options);

}  // namespace mgm
