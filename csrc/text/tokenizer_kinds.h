// Loaders of the single kinds of tokenizer files, for load_tokenizer. Each reads the settings files
// beside its own and throws DataError naming the file. The make_ forms take the files' contents,
// the vocabulary first, and `source` for errors.
#pragma once

#include <memory>

#include "base/fs.h"
#include "text/tokenizer.h"
#include "text/tokenizer_settings.h"

namespace mgm {

// tokenizer.model as Hugging Face's slow LlamaTokenizer and GemmaTokenizer use it.
std::unique_ptr<Tokenizer> load_sentencepiece(const fs::path& path);
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const fs::path& source,
                                                        TokenizerFiles files);

// tokenizer.json of Hugging Face's tokenizers, model type BPE.
std::unique_ptr<Tokenizer> load_tokenizer_json(const fs::path& path);
std::unique_ptr<Tokenizer> make_json_tokenizer(const fs::path& source, TokenizerFiles files);

// Lines of base64 and rank. The pattern and the special tokens are not in the file: they are those
// of the published encoding with this number of ranks.
std::unique_ptr<Tokenizer> load_tiktoken(const fs::path& path);

// The vocabulary inside a GGUF file (text/gguf_vocabulary.h). A damaged file is a CheckpointError.
std::unique_ptr<Tokenizer> load_gguf_tokenizer(const fs::path& path);

// Mistral's tekken.json.
std::unique_ptr<Tokenizer> load_tekken(const fs::path& path);

}  // namespace mgm
