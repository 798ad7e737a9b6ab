// The Jinja chat template that a published directory carries, held against the chat format that is
// used instead (text/conversation.h): a model that was trained with one and is asked in the other
// answers worse, and nothing else says so.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/fs.h"
#include "text/conversation.h"
#include "text/tokenizer.h"

namespace mgm {

struct ChatTemplate {
  std::string source;  // the file, and of a list of named ones the name
  std::string text;
  std::string unusable = {};  // why there is no text, where a file has a value of another kind
  bool none = false;          // unusable, and meant as no template: null
};

// That of a model directory (chat_template.jinja, chat_template.json, tokenizer_config.json, or its
// only GGUF file), or of a GGUF file; of another file, that of its folder. None: nothing is there.
// Of a list of named templates the one called "default" counts. A value that is neither text nor
// such a list is told in `unusable`. Throws DataError on a file that cannot be read.
std::optional<ChatTemplate> find_chat_template(const fs::path& model);

struct TemplateComparison {
  enum class Outcome { kSame, kDiffers, kNotCompared };
  Outcome outcome = Outcome::kSame;
  // The conversation, the place and the first characters that differ; or why it was not compared.
  std::string what;
};

// Both render a question, a question with its answer, and a second question behind it, without a
// system message of the user's; the BOS that the tokenizer adds counts. A format for captions is
// not compared.
TemplateComparison compare_chat_template(const ChatTemplate& theirs,
                                         const ConversationTemplate& ours,
                                         const Tokenizer& tokenizer);

// One sentence for a log or a report, on the first of the places (as find_chat_template takes them;
// empty: none) whose template differs or cannot be compared; empty where none does. Throws nothing.
std::string chat_template_warning(const std::vector<fs::path>& places,
                                  const ConversationTemplate& ours, const Tokenizer& tokenizer);

// Tokens that the format ends answers with and the tokenizer lacks: it would teach the end of an
// answer as ordinary text.
std::vector<std::string> missing_end_tokens(const ConversationTemplate& ours,
                                            const Tokenizer& tokenizer);

// One sentence where no token that ends generation stands at the end of the format's answers: a
// model that learned it would write on. Empty where one does, and for captions.
std::string endless_answers_warning(const ConversationTemplate& ours, const Tokenizer& tokenizer);

}  // namespace mgm
