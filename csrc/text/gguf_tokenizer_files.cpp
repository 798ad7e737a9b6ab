// A GGUF vocabulary as tokenizer.json or tokenizer.model, and tokenizer_config.json.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "text/gguf_vocabulary.h"

namespace mgm {
namespace {

// A value of `tokenizer.ggml.pre`: how text is cut into words before byte-pair encoding, one
// pattern after the other. The patterns are those of the models' own tokenizer.json, which
// llama.cpp's are made to equal.
struct PreTokenizerRule {
  std::vector<std::string> names;
  std::vector<std::string> patterns;
  bool ignore_merges = false;
  bool nfc = false;  // the models' own normalizer, which llama.cpp leaves out
};

constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kSeedCoder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
// DeepSeek's letters, punctuation and Chinese, as their tokenizer.json lists them.
constexpr const char* kDeepseekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-)"
    R"(\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386})"
    R"(\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F})"
    R"(\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-)"
    R"(\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59})"
    R"(\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-)"
    R"(\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC})"
    R"(\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-)"
    R"(\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-)"
    R"(\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4})"
    R"(\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F})"
    R"(\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-)"
    R"(\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3})"
    R"(\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943}]+)";
constexpr const char* kDeepseekPunctuation =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr const char* kCjk = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";

const std::vector<PreTokenizerRule>& rules() {
  static const std::vector<PreTokenizerRule> kAll = {
      // llama.cpp's own for files that name none.
      {{"default"}, {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"},
       {kLlama3},
       /*ignore_merges=*/true},
      {{"dbrx", "smaug-bpe"}, {kLlama3}},
      {{"gpt-2", "phi-2", "trillion", "exaone4"}, {kGpt2}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       {R"(\p{N})", kGpt2}},
      {{"qwen2", "deepseek-r1-qwen"}, {kQwen2}, /*ignore_merges=*/false, /*nfc=*/true},
      {{"stablelm2", "megrez", "hunyuan"}, {kQwen2}},
      {{"tekken"}, {kTekken}, /*ignore_merges=*/true},
      {{"gpt-4o", "llama4"}, {kGpt4o}},
      {{"seed-coder"}, {kSeedCoder}},
      {{"deepseek-llm"},
       {"[\r\n]", kDeepseekLetters, kDeepseekPunctuation, "\\s+$", kCjk, R"(\p{N}+)"}},
      {{"deepseek-coder"}, {"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjk, R"(\p{N})"}},
  };
  return kAll;
}

const PreTokenizerRule& rule_of(const GgufVocabulary& v) {
  const std::string name = v.pre.empty() ? "default" : v.pre;
  std::vector<std::string> known;
  for (const PreTokenizerRule& rule : rules()) {
    for (const std::string& other : rule.names) {
      if (other == name) return rule;
      known.push_back(other);
    }
  }
  std::sort(known.begin(), known.end());
  throw DataError(v.source, ": metadata 'tokenizer.ggml.pre' is '", name,
                  "', a pre-tokenizer that is not known; known: ", join(known, ", "),
                  ". Put the model's tokenizer.json beside the weights, or name it in "
                  "text.tokenizer");
}

// The rule of llama.cpp: an attribute that GGUF has no place for.
bool strips_behind(const GgufVocabulary& v, const std::string& token) {
  const std::string name = to_lower(v.name);
  const bool phi3 = name.find("phi-3") != name.npos || name.find("phi3") != name.npos;
  return phi3 && token != "<unk>" && token != "<s>" && token != "<|endoftext|>";
}

OrderedJson added_token(const GgufVocabulary& v, size_t id, bool special) {
  return {
      {"content", v.tokens[id]},
      {"lstrip", false},
      {"normalized", false},
      {"rstrip", v.kind == GgufVocabulary::Kind::kSentencePiece && strips_behind(v, v.tokens[id])},
      {"single_word", false},
      {"special", special}};
}

void name_special(const GgufVocabulary& v, OrderedJson& config) {
  for (const auto& [key, id] : {std::pair{"bos_token", v.bos},
                                {"eos_token", v.eos},
                                {"unk_token", v.unk},
                                {"pad_token", v.pad}}) {
    if (id >= 0) config[key] = v.tokens[static_cast<size_t>(id)];
  }
  config["clean_up_tokenization_spaces"] = false;
  if (!v.chat_template.empty()) config["chat_template"] = v.chat_template;
}

// ---- byte level ---------------------------------------------------------------------------------

OrderedJson pre_tokenizer(const PreTokenizerRule& rule) {
  OrderedJson steps = OrderedJson::array();
  for (const std::string& pattern : rule.patterns) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", false}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

OrderedJson post_processor(const GgufVocabulary& v) {
  if (!v.add_bos && !v.add_eos) return nullptr;
  OrderedJson single = OrderedJson::array(), pair = OrderedJson::array();
  OrderedJson tokens = OrderedJson::object();
  const auto special = [&](int32_t id, int type, OrderedJson& list) {
    const std::string& name = v.tokens[static_cast<size_t>(id)];
    list.push_back({{"SpecialToken", {{"id", name}, {"type_id", type}}}});
    tokens[name] = {
        {"id", name}, {"ids", OrderedJson::array({id})}, {"tokens", OrderedJson::array({name})}};
  };
  const auto text = [&](const char* name, int type, OrderedJson& list) {
    if (v.add_bos) special(v.bos, type, list);
    list.push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    if (v.add_eos) special(v.eos, type, list);
  };
  text("A", 0, single);
  text("A", 0, pair);
  text("B", 1, pair);
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", tokens}};
}

OrderedJson byte_level_model(const GgufVocabulary& v, const PreTokenizerRule& rule) {
  OrderedJson merges = OrderedJson::array();
  for (const auto& [left, right] : v.merges) merges.push_back(OrderedJson::array({left, right}));
  // An ordered object looks a key up in a list: the vocabulary is written as text.
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", rule.ignore_merges},
          {"vocab", nullptr},
          {"merges", std::move(merges)}};
}

std::string vocabulary_text(const GgufVocabulary& v) {
  std::set<std::string_view> seen;
  std::string out = "{";
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (!seen.insert(v.tokens[i]).second) {
      throw DataError(v.source, ": token '", v.tokens[i],
                      "' occurs twice in tokenizer.ggml.tokens");
    }
    if (i > 0) out += ",";
    out += OrderedJson(v.tokens[i]).dump() + ":" + std::to_string(i);
  }
  return out + "}";
}

TokenizerFiles byte_level_files(const GgufVocabulary& v) {
  const PreTokenizerRule& rule = rule_of(v);
  OrderedJson added = OrderedJson::array();
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const GgufTokenType type = v.types[i];
    if (type != GgufTokenType::kControl && type != GgufTokenType::kUserDefined &&
        type != GgufTokenType::kUnknown) {
      continue;
    }
    OrderedJson token = {{"id", i}};
    token.update(added_token(v, i, type != GgufTokenType::kUserDefined));
    added.push_back(std::move(token));
  }
  OrderedJson json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added)},
      {"normalizer", rule.nfc ? OrderedJson{{"type", "NFC"}} : OrderedJson(nullptr)},
      {"pre_tokenizer", pre_tokenizer(rule)},
      {"post_processor", post_processor(v)},
      {"decoder",
       {{"type", "ByteLevel"},
        {"add_prefix_space", true},
        {"trim_offsets", true},
        {"use_regex", true}}}};
  std::string model = byte_level_model(v, rule).dump();
  const std::string place = "\"vocab\":null";
  model.replace(model.find(place), place.size(), "\"vocab\":" + vocabulary_text(v));
  std::string text = json.dump();
  text.back() = ',';  // the closing brace
  text += "\"model\":" + model + "}";
  OrderedJson config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  name_special(v, config);
  return {{"tokenizer.json", std::move(text)}, {"tokenizer_config.json", config.dump(2) + "\n"}};
}

// ---- sentencepiece ------------------------------------------------------------------------------

// Fields of a protobuf message (sentencepiece_model.proto).
class Message {
 public:
  void number(int field, uint64_t value) {
    varint(static_cast<uint64_t>(field) << 3);
    varint(value);
  }
  void real(int field, float value) {
    varint(static_cast<uint64_t>(field) << 3 | 5);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(int field, std::string_view value) {
    varint(static_cast<uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7F) | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

// What llama.cpp's converter gives tokens that Hugging Face added to a sentencepiece model.
constexpr float kAddedScore = -1000.0F;

bool was_added(const GgufVocabulary& v, size_t id) {
  return v.types[id] == GgufTokenType::kUserDefined && v.scores[id] == kAddedScore;
}

// sentencepiece has one unknown token; added ones must not come out of it.
GgufTokenType piece_type(const GgufVocabulary& v, size_t id) {
  const auto number = static_cast<int32_t>(id);
  if (number == v.unk) return GgufTokenType::kUnknown;
  if (number == v.bos || number == v.eos || number == v.pad || was_added(v, id)) {
    return GgufTokenType::kControl;
  }
  return v.types[id] == GgufTokenType::kUnknown ? GgufTokenType::kUnused : v.types[id];
}

std::string sentencepiece_model(const GgufVocabulary& v) {
  Message model;
  size_t byte_pieces = 0;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    Message piece;
    piece.text(1, v.tokens[i]);
    piece.real(2, v.scores[i]);
    const GgufTokenType type = piece_type(v, i);
    byte_pieces += type == GgufTokenType::kByte;
    piece.number(3, static_cast<uint64_t>(type));
    model.text(1, piece.bytes());
  }
  Message trainer;
  trainer.number(3, 2);  // model_type BPE
  trainer.number(4, v.tokens.size());
  trainer.number(35, byte_pieces == 256);  // byte_fallback
  for (const auto& [id, number_field, text_field] :
       {std::tuple{v.unk, 40, 45}, {v.bos, 41, 46}, {v.eos, 42, 47}, {v.pad, 43, 48}}) {
    trainer.number(number_field, static_cast<uint64_t>(static_cast<int64_t>(id)));
    if (id >= 0) trainer.text(text_field, v.tokens[static_cast<size_t>(id)]);
  }
  model.text(2, trainer.bytes());
  Message normalizer;
  normalizer.text(1, "identity");
  normalizer.number(3, v.add_space_prefix);
  normalizer.number(4, 0);  // remove_extra_whitespaces
  normalizer.number(5, 1);  // escape_whitespaces
  model.text(3, normalizer.bytes());
  return model.bytes();
}

TokenizerFiles sentencepiece_files(const GgufVocabulary& v) {
  if (v.unk < 0) {
    throw DataError(v.source, ": a sentencepiece vocabulary without an unknown token ",
                    "(tokenizer.ggml.unknown_token_id)");
  }
  const bool gemma = v.architecture.rfind("gemma", 0) == 0;
  OrderedJson added = OrderedJson::object();
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const bool control = piece_type(v, i) == GgufTokenType::kControl && !was_added(v, i);
    if (control || static_cast<int32_t>(i) == v.unk || was_added(v, i)) {
      added[std::to_string(i)] = added_token(v, i, !was_added(v, i));
    }
  }
  // `legacy` is the class's name for what llama.cpp does: a blank goes in front of the text behind
  // every special token, not only of the first.
  OrderedJson config = {{"tokenizer_class", gemma ? "GemmaTokenizer" : "LlamaTokenizer"},
                        {"legacy", true},
                        {"add_bos_token", v.add_bos},
                        {"add_eos_token", v.add_eos},
                        {"add_prefix_space", v.add_space_prefix},
                        {"added_tokens_decoder", std::move(added)}};
  name_special(v, config);
  return {{"tokenizer.model", sentencepiece_model(v)},
          {"tokenizer_config.json", config.dump(2) + "\n"}};
}

}  // namespace

TokenizerFiles gguf_tokenizer_files(const GgufVocabulary& vocabulary) {
  return vocabulary.kind == GgufVocabulary::Kind::kByteLevel ? byte_level_files(vocabulary)
                                                             : sentencepiece_files(vocabulary);
}

}  // namespace mgm
