// Text <-> token ids, with the place in the text that every token came from, so that labels follow
// from spans of text. One interface for every kind of vocabulary: sentencepiece, tokenizer.json,
// tiktoken and tekken.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

// A token and the bytes [begin, end) of the text it stands for. Tokens that stand for nothing in
// the text (BOS, EOS, the first bytes of a character spelled in byte pieces) have begin == end.
struct TokenSpan {
  int32_t id = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // With BOS and EOS where the tokenizer adds them. Special tokens written in the text become their
  // ids. Invalid UTF-8 becomes U+FFFD first; the places are those of the text with it.
  virtual std::vector<TokenSpan> encode_spans(std::string_view text) const = 0;
  std::vector<int32_t> encode(std::string_view text) const;

  // The text of the ids; special tokens (BOS, EOS, ...) are left out if `skip_special`. Throws
  // DataError on an id outside the vocabulary.
  virtual std::string decode(const std::vector<int32_t>& ids, bool skip_special) const = 0;

  virtual int64_t vocab_size() const = 0;  // added tokens included
  virtual std::string piece(int32_t id) const = 0;
  virtual int32_t token_id(const std::string& piece) const = 0;  // -1: none
  virtual bool is_special(int32_t id) const = 0;
  // Whether the text of this token may still change with the one that follows.
  virtual bool is_tentative(int32_t) const { return false; }
  virtual int32_t bos_id() const = 0;  // -1: none
  virtual int32_t eos_id() const = 0;
  virtual int32_t pad_id() const = 0;
  virtual bool adds_bos() const = 0;

  // U+FFFD put for invalid UTF-8 in all texts encoded so far, over all threads.
  int64_t replaced_parts() const { return replaced_.load(std::memory_order_relaxed); }

  // The files it was loaded from, name -> content; what `mgm export` puts beside the weights.
  virtual const std::vector<std::pair<std::string, std::string>>& files() const = 0;

 protected:
  // The text with U+FFFD for what is invalid, which is counted.
  std::string clean(std::string_view text) const;

 private:
  mutable std::atomic<int64_t> replaced_{0};
};

// `path`: a file, or a directory with one (docs/tokenizers.md): tokenizer.model (sentencepiece, as
// Hugging Face's slow LlamaTokenizer and GemmaTokenizer use it; or tiktoken's text),
// tokenizer.json, tekken.json, *.tiktoken, *.gguf, looked for in this order; the settings beside
// it in tokenizer_config.json, special_tokens_map.json and added_tokens.json, but for GGUF. Throws
// DataError naming file and component; a damaged GGUF file is a CheckpointError.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);

// Token by token output: holds back bytes until they are whole characters.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The text that became certain with this token; may be empty.
  std::string push(int32_t id);
  std::string finish();  // what is still held back
  const std::string& text() const { return text_; }

 private:
  void begin_anew();

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;  // the last ones; those before them are in no doubt any more
  size_t settled_ = 0;        // of ids_, whose text has all been handed out
  size_t told_ = 0;           // bytes of the text of ids_ that were
  std::string text_;          // everything handed out so far
};

}  // namespace mgm
