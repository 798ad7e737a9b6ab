#include "data/plan.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"
#include "data/annotations.h"

namespace mgm {
namespace {

int64_t largest_prime_factor(int64_t n) {
  int64_t largest = 1;
  for (int64_t p = 2; p * p <= n; ++p) {
    for (; n % p == 0; n /= p) largest = p;
  }
  return n > 1 ? n : largest;
}

const SampleLength& at(const std::vector<SampleLength>& samples, int64_t i) {
  return samples[static_cast<size_t>(i)];
}

using Items = std::vector<int64_t>;

// Deals [begin, end), longest first, into groups of equal count: always to the group with the least
// total so far that is not full; then each group into smaller ones. The large prime factors first:
// what is left are halves of halves, and a slice that ends inside a group then takes its share.
void deal(Items& items, size_t begin, size_t end, const std::vector<SampleLength>& samples) {
  const size_t n = end - begin;
  if (n <= 1) return;
  const auto parts = static_cast<size_t>(largest_prime_factor(static_cast<int64_t>(n)));
  const size_t capacity = n / parts;
  if (capacity == 1) return;
  std::vector<Items> groups(parts);
  std::vector<int64_t> totals(parts, 0);
  for (size_t i = begin; i < end; ++i) {
    size_t best = parts;
    for (size_t g = 0; g < parts; ++g) {
      if (groups[g].size() == capacity) continue;
      if (best == parts || totals[g] < totals[best]) best = g;
    }
    groups[best].push_back(items[i]);
    totals[best] += at(samples, items[i]).length;
  }
  auto out = items.begin() + static_cast<ptrdiff_t>(begin);
  for (const Items& group : groups) out = std::copy(group.begin(), group.end(), out);
  for (size_t g = 0; g < parts; ++g) {
    deal(items, begin + g * capacity, begin + (g + 1) * capacity, samples);
  }
}

}  // namespace

std::vector<SampleLength> sample_lengths(const AnnotationIndex& index, int64_t tokens_per_image) {
  std::vector<SampleLength> lengths(static_cast<size_t>(index.size()));
  for (int64_t i = 0; i < index.size(); ++i) {
    const RecordSummary summary = index.summary(i);
    lengths[static_cast<size_t>(i)] = {summary.words + summary.images * tokens_per_image,
                                       summary.images > 0};
  }
  return lengths;
}

std::vector<std::string> sample_names(const AnnotationIndex& index,
                                      const std::vector<int64_t>& batch) {
  std::vector<std::string> out;
  for (const int64_t i : batch) {
    if (i != kHole) out.push_back(index.name(i));
  }
  return out;
}

void balance_slices(std::vector<int64_t>& items, const std::vector<SampleLength>& samples) {
  deal(items, 0, items.size(), samples);
}

Plan::Plan(std::vector<SampleLength> samples, const DataConfig& config, int64_t global_batch,
           int64_t seed)
    : samples_(std::move(samples)),
      grouping_(config.grouping),
      shuffle_(config.shuffle),
      global_batch_(global_batch),
      seed_(static_cast<uint64_t>(seed)) {
  MGM_CHECK(global_batch_ > 0, "global batch ", global_batch_);
  if (samples_.empty()) {
    throw DataError("data.sources hold no records: there is nothing to train on");
  }
}

std::vector<int64_t> Plan::permuted(int64_t n, const char* what, int64_t epoch) const {
  if (shuffle_) return permutation(n, rng_key(seed_, what), static_cast<uint64_t>(epoch));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

std::vector<int64_t> Plan::grouped_order(int64_t epoch) const {
  const auto batch = static_cast<size_t>(global_batch_);
  std::vector<Items> full;  // batches of one modality
  Items leftover;
  for (const bool image : {true, false}) {
    Items members;
    for (int64_t i = 0; i < num_samples(); ++i) {
      if (at(samples_, i).has_image == image) members.push_back(i);
    }
    const Items order = permuted(static_cast<int64_t>(members.size()),
                                 image ? "data.order.image" : "data.order.text", epoch);
    for (size_t begin = 0; begin < order.size(); begin += batch) {
      Items chunk;
      for (size_t i = begin; i < std::min(order.size(), begin + batch); ++i) {
        chunk.push_back(members[static_cast<size_t>(order[i])]);
      }
      if (chunk.size() < batch) {
        leftover.insert(leftover.end(), chunk.begin(), chunk.end());
        continue;
      }
      std::stable_sort(chunk.begin(), chunk.end(), [&](int64_t a, int64_t b) {
        return at(samples_, a).length > at(samples_, b).length;
      });
      balance_slices(chunk, samples_);
      full.push_back(std::move(chunk));
    }
  }
  std::sort(leftover.begin(), leftover.end());
  Items order;
  order.reserve(static_cast<size_t>(steps_per_epoch() * global_batch_));
  for (const int64_t b : permuted(static_cast<int64_t>(full.size()), "data.order.batch", epoch)) {
    const Items& chunk = full[static_cast<size_t>(b)];
    order.insert(order.end(), chunk.begin(), chunk.end());
  }
  order.insert(order.end(), leftover.begin(), leftover.end());
  return order;
}

std::vector<int64_t> Plan::epoch_order(int64_t epoch) const {
  Items order = grouping_ == Grouping::kModalityLength
                    ? grouped_order(epoch)
                    : permuted(num_samples(), "data.order", epoch);
  order.resize(static_cast<size_t>(steps_per_epoch() * global_batch_), kHole);
  return order;
}

Plan::Order Plan::cached_order(int64_t epoch) const {
  const std::lock_guard lock(mutex_);
  const size_t slot = static_cast<size_t>(epoch % 2);
  if (cached_epoch_[slot] != epoch) {
    cached_[slot] = std::make_shared<const std::vector<int64_t>>(epoch_order(epoch));
    cached_epoch_[slot] = epoch;
  }
  return cached_[slot];
}

std::vector<int64_t> Plan::batch(int64_t step) const {
  MGM_CHECK(step >= 0, "step ", step);
  const Order order = cached_order(epoch_of(step));
  const auto begin = order->begin() + step % steps_per_epoch() * global_batch_;
  return {begin, begin + global_batch_};
}

}  // namespace mgm
