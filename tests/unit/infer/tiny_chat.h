// A tiny Mini-Gemini with the embedded tokenizer, for tests of generation.
#pragma once

#include "data/pack.h"
#include "infer/generator.h"
#include "tiny_model.h"

namespace mgm {

inline constexpr int64_t kVocabulary = 1024;  // of the embedded tokenizer
inline constexpr int64_t kRows = 1031;  // of the embedding and the head: some rows are padding

inline DirectRunner g_direct;
inline const ForwardContext kPlain{g_direct};

struct TinyChat {
  explicit TinyChat(at::ScalarType dtype = at::kFloat,
                    const std::function<void(RunConfig&)>& change = {}) {
    RunConfig config = tiny_config();
    config.model.llm.vocab_size = kRows;
    config.model.llm.max_positions = 512;
    if (change) change(config);
    loaded.description = {config.model, config.image, config.text};
    loaded.model = std::make_unique<MiniGemini>(config.model, config.image);
    loaded.tokenizer = load_tokenizer(MGM_SOURCE_DIR "/data/embedded/tokenizer");
    uint64_t seed = 1;
    for (Param* param : loaded.model->params()) {
      param->value = redrawn(param->spec, seed++).to(dtype);
    }
  }

  at::Tensor weight(const std::string& name) const {
    for (Param* param : loaded.model->params()) {
      if (param->spec.name == name) return param->value;
    }
    throw InternalError("no parameter ", name);
  }

  std::vector<Picture> pictures(int64_t count) const {
    return tiny_sample(*loaded.model, 5, count, 5).pictures;
  }

  at::Tensor visual(int64_t count) const {
    return encode_pictures(loaded, pictures(count), kPlain);
  }

  // Token by token without any cache, from pixels to logits each time.
  std::vector<int32_t> without_cache(const std::vector<Turn>& turns, int64_t count,
                                     int64_t tokens) const {
    const ConversationEncoder encoder(load_template("v1"), *loaded.tokenizer, MarkerPolicy::kError);
    Sample sample = widen_markers(encoder.encode_prompt(turns, count, "test"),
                                  loaded.model->geometry().tokens());
    sample.pictures = pictures(count);
    std::vector<int32_t> out;
    while (static_cast<int64_t>(out.size()) < tokens) {
      const at::Tensor hidden = loaded.model->hidden(pack({sample}, 0, 0), kPlain);
      const at::Tensor logits = loaded.model->decoder().logits(hidden, kPlain)[-1];
      const auto id = logits.narrow(0, 0, kVocabulary).argmax().item<int64_t>();
      out.push_back(static_cast<int32_t>(id));
      if (id == loaded.tokenizer->eos_id()) break;
      sample.ids.push_back(id);
      sample.labels.push_back(kIgnoreIndex);
    }
    return out;
  }

  LoadedModel loaded;
};

inline SamplingConfig greedy(int64_t tokens) {
  SamplingConfig config;
  config.max_new_tokens = tokens;
  return config;
}

}  // namespace mgm
