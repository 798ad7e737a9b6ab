#include "text/tokenizer.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/file_access.h"
#include "base/fs.h"
#include "base/log_once.h"
#include "formats/gguf.h"
#include "text/gguf_vocabulary.h"
#include "text/tokenizer_kinds.h"
#include "text/utf8.h"

namespace mgm {
namespace {

enum class Kind { kSentencePiece, kTokenizerJson, kTiktoken, kTekken, kGguf };

// Base64, a blank, a number: how every line of a tiktoken file looks.
bool looks_like_tiktoken(std::string_view text) {
  const std::string_view line = text.substr(0, std::min(text.find('\n'), size_t{4096}));
  const size_t blank = line.find(' ');
  if (blank == line.npos || blank == 0) return false;
  const std::string_view rank = trim(line.substr(blank + 1));
  constexpr std::string_view kBase64 =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
  return !rank.empty() && rank.find_first_not_of("0123456789") == rank.npos &&
         line.substr(0, blank).find_first_not_of(kBase64) == line.npos;
}

// By its name or first bytes: a GGUF file may be far larger than memory, so it is not read whole.
bool is_gguf_vocabulary(const fs::path& file) {
  return file.extension() == ".gguf" || is_gguf(read_beginning(file, 4));
}

Kind kind_of(const fs::path& file) {
  if (file.extension() == ".tiktoken") return Kind::kTiktoken;
  const std::string name = file.filename().string();
  if (file.extension() == ".json") {
    return name.rfind("tekken", 0) == 0 ? Kind::kTekken : Kind::kTokenizerJson;
  }
  if (is_gguf_vocabulary(file)) return Kind::kGguf;
  return looks_like_tiktoken(read_file(file)) ? Kind::kTiktoken : Kind::kSentencePiece;
}

// The one file of a directory that names it. A tokenizer.model of sentencepiece is the vocabulary
// the slow classes read, which published models of this family were trained with; a tokenizer.json
// beside one of tiktoken's says more than it.
fs::path tokenizer_file(const fs::path& dir) {
  std::error_code ignored;
  const fs::path model = dir / "tokenizer.model", json = dir / "tokenizer.json";
  const bool has_json = fs::exists(json, ignored);
  if (fs::exists(model, ignored) && !(has_json && kind_of(model) == Kind::kTiktoken)) return model;
  if (has_json) return json;
  if (fs::exists(dir / "tekken.json", ignored)) return dir / "tekken.json";
  std::vector<fs::path> ranks, ggufs;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    if (entry.path().extension() == ".tiktoken") ranks.push_back(entry.path());
    if (entry.path().extension() == ".gguf") ggufs.push_back(entry.path());
  }
  if (ranks.size() == 1) return ranks[0];
  if (ranks.empty() && ggufs.size() == 1) return ggufs[0];
  throw DataError(dir.string(), ": no tokenizer.model, tokenizer.json, tekken.json, ",
                  ranks.empty() ? "" : "single ", "*.tiktoken or ", ggufs.empty() ? "" : "single ",
                  "*.gguf in this directory");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
  std::error_code ignored;
  const fs::path file = fs::is_directory(path, ignored) ? tokenizer_file(path) : fs::path(path);
  switch (kind_of(file)) {
    case Kind::kTokenizerJson:
      return load_tokenizer_json(file);
    case Kind::kTiktoken:
      return load_tiktoken(file);
    case Kind::kTekken:
      return load_tekken(file);
    case Kind::kGguf:
      return load_gguf_tokenizer(file);
    case Kind::kSentencePiece:
      break;
  }
  return load_sentencepiece(file);
}

std::unique_ptr<Tokenizer> load_gguf_tokenizer(const fs::path& path) {
  const MappedFile mapped(path);
  const std::string source = path.string();
  const GgufFile file =
      parse_gguf({reinterpret_cast<const char*>(mapped.data()), mapped.size()}, source);
  const GgufVocabulary vocabulary = read_gguf_vocabulary(file, source);
  if (vocabulary.kind == GgufVocabulary::Kind::kSentencePiece) {
    return make_sentencepiece_tokenizer(path, gguf_tokenizer_files(vocabulary));
  }
  if (vocabulary.pre.empty()) {
    log::warn_once(cat(source,
                       ": names no pre-tokenizer (tokenizer.ggml.pre); llama.cpp's default is ",
                       "used, which may cut text otherwise than the model was trained with"));
  }
  return make_json_tokenizer(path, gguf_tokenizer_files(vocabulary));
}

std::string Tokenizer::clean(std::string_view text) const {
  int64_t replaced = 0;
  std::string out = valid_utf8(text, &replaced);
  if (replaced > 0) replaced_.fetch_add(replaced, std::memory_order_relaxed);
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  for (const TokenSpan& token : encode_spans(text)) ids.push_back(token.id);
  return ids;
}

std::string StreamDecoder::push(int32_t id) {
  ids_.push_back(id);
  if (tokenizer_.is_tentative(id)) return "";
  const std::string all = tokenizer_.decode(ids_, /*skip_special=*/true);
  // A character spelled in byte pieces decodes to U+FFFD until its last byte is there.
  std::string_view certain = std::string_view(all).substr(0, whole_characters(all));
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  while (certain.size() >= kReplacement.size() &&
         certain.substr(certain.size() - kReplacement.size()) == kReplacement) {
    certain.remove_suffix(kReplacement.size());
  }
  if (certain.size() <= told_) return "";
  std::string fresh(certain.substr(told_));
  told_ = certain.size();
  text_ += fresh;
  if (certain.size() == all.size()) begin_anew();
  return fresh;
}

// Nothing is held back: the tokens since this was last so are enough to decode what follows as it
// would be behind all others. A text's first blank, which some tokenizers drop, must lie in them.
void StreamDecoder::begin_anew() {
  const std::vector<int32_t> recent(ids_.begin() + static_cast<int64_t>(settled_), ids_.end());
  settled_ = ids_.size();
  const std::string text = tokenizer_.decode(recent, /*skip_special=*/true);
  if (text.find_first_not_of(" \n\t") == text.npos) return;
  ids_ = recent;
  settled_ = ids_.size();
  told_ = text.size();
}

std::string StreamDecoder::finish() {
  const std::string all = tokenizer_.decode(ids_, /*skip_special=*/true);
  const std::string rest = all.size() > told_ ? all.substr(told_) : "";
  told_ = all.size();
  text_ += rest;
  return rest;
}

}  // namespace mgm
