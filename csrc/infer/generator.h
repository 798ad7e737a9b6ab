// Answers, token by token: the training forward for the prompt, then a KV cache. Greedy decoding is
// a pure function of model, prompt and pictures; sampling also of its seed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "assemble/model_dir.h"
#include "data/sample.h"
#include "infer/sampler.h"
#include "text/conversation.h"

namespace mgm {

// Reads a picture and prepares it as in training. Throws DataError.
Picture load_picture(const std::string& path, const ModelDescription& description);

// Visual tokens [N, tokens, H] of the pictures; undefined for none.
at::Tensor encode_pictures(const LoadedModel& model, const std::vector<Picture>& pictures,
                           const ForwardContext& ctx);

struct Answer {
  std::string text;          // without the end token, white space at both ends removed
  std::vector<int32_t> ids;  // the end token included, if there was one
  bool stopped = false;      // by an end token; else by max_new_tokens or the context's end
};

class Generator {
 public:
  // `model` must outlive the generator. Throws ConfigError for an unknown template.
  Generator(const LoadedModel& model, const SamplingConfig& sampling);

  // `turns` end with the user's; their image markers stand for `visual_NTH`, in order. If no turn
  // has a marker, the first gets one per picture in front. `on_text` receives the answer as it
  // grows. An answer ends at model.llm.max_positions at the latest. Throws DataError when the
  // prompt leaves no room for one, or markers and pictures differ in number; NonFiniteError.
  Answer answer(std::vector<Turn> turns, const at::Tensor& visual_NTH,
                const std::function<void(const std::string&)>& on_text = {}) const;

 private:
  const LoadedModel& model_;
  SamplingConfig sampling_;
  ConversationEncoder encoder_;
};

}  // namespace mgm
