// A packed micro-batch: several samples in one token stream, one segment each. Positions restart
// per segment and attention never crosses one. T = tokens in the stream, visual tokens included.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mgm {

inline constexpr int64_t kIgnoreIndex = -100;      // label of a position without a target
inline constexpr int64_t kImageTokenIndex = -200;  // the image marker in a tokenised prompt

// Where segments begin and end, on the host and on the device.
struct SeqInfo {
  std::vector<int64_t> offsets = {0};  // segment i is rows [offsets[i], offsets[i + 1])
  at::Tensor cu_seqlens;               // the same as int32 [segments + 1], on the model's device
  int64_t max_length = 0;
  // Per segment what tells its sample apart within a run, for dropout; empty where nothing drops.
  std::vector<uint64_t> keys;

  int64_t segments() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t total() const { return offsets.back(); }
};

// Which record a segment came from, for messages and metrics.
struct SampleInfo {
  int64_t index = 0;  // position in the concatenated sources
  std::string id;     // the record's own id
  int64_t tokens = 0;
  int64_t targets = 0;
  int64_t images = 0;
};

struct Batch {
  at::Tensor input_ids;  // int64 [T]; kImageTokenIndex at rows that visual tokens fill
  at::Tensor positions;  // int64 [T]
  SeqInfo seq;
  at::Tensor images;      // uint8 [N, S, S, 3], HR canvases, RGB; undefined when N = 0
  at::Tensor image_rows;  // int64 [N * tokens per image], rows of the stream, in image order
  std::vector<uint64_t> image_keys;  // [N], identify a picture within a step, for drop path
  at::Tensor target_rows;            // int64 [M], rows whose logits predict a supervised token
  at::Tensor targets;                // int64 [M]
  std::vector<SampleInfo> samples;
  int64_t holes = 0;      // samples of this batch left out by data.on_error: skip, or past the end
  int64_t text_only = 0;  // segments without an image

  int64_t num_images() const { return images.defined() ? images.size(0) : 0; }
  int64_t num_targets() const { return targets.defined() ? targets.size(0) : 0; }
  // A copy with tensors on `device` (asynchronous from pinned memory).
  Batch to(at::Device device) const;
};

}  // namespace mgm
