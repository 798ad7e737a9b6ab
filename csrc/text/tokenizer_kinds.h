// Loaders of the single kinds of tokenizer files, for load_tokenizer. Each reads the settings files
// beside its own and throws DataError naming the file.
#pragma once

#include <memory>

#include "base/fs.h"
#include "text/tokenizer.h"

namespace mgm {

// tokenizer.model as Hugging Face's slow LlamaTokenizer and GemmaTokenizer use it.
std::unique_ptr<Tokenizer> load_sentencepiece(const fs::path& path);

// tokenizer.json of Hugging Face's tokenizers, model type BPE.
std::unique_ptr<Tokenizer> load_tokenizer_json(const fs::path& path);

// Lines of base64 and rank. The pattern and the special tokens are not in the file: they are those
// of the published encoding with this number of ranks.
std::unique_ptr<Tokenizer> load_tiktoken(const fs::path& path);

// Mistral's tekken.json.
std::unique_ptr<Tokenizer> load_tekken(const fs::path& path);

}  // namespace mgm
