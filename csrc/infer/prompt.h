// What comes before an answer: pictures as visual tokens, and conversations as token ids that fit
// the model's context.
#pragma once

#include <string>
#include <vector>

#include "assemble/model_dir.h"
#include "data/sample.h"
#include "text/conversation.h"

namespace mgm {

// Reads a picture and prepares it as in training. Throws DataError.
Picture load_picture(const std::string& path, const ModelDescription& description);

// Visual tokens [N, tokens, H] of the pictures; undefined for none. Drop path draws by the number
// that a picture has in its own conversation: `numbers`, 0, 1, ... where none are given.
at::Tensor encode_pictures(const LoadedModel& model, const std::vector<Picture>& pictures,
                           const ForwardContext& ctx, const std::vector<int64_t>& numbers = {});

// An answer as a turn of the conversation that goes on. An <image> that the model wrote is no place
// of a picture: it becomes "< image>", with a warning.
Turn answer_turn(const std::string& answer);

struct Prompt {
  Encoded encoded;     // one marker per picture
  int64_t length = 0;  // rows of the token stream, visual tokens included
  int64_t budget = 0;  // most tokens an answer may have, at least 1
};

// A conversation without its oldest turns.
struct TrimmedTurns {
  std::vector<Turn> turns;
  int64_t dropped = 0;  // questions left out, each with its answer
  int64_t tokens_before = 0, tokens_after = 0;
};

class PromptEncoder {
 public:
  // `model` must outlive the encoder. Throws ConfigError for an unknown template; warns of a stop
  // token of the template that the tokenizer lacks.
  PromptEncoder(const LoadedModel& model, int64_t max_new_tokens);

  // `turns` end with the user's; their image markers stand for the pictures, in order. If no turn
  // has a marker, the first gets one per picture in front. An answer ends at
  // model.llm.max_positions at the latest. Throws DataError beginning with `where` when the prompt
  // leaves no room for one, or markers and pictures differ in number.
  Prompt encode(std::vector<Turn> turns, int64_t pictures, const std::string& where) const;

  // Leaves out the oldest questions, each with its answer, until there is room for an answer of
  // max_new_tokens, at most a quarter of the context. The template's system text, the last question
  // and turns with pictures stay; turns and markers as in encode(). Throws DataError beginning with
  // `where` when what stays leaves no room for an answer, and as encode() does.
  TrimmedTurns trim(std::vector<Turn> turns, int64_t pictures, const std::string& where) const;

  // Ids that end an answer: the tokenizer's EOS, the template's and the model directory's.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 private:
  int64_t length(const Encoded& encoded) const;

  const LoadedModel& model_;
  int64_t max_new_tokens_;
  ConversationEncoder encoder_;
  std::vector<int32_t> stop_ids_;
};

}  // namespace mgm
