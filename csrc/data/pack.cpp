#include "data/pack.h"

#include <ATen/ATen.h>

#include <cstring>
#include <numeric>

#include "base/error.h"

namespace mgm {
namespace {

at::Tensor to_tensor(const std::vector<int64_t>& values) {
  at::Tensor out = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  if (!values.empty()) {
    std::memcpy(out.mutable_data_ptr<int64_t>(), values.data(), values.size() * sizeof(int64_t));
  }
  return out;
}

// [N, S, S, 3], or undefined without pictures.
at::Tensor stack_canvases(const std::vector<Sample>& samples, int64_t count) {
  if (count == 0) return {};
  at::Tensor out;
  uint8_t* to = nullptr;
  int64_t side = 0;
  for (const Sample& sample : samples) {
    for (const Picture& picture : sample.pictures) {
      const RgbImage& canvas = picture.canvas;
      if (!out.defined()) {
        side = canvas.width;
        out = at::empty({count, side, side, 3}, at::kByte);
        to = out.mutable_data_ptr<uint8_t>();
      }
      MGM_CHECK(canvas.width == side && canvas.height == side, "canvas ", canvas.width, " x ",
                canvas.height, " beside ", side, " x ", side);
      std::memcpy(to, canvas.hwc.data(), canvas.hwc.size());
      to += canvas.hwc.size();
    }
  }
  return out;
}

}  // namespace

uint64_t image_key(int64_t sample, int64_t epoch, int64_t picture) {
  return static_cast<uint64_t>(epoch) << 52 | static_cast<uint64_t>(picture) << 40 |
         static_cast<uint64_t>(sample);
}

Batch pack(const std::vector<Sample>& samples, int64_t holes, int64_t epoch) {
  Batch batch;
  batch.holes = holes;
  std::vector<int64_t> ids, positions, image_rows, target_rows, targets;
  std::vector<int32_t> borders = {0};
  for (const Sample& sample : samples) {
    const auto length = static_cast<int64_t>(sample.ids.size());
    const auto begin = static_cast<int64_t>(ids.size());
    ids.insert(ids.end(), sample.ids.begin(), sample.ids.end());
    positions.resize(ids.size());
    std::iota(positions.begin() + begin, positions.end(), int64_t{0});
    for (int64_t t = 0; t < length; ++t) {
      if (sample.ids[static_cast<size_t>(t)] == kImageTokenIndex) image_rows.push_back(begin + t);
      if (t == 0 || sample.labels[static_cast<size_t>(t)] == kIgnoreIndex) continue;
      target_rows.push_back(begin + t - 1);
      targets.push_back(sample.labels[static_cast<size_t>(t)]);
    }
    const auto pictures = static_cast<int64_t>(sample.pictures.size());
    for (int64_t p = 0; p < pictures; ++p) {
      batch.image_keys.push_back(image_key(sample.index, epoch, p));
    }
    batch.seq.keys.push_back(image_key(sample.index, epoch, 0));
    batch.seq.offsets.push_back(begin + length);
    borders.push_back(static_cast<int32_t>(begin + length));
    batch.seq.max_length = std::max(batch.seq.max_length, length);
    batch.samples.push_back({sample.index, sample.id, length, sample.targets, pictures});
    batch.text_only += pictures == 0 ? 1 : 0;
  }
  MGM_CHECK(ids.size() <= INT32_MAX, ids.size(), " tokens in one micro-batch");
  batch.input_ids = to_tensor(ids);
  batch.positions = to_tensor(positions);
  batch.image_rows = to_tensor(image_rows);
  batch.target_rows = to_tensor(target_rows);
  batch.targets = to_tensor(targets);
  batch.seq.cu_seqlens = at::tensor(borders, at::kInt);
  batch.images = stack_canvases(samples, static_cast<int64_t>(batch.image_keys.size()));
  return batch;
}

}  // namespace mgm
