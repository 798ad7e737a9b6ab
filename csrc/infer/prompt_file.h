// A file of questions, JSON lines: {"id": text or number, "prompt": text, "image": path, list of
// paths or absent}. Paths are relative to the current folder. Empty lines are skipped.
#pragma once

#include <vector>

#include "base/json.h"
#include "infer/generator.h"

namespace mgm {

struct PromptFile {
  std::vector<Json> ids;             // as written
  std::vector<BatchPrompt> prompts;  // one for each id
};

// Throws DataError "path:line: ..." on a line that is no such object, a key it does not know, an id
// that comes twice, an empty prompt without a picture, and a picture that is not there; on a file
// without a question too.
PromptFile read_prompt_file(const fs::path& path);

// {"id": ..., "answer": text, "stopped": whether by an end token} and a line feed; {"id": ...,
// "error": text} where there is no answer.
std::string answer_line(const Json& id, const Answer& answer);

}  // namespace mgm
