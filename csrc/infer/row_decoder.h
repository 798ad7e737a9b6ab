// Sequences continued together, one token each per step: the rows of a KvCache that is allocated
// once. Rows in use are 0 .. size() - 1. Nothing here waits for the device. Shape suffixes: T
// tokens of all prompts, R rows, H width, V rows of the head.
#pragma once

#include "infer/step_graphs.h"
#include "model/decoder.h"

namespace mgm {

class RowDecoder {
 public:
  // For at most `rows` sequences of at most `capacity` tokens; `options`: device and dtype of the
  // model, where it is spread over several the first one. With a recorder, steps are recorded
  // (infer/step_graphs.h). `decoder` and `recorder` must outlive this. Throws ConfigError if the
  // device lacks the memory.
  RowDecoder(const Decoder& decoder, int64_t rows, int64_t capacity, at::TensorOptions options,
             StepRecorder* recorder = nullptr);

  int64_t size() const { return size_; }
  int64_t free_rows() const { return cache_.rows() - size_; }
  int64_t length(int64_t row) const { return cache_.lengths.at(static_cast<size_t>(row)); }
  uint64_t cache_bytes() const { return cache_.bytes(); }
  const StepGraphs& graphs() const { return graphs_; }

  // Prompts, one segment of the batch each, become the rows behind those in use. x_TH are their
  // embeddings. Returns fp32 logits [R, V] of what follows each.
  at::Tensor add(const at::Tensor& x_TH, const Batch& batch, const ForwardContext& ctx);

  // The next tokens, int64 [R] on the device, of rows first .. first + R - 1.
  void put(int64_t first, const at::Tensor& ids_R);

  // Reads the token put last for every row in use; fp32 logits [size(), V] of what follows, good
  // until the next step.
  at::Tensor step(const ForwardContext& ctx);

  // Ends a row; the last one takes its place.
  void remove(int64_t row);

  // The only row becomes `rows` rows that hold the same.
  void fork(int64_t rows);

  // Row i goes on from what row parents[i] holds; parents has size() entries. All rows are of one
  // length and hold the same before position `from`.
  void reorder(const std::vector<int64_t>& parents, int64_t from);

 private:
  at::Tensor run_step(const ForwardContext& ctx);

  const Decoder& decoder_;
  KvCache cache_;
  int64_t size_ = 0;
  // Recorded steps read and write these and the cache where they are: neither is ever replaced.
  at::Tensor next_ids_;   // int64 [rows], on the device
  at::Tensor positions_;  // int64 [rows]: where they go, that is the rows' lengths
  StepGraphs graphs_;
};

}  // namespace mgm
