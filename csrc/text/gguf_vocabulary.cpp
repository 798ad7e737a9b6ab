#include "text/gguf_vocabulary.h"

#include "base/error.h"
#include "text/utf8.h"

namespace mgm {
namespace {

// Metadata by key, with errors that name it.
class Metadata {
 public:
  Metadata(const GgufFile& file, const std::string& source) : file_(file), source_(source) {}

  const GgufValue* find(const std::string& key) const {
    const auto it = file_.metadata.find(key);
    return it == file_.metadata.end() ? nullptr : &it->second;
  }

  template <class... Args>
  [[noreturn]] void fail(const std::string& key, const Args&... why) const {
    throw DataError(source_, ": metadata '", key, "' ", why...);
  }

  std::string text_or(const std::string& key, const std::string& other) const {
    const GgufValue* value = find(key);
    if (!value) return other;
    if (!value->string()) fail(key, "is no text");
    return checked(key, *value->string());
  }

  bool flag_or(const std::string& key, bool other) const {
    const GgufValue* value = find(key);
    if (!value) return other;
    if (!value->boolean()) fail(key, "is neither true nor false");
    return *value->boolean();
  }

  // Of a list of `size` elements (0: any number); empty if it is not there.
  std::vector<GgufValue> list(const std::string& key, size_t size) const {
    const GgufValue* value = find(key);
    if (!value) return {};
    if (value->kind != GgufKind::kArray) fail(key, "is no list");
    if (size > 0 && value->count != size) {
      fail(key, "has ", value->count, " elements for ", size, " tokens");
    }
    return *value->elements();
  }

  std::vector<std::string> texts(const std::string& key) const {
    std::vector<std::string> out;
    for (const GgufValue& value : list(key, 0)) {
      if (!value.string()) fail(key, "holds something that is no text, at place ", out.size());
      out.push_back(checked(key, *value.string()));
    }
    return out;
  }

  // The id of a special token. One outside the vocabulary counts as not there, as in llama.cpp.
  int32_t id_or(const std::string& key, int32_t other, size_t tokens) const {
    const GgufValue* value = find(key);
    if (!value) return other;
    const auto id = value->integer();
    if (!id) fail(key, "is no token id");
    return *id >= 0 && static_cast<uint64_t>(*id) < tokens ? static_cast<int32_t>(*id) : other;
  }

 private:
  std::string checked(const std::string& key, std::string_view text) const {
    if (valid_utf8(text) != text) fail(key, "holds invalid UTF-8: '", valid_utf8(text), "'");
    return std::string(text);
  }

  const GgufFile& file_;
  const std::string& source_;
};

GgufVocabulary::Kind read_kind(const Metadata& m, const std::string& source) {
  const std::string model = m.text_or("tokenizer.ggml.model", "");
  if (model == "gpt2") return GgufVocabulary::Kind::kByteLevel;
  if (model == "llama") return GgufVocabulary::Kind::kSentencePiece;
  if (model.empty()) {
    throw DataError(source, ": holds no tokenizer (no metadata 'tokenizer.ggml.model'); name the ",
                    "model's tokenizer files in text.tokenizer");
  }
  m.fail("tokenizer.ggml.model", "is '", model, "', a kind of tokenizer that is not read; known: ",
         "gpt2 (byte-level BPE), llama (sentencepiece)");
}

void read_types(const Metadata& m, GgufVocabulary& out) {
  const char* key = "tokenizer.ggml.token_type";
  out.types.assign(out.tokens.size(), GgufTokenType::kNormal);
  const std::vector<GgufValue> list = m.list(key, out.tokens.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const auto type = list[i].integer();
    if (!type) m.fail(key, "holds something that is no number, at place ", i);
    if (*type >= 1 && *type <= 6) out.types[i] = static_cast<GgufTokenType>(*type);
  }
}

void read_scores(const Metadata& m, GgufVocabulary& out) {
  const char* key = "tokenizer.ggml.scores";
  const std::vector<GgufValue> list = m.list(key, out.tokens.size());
  if (list.empty()) m.fail(key, "is missing: a sentencepiece vocabulary has scores");
  for (const GgufValue& value : list) {
    const auto score = value.number();
    if (!score) m.fail(key, "holds something that is no number, at place ", out.scores.size());
    out.scores.push_back(static_cast<float>(*score));
  }
}

void read_merges(const Metadata& m, GgufVocabulary& out) {
  const char* key = "tokenizer.ggml.merges";
  if (!m.find(key)) m.fail(key, "is missing: a byte-level vocabulary has merges");
  for (const std::string& merge : m.texts(key)) {
    const size_t blank = merge.find(' ', 1);
    if (blank == merge.npos || blank + 1 == merge.size()) {
      m.fail(key, "holds '", merge, "', at place ", out.merges.size(),
             ", which is not two tokens with a blank between");
    }
    out.merges.emplace_back(merge.substr(0, blank), merge.substr(blank + 1));
  }
}

// Pre-tokenizers that come with a BOS where the file says nothing.
bool pre_adds_bos(const std::string& pre) {
  for (const char* name :
       {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}) {
    if (pre == name) return true;
  }
  return false;
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const GgufFile& file, const std::string& source) {
  const Metadata m(file, source);
  GgufVocabulary out;
  out.source = source;
  out.kind = read_kind(m, source);
  out.architecture = m.text_or("general.architecture", "");
  out.name = m.text_or("general.name", "");
  out.pre = m.text_or("tokenizer.ggml.pre", "");
  out.chat_template = m.text_or("tokenizer.chat_template", "");
  out.tokens = m.texts("tokenizer.ggml.tokens");
  if (out.tokens.empty()) m.fail("tokenizer.ggml.tokens", "is missing or empty");
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    if (out.tokens[i].empty()) out.tokens[i] = cat("[EMPTY_", i, "]");  // llama.cpp's name for it
  }
  read_types(m, out);
  const bool sentencepiece = out.kind == GgufVocabulary::Kind::kSentencePiece;
  if (sentencepiece) {
    read_scores(m, out);
  } else {
    read_merges(m, out);
  }
  const auto id = [&](const char* key, int32_t other) {
    const bool inside = other >= 0 && static_cast<size_t>(other) < out.tokens.size();
    return m.id_or(cat("tokenizer.ggml.", key), inside ? other : -1, out.tokens.size());
  };
  out.bos = id("bos_token_id", sentencepiece ? 1 : -1);
  out.eos = id("eos_token_id", sentencepiece ? 2 : -1);
  out.unk = id("unknown_token_id", sentencepiece ? 0 : -1);
  out.pad = id("padding_token_id", -1);
  out.add_bos = m.flag_or("tokenizer.ggml.add_bos_token", sentencepiece || pre_adds_bos(out.pre));
  out.add_eos = m.flag_or("tokenizer.ggml.add_eos_token", false);
  out.add_space_prefix = m.flag_or("tokenizer.ggml.add_space_prefix", sentencepiece);
  if (out.add_bos && out.bos < 0) m.fail("tokenizer.ggml.bos_token_id", "is missing: BOS is added");
  if (out.add_eos && out.eos < 0) m.fail("tokenizer.ggml.eos_token_id", "is missing: EOS is added");
  return out;
}

}  // namespace mgm
