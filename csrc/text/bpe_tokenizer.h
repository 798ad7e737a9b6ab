// A tokenizer put together from parts: added tokens, normalizer, pre-tokenizer, byte-pair encoding,
// the tokens a text is put between, decoder. The parts may come from any kind of file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/tokenizer.h"
#include "text/tokenizer_settings.h"

namespace mgm {

struct BpeTokenizerParts {
  std::string source;  // the file, for errors
  // Spellings by id as the file has them; bytes in GPT-2's alphabet where `bpe` works on bytes.
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::unique_ptr<Bpe> bpe;
  std::vector<AddedToken> added;  // one may be there twice, `normalized` and not
  bool split_special = false;     // special tokens written in a text are text
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::vector<int32_t> before, after;  // ids around every text
  TokenDecoder decoder;
  std::string bos, eos, pad;  // empty: none
  TokenizerFiles files;
};

// Throws DataError beginning with the source if an added token contradicts the vocabulary, or a
// named special token does not exist.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeTokenizerParts parts);

}  // namespace mgm
