#include "infer/row_decoder.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/host_memory.h"
#include "types/upload.h"

namespace mgm {
namespace {

KvCache allocate(const Decoder& decoder, int64_t rows, int64_t capacity,
                 const at::TensorOptions& options) {
  const auto no_memory = [&](const std::string& why) {
    return ConfigError("no memory for a cache of ", rows, " sequences of ", capacity,
                       " tokens; take fewer at a time (--batch-size, --beams) or shorter answers ",
                       "(--max-new-tokens). ", why);
  };
  if (options.device().is_cpu()) {  // the system would promise it, and end the process later
    const uint64_t bytes = decoder.make_cache(rows, capacity, options.device(at::kMeta)).bytes();
    const uint64_t free = available_host_memory();
    if (bytes > free) {
      throw no_memory(
          cat("It needs ", human_bytes(double(bytes)), ", there are ", human_bytes(double(free))));
    }
  }
  try {
    return decoder.make_cache(rows, capacity, options);
  } catch (const c10::Error& e) {
    throw no_memory(e.what_without_backtrace());
  }
}

// One token for each of `rows` rows.
SeqInfo one_each(int64_t rows) {
  SeqInfo seq;
  seq.offsets.resize(static_cast<size_t>(rows) + 1);
  std::iota(seq.offsets.begin(), seq.offsets.end(), int64_t{0});
  seq.max_length = 1;
  return seq;
}

}  // namespace

RowDecoder::RowDecoder(const Decoder& decoder, int64_t rows, int64_t capacity,
                       at::TensorOptions options, StepRecorder* recorder)
    : decoder_(decoder),
      cache_(allocate(decoder, rows, capacity, options)),
      next_ids_(at::zeros({rows}, options.dtype(at::kLong))),
      positions_(at::zeros({rows}, options.dtype(at::kLong))),
      graphs_(recorder) {}

at::Tensor RowDecoder::add(const at::Tensor& x_TH, const Batch& batch, const ForwardContext& ctx) {
  const int64_t count = batch.seq.segments();
  MGM_CHECK(count <= free_rows(), count, " prompts for ", free_rows(), " free rows");
  const at::Tensor hidden_TH =
      decoder_.blocks(x_TH, batch.positions, batch.seq, ctx, {&cache_, size_});
  const std::vector<int64_t>& offsets = batch.seq.offsets;
  std::vector<int64_t> last, lengths;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    last.push_back(offsets[i + 1] - 1);
    lengths.push_back(offsets[i + 1] - offsets[i]);
  }
  positions_.narrow(0, size_, count)
      .copy_(upload(at::tensor(lengths, at::kLong), positions_.device()));
  size_ += count;
  const at::Tensor rows = upload(at::tensor(last, at::kLong), hidden_TH.device());
  return decoder_.logits(hidden_TH.index_select(0, rows), ctx);
}

void RowDecoder::put(int64_t first, const at::Tensor& ids_R) {
  MGM_CHECK(first + ids_R.size(0) <= size_, first, " + ", ids_R.size(0), " of ", size_);
  next_ids_.narrow(0, first, ids_R.size(0)).copy_(ids_R);
}

at::Tensor RowDecoder::step(const ForwardContext& ctx) {
  const auto begin = cache_.lengths.begin(), end = begin + static_cast<std::ptrdiff_t>(size_);
  const std::vector<int64_t> held(begin, end);
  for (const int64_t length : held) {  // a replay checks nothing
    MGM_CHECK(length < cache_.capacity(), "a row of ", cache_.capacity(), " tokens is full");
  }
  const at::Tensor logits_RV = graphs_.run(size_, [&] {
    std::copy(held.begin(), held.end(), begin);  // a recording may take more than one attempt
    return run_step(ctx);
  });
  // Nor does it count.
  std::transform(held.begin(), held.end(), begin, [](int64_t length) { return length + 1; });
  return logits_RV;
}

at::Tensor RowDecoder::run_step(const ForwardContext& ctx) {
  const at::Tensor positions_R = positions_.narrow(0, 0, size_);
  const at::Tensor x_RH = decoder_.embed(next_ids_.narrow(0, 0, size_), ctx);
  const at::Tensor hidden_RH = decoder_.blocks(x_RH, positions_R, one_each(size_), ctx, {&cache_});
  positions_R.add_(1);
  return decoder_.logits(hidden_RH, ctx);
}

void RowDecoder::remove(int64_t row) {
  MGM_CHECK(row >= 0 && row < size_, "row ", row, " of ", size_);
  const int64_t last = --size_;
  const auto to = static_cast<size_t>(row), from = static_cast<size_t>(last);
  if (row != last) {
    const int64_t length = cache_.lengths[from];
    for (std::vector<at::Tensor>* layers : {&cache_.keys, &cache_.values}) {
      for (const at::Tensor& layer : *layers) {
        layer.select(0, row).narrow(0, 0, length).copy_(layer.select(0, last).narrow(0, 0, length));
      }
    }
    for (const at::Tensor& each : {next_ids_, positions_}) {
      each.select(0, row).copy_(each.select(0, last));
    }
    cache_.lengths[to] = length;
  }
  cache_.lengths[from] = 0;
}

void RowDecoder::fork(int64_t rows) {
  MGM_CHECK(size_ == 1 && rows >= 1 && rows <= cache_.rows(), "one row of ", size_, " becomes ",
            rows, " of ", cache_.rows());
  const int64_t length = cache_.lengths[0];
  for (std::vector<at::Tensor>* layers : {&cache_.keys, &cache_.values}) {
    for (const at::Tensor& layer : *layers) {
      const at::Tensor held = layer.narrow(1, 0, length);
      held.narrow(0, 1, rows - 1).copy_(held.narrow(0, 0, 1));
    }
  }
  positions_.narrow(0, 1, rows - 1).copy_(positions_.narrow(0, 0, 1));
  std::fill_n(cache_.lengths.begin(), rows, length);
  size_ = rows;
}

void RowDecoder::reorder(const std::vector<int64_t>& parents, int64_t from) {
  MGM_CHECK(static_cast<int64_t>(parents.size()) == size_, parents.size(), " parents of ", size_);
  bool moves = false;
  for (size_t i = 0; i < parents.size(); ++i) {
    MGM_CHECK(cache_.lengths[i] == cache_.lengths[0], "rows of different lengths");
    moves = moves || parents[i] != static_cast<int64_t>(i);
  }
  const int64_t fresh = cache_.lengths[0] - from;
  if (!moves || fresh == 0) return;
  const at::Tensor rows = upload(at::tensor(parents, at::kLong), positions_.device());
  for (std::vector<at::Tensor>* layers : {&cache_.keys, &cache_.values}) {
    for (const at::Tensor& layer : *layers) {
      const at::Tensor held = layer.narrow(0, 0, size_).narrow(1, from, fresh);
      held.copy_(held.index_select(0, rows.to(layer.device())));
    }
  }
}

}  // namespace mgm
