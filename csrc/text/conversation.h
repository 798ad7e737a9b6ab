// Chat formats and what a model is taught of a conversation. A format is a row of a YAML table
// (configs/templates/conversations.yaml, built in), so that a new one needs no C++; labels come
// from spans of the rendered text, not from counting tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "text/tokenizer.h"

namespace mgm {

// One row of the table. A rendered conversation is
//   begin, then per turn pair: user_begin question user_end assistant_begin answer assistant_end
// with first_user_begin instead of user_begin in the first pair. A conversation to be continued
// ends in assistant_prompt instead of the last answer.
struct ConversationTemplate {
  std::string name;
  std::string begin;
  std::string first_user_begin, user_begin, user_end;
  std::string assistant_begin, assistant_prompt, assistant_end;
  bool captions = false;  // `plain`: the question's text is dropped, only its image markers stay
  std::vector<std::string> stop;  // tokens that end an answer, besides the tokenizer's EOS
};

// By name or alias from the built-in table, NAME from a file given as "path.yaml:NAME", or what
// template_text wrote. Throws ConfigError listing the known names.
ConversationTemplate load_template(const std::string& name);
// The row itself, {NAME: {...}} in JSON, for where its file will not be.
std::string template_text(const ConversationTemplate& conversation);
std::vector<std::string> template_names();

struct Turn {
  std::string from;  // "human" or "gpt"
  std::string value;
};

inline constexpr std::string_view kImageMarker = "<image>";

struct Span {
  int64_t begin = 0, end = 0;  // bytes
};

struct Rendered {
  std::string text;               // with one kImageMarker per image
  std::vector<Span> supervised;   // answers with their end, from where a prompt would end
  int64_t images = 0;             // markers in the text
  int64_t collapsed_markers = 0;  // markers dropped by MarkerPolicy::kCollapse
};

// Ids with one kImageTokenIndex (types/batch.h) per image, not expanded; labels are the ids of
// supervised tokens and kIgnoreIndex elsewhere, not shifted.
struct Encoded {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;
  int64_t images = 0;
  int64_t collapsed_markers = 0;
  int64_t straddling = 0;  // tokens with text of a prompt and of the answer behind it
};

class ConversationEncoder {
 public:
  // `tokenizer` must outlive the encoder.
  ConversationEncoder(ConversationTemplate conversation, const Tokenizer& tokenizer,
                      MarkerPolicy markers);

  // A whole conversation. Throws DataError beginning with `where` when it starts with the
  // assistant, turns do not alternate, an answer is empty, markers and images differ, or nothing is
  // supervised.
  Encoded encode_training(const std::vector<Turn>& turns, int64_t num_images,
                          const std::string& where) const;

  // A conversation whose last turn is the user's, up to where the answer begins. No labels.
  Encoded encode_prompt(const std::vector<Turn>& turns, int64_t num_images,
                        const std::string& where) const;

  // Ids that end an answer.
  std::vector<int32_t> stop_ids() const;
  const ConversationTemplate& conversation() const { return template_; }

 private:
  Encoded tokenize(const Rendered& rendered) const;

  ConversationTemplate template_;
  const Tokenizer& tokenizer_;
  MarkerPolicy markers_;
};

// The text alone; an empty last assistant turn, or none, gives a prompt. The same errors as above,
// except that the number of images is not checked.
Rendered render_conversation(const ConversationTemplate& conversation,
                             const std::vector<Turn>& turns, MarkerPolicy markers,
                             const std::string& where);

// Ids of `text`, split at kImageMarker; labels from `supervised`. (MGM tokenizer_image_token.)
// A token that begins before a span and ends in it ("\n\n", of a template's line feed and the
// answer's) takes a place that the prompt alone fills: it is not supervised, as the reference's
// count of the prompt's tokens has it, but counted.
Encoded encode_with_images(const Tokenizer& tokenizer, const std::string& text,
                           const std::vector<Span>& supervised);

}  // namespace mgm
