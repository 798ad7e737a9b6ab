// Every sample built once, as training would build it: what a data set holds and all its defects.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/problem.h"
#include "data/sample.h"

namespace mgm {

struct CheckReport {
  int64_t records = 0;
  // Of the good samples:
  int64_t with_images = 0;
  int64_t text_only = 0;
  int64_t images = 0;
  int64_t text_tokens = 0;
  int64_t visual_tokens = 0;
  int64_t targets = 0;  // supervised tokens
  int64_t collapsed_markers = 0;
  int64_t rewritten_paths = 0;
  int64_t straddling_tokens = 0;
  int64_t straddled = 0;         // samples with such a token
  std::vector<int64_t> lengths;  // tokens, visual ones included, ascending
  // Of the others:
  std::array<int64_t, kNumProblemKinds> by_kind{};
  std::vector<Problem> problems;  // in the order of the records

  int64_t good() const { return with_images + text_only; }
};

// progress(done, total, defects) is called from the calling thread, about ten times a second.
// `limit`: only the first so many samples; < 0: all.
using CheckProgress = std::function<void(int64_t done, int64_t total, int64_t defects)>;
CheckReport check_data(const SampleBuilder& builder, int workers, const CheckProgress& progress,
                       int64_t limit = -1);

// For people: counts, a histogram of lengths, every defect on a line of its own.
std::string format_check(const CheckReport& report, const SampleBuilder& builder,
                         const RunConfig& config);
OrderedJson check_to_json(const CheckReport& report, const SampleBuilder& builder);

}  // namespace mgm
