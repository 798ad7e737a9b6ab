// Which GPUs hold which blocks of a language model: whole blocks, one after another. Everything in
// front of block 0 (vision, embeddings) lies on the first GPU used, an untied head on the last.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/mini_gemini.h"

namespace mgm {

struct Card {
  int64_t index = 0;  // of the GPU
  uint64_t free_bytes = 0;
};

struct ModelBytes {
  uint64_t first = 0;            // weights in front of block 0
  std::vector<uint64_t> blocks;  // weights of each block
  uint64_t last = 0;             // weights behind the last block
  uint64_t cache = 0;            // keys and values of one block
  uint64_t work = 0;             // on every GPU used: activations, workspaces

  uint64_t weights() const;
  // Of blocks begin .. end - 1 on one GPU.
  uint64_t on_one(size_t begin, size_t end) const;
};

// What is to be decoded at a time.
struct DecodeLoad {
  int64_t rows = 1;           // sequences in the cache
  int64_t capacity = 0;       // tokens of each
  int64_t prompt_tokens = 0;  // that enter in one pass
};

// Needs no weights. `work` is an estimate.
ModelBytes model_bytes(const MiniGemini& model, at::ScalarType dtype, const DecodeLoad& load);

// The first block of each GPU used, which are the first of `cards`: all of them, or with `fewest`
// no more than needed. The fullest one is as empty as can be, relative to its free memory. Throws
// ConfigError with the numbers if the model does not fit, or has fewer blocks than there are cards.
std::vector<int64_t> place_blocks(const ModelBytes& bytes, const std::vector<Card>& cards,
                                  bool fewest);

}  // namespace mgm
