// The order of samples: which of them make up optimizer step s. A pure function of the samples'
// lengths, data.grouping, data.shuffle, train.global_batch, train.seed and the step: ranks,
// workers, micro-batches and restarts do not enter. The cursor of a run is the step number alone.
//
// Every epoch visits every sample once. An epoch ends with its own last step: samples that are
// missing there are holes; nothing wraps around and nothing moves up.
//
// grouping modality_length follows LLaVA's LengthGroupedSampler (group_by_modality_length), with
// the global batch as its megabatch: each modality is permuted on its own and cut into global
// batches, the full ones of both are shuffled together, and the leftovers, sorted by index, come
// last. Every batch but those last ones (at most two) holds one modality. Within a batch the
// reference deals samples into world * accumulation buckets of near-equal total length; here they
// are dealt into groups, and each group into smaller ones (by the prime factors of the batch), so
// that equal consecutive slices are near-equal in length however many there are.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace mgm {

inline constexpr int64_t kHole = -1;  // a place in a batch without a sample

// Length: words of text plus visual tokens. Both only order samples and balance slices, so that
// words do for tokens, at no cost.
struct SampleLength {
  int64_t length = 0;
  bool has_image = false;
};

class AnnotationIndex;
std::vector<SampleLength> sample_lengths(const AnnotationIndex& index, int64_t tokens_per_image);

class Plan {
 public:
  // Throws DataError if there are no samples.
  Plan(std::vector<SampleLength> samples, const DataConfig& config, int64_t global_batch,
       int64_t seed);

  int64_t num_samples() const { return static_cast<int64_t>(samples_.size()); }
  int64_t global_batch() const { return global_batch_; }
  int64_t steps_per_epoch() const { return (num_samples() + global_batch_ - 1) / global_batch_; }
  int64_t epoch_of(int64_t step) const { return step / steps_per_epoch(); }

  // The global_batch sample indices of a step, counted from 0 across epochs; kHole where there is
  // none. Thread-safe.
  std::vector<int64_t> batch(int64_t step) const;

  // All batches of an epoch, one after another: steps_per_epoch * global_batch indices.
  std::vector<int64_t> epoch_order(int64_t epoch) const;

 private:
  using Order = std::shared_ptr<const std::vector<int64_t>>;
  Order cached_order(int64_t epoch) const;
  std::vector<int64_t> permuted(int64_t n, const char* what, int64_t epoch) const;
  std::vector<int64_t> grouped_order(int64_t epoch) const;

  std::vector<SampleLength> samples_;
  Grouping grouping_;
  bool shuffle_;
  int64_t global_batch_;
  uint64_t seed_;
  mutable std::mutex mutex_;
  mutable int64_t cached_epoch_[2] = {-1,
                                      -1};  // guarded by mutex_; two, for the step between epochs
  mutable Order cached_[2];                 // guarded by mutex_
};

// Of the samples of a batch; holes have none.
std::vector<std::string> sample_names(const AnnotationIndex& index,
                                      const std::vector<int64_t>& batch);

// Reorders `items` so that equal consecutive slices have near-equal total length. `items` must be
// sorted by length, longest first. Public for its test.
void balance_slices(std::vector<int64_t>& items, const std::vector<SampleLength>& samples);

}  // namespace mgm
