// The small files that a language model's directory has beside config.json and tokenizer, and that
// a model made of it should have too.
#pragma once

#include <map>
#include <string>

#include "assemble/hf_config.h"
#include "base/fs.h"

namespace mgm {

// generation_config.json, chat_template.jinja, LICENSE* and NOTICE* of `backbone` (a directory, a
// GGUF file, or a directory with nothing but one), name -> content. A generation_config.json that
// is not there is made of the token ids of the backbone's config.json or metadata, else of `ids`.
// Throws CheckpointError on a config.json that is no JSON.
std::map<std::string, std::string> backbone_files(const fs::path& backbone, const SpecialIds& ids);

}  // namespace mgm
