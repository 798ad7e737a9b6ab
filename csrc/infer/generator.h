// Answers, token by token: the training forward for the prompts, then a KV cache. Greedy decoding
// and beam search are pure functions of model, prompt and pictures; sampling also of its seed and
// of a question's number. What else is in a batch changes rounding alone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "assemble/placement.h"
#include "infer/prompt.h"
#include "infer/sampler.h"
#include "infer/step_graphs.h"

namespace mgm {

struct Answer {
  std::string text;          // without the end token, white space at both ends removed
  std::vector<int32_t> ids;  // the end token included, if there was one
  bool stopped = false;      // by an end token; else by max_new_tokens or the context's end
  std::string error;         // of a batch: why there is no answer, with the prompt's `where`
};

// One question of a batch.
struct BatchPrompt {
  std::vector<Turn> turns;          // end with the user's
  std::vector<std::string> images;  // paths
  std::string where;                // in errors, for example "questions.jsonl:3"
};

// What a batch took. Seconds are those of the host, which waits for the device after every pass.
struct BatchStats {
  int64_t rows = 0, capacity = 0;  // of the cache, tokens
  uint64_t cache_bytes = 0;
  int64_t prompts = 0, prompt_tokens = 0, prompt_passes = 0;
  double prompt_seconds = 0;   // reading and encoding pictures included
  int64_t steps = 0;           // passes of one token per row
  int64_t step_tokens = 0;     // tokens of answers that they chose: all but the first of each
  int64_t context_tokens = 0;  // cached tokens that they attended to, all rows and steps together
  double step_seconds = 0;
  int64_t graphs = 0;       // steps recorded as CUDA graphs, one per number of rows
  int64_t graph_steps = 0;  // of the steps, those replayed from them
};

class Generator {
 public:
  // `model` must outlive the generator. With `graphs`, steps on a GPU are recorded and replayed
  // (infer/step_graphs.h), with the same results; a model whose steps cannot be is decoded without,
  // as a message says. Throws ConfigError for an unknown template, and as check_sampling().
  Generator(const LoadedModel& model, const SamplingConfig& sampling, bool graphs = true);

  // `turns` and the pictures' `visual_NTH` (encode_pictures) as PromptEncoder::encode takes them.
  // `on_text` receives the answer as it grows, with beam search at its end. Throws DataError as
  // encode() does; NonFiniteError.
  Answer answer(const std::vector<Turn>& turns, const at::Tensor& visual_NTH,
                const std::function<void(const std::string&)>& on_text = {}) const;

  // How conversations become prompts of this model, and how long ones are trimmed.
  const PromptEncoder& prompts() const { return encoder_; }

  // Answers all prompts, `batch_size` at a time: where an answer ends, the next prompt takes its
  // place. Beam search answers one at a time, a row per beam. The cache is allocated once, for the
  // longest prompt and answer there can be. Every prompt is encoded before the first is answered,
  // pictures are read when their prompt's turn comes: one that is broken costs its prompt the
  // answer, which then has an `error`. `on_answer` gets the prompts' numbers in the order their
  // answers end. Throws DataError beginning with a prompt's `where` if one cannot be encoded;
  // ConfigError if the cache does not fit; NonFiniteError.
  BatchStats answer_batch(
      const std::vector<BatchPrompt>& prompts, int64_t batch_size,
      const std::function<void(size_t prompt, const Answer& answer)>& on_answer) const;

  // What such a call holds at a time, and what answer() does of a conversation of which nothing is
  // known yet (4096 tokens, or all there can be). Need no weights. Throw as answer_batch() does
  // before the first answer.
  static DecodeLoad batch_load(const LoadedModel& model, const SamplingConfig& sampling,
                               const std::vector<BatchPrompt>& prompts, int64_t batch_size);
  static DecodeLoad chat_load(const LoadedModel& model, const SamplingConfig& sampling);

 private:
  const LoadedModel& model_;
  SamplingConfig sampling_;
  PromptEncoder encoder_;
  std::unique_ptr<StepRecorder> recorder_;  // null: steps are not recorded
};

}  // namespace mgm
