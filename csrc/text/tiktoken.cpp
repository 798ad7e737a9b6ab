// Reads tiktoken's rank files and Mistral's tekken.json, which hold the same kind of vocabulary.
#include <algorithm>
#include <charconv>

#include "base/base64.h"
#include "base/error.h"
#include "text/bpe_tokenizer.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer_kinds.h"
#include "text/tokenizer_settings.h"

namespace mgm {
namespace {

using TokenIds = std::vector<std::pair<std::string, int32_t>>;

struct SpecialToken {
  std::string content;
  int32_t id;
};

// A published encoding, known by its number of ranks.
struct Encoding {
  const char* name;
  size_t ranks;
  const char* pattern;
  std::vector<SpecialToken> special;
  const char *bos, *eos;
  bool adds_bos;
};

// tiktoken_ext/openai_public.py (0.14).
constexpr const char* kR50kPattern =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s)";
constexpr const char* kCl100kPattern =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|)"
    R"(\s++$|\s*[\r\n]|\s+(?!\S)|\s)";
constexpr const char* kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// llama_models/llama3/tokenizer.py and Qwen's tokenization_qwen.py.
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

std::vector<SpecialToken> numbered(int32_t first, const std::vector<std::string>& contents) {
  std::vector<SpecialToken> out;
  for (const std::string& content : contents) {
    out.push_back({content, first + static_cast<int32_t>(out.size())});
  }
  return out;
}

std::vector<SpecialToken> llama3_special() {
  std::vector<std::string> names = {"<|begin_of_text|>",
                                    "<|end_of_text|>",
                                    "<|reserved_special_token_0|>",
                                    "<|reserved_special_token_1|>",
                                    "<|finetune_right_pad_id|>",
                                    "<|step_id|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eom_id|>",
                                    "<|eot_id|>",
                                    "<|python_tag|>",
                                    "<|image|>"};
  for (int i = 2; names.size() < 256; ++i)
    names.push_back(cat("<|reserved_special_token_", i, "|>"));
  return numbered(128000, names);
}

std::vector<SpecialToken> qwen_special() {
  std::vector<std::string> names = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 205; ++i) names.push_back(cat("<|extra_", i, "|>"));
  return numbered(151643, names);
}

const std::vector<Encoding>& encodings() {
  static const std::vector<Encoding> kAll = {
      {"r50k_base", 50256, kR50kPattern, {{"<|endoftext|>", 50256}}, "", "<|endoftext|>", false},
      {"p50k_base", 50280, kR50kPattern, {{"<|endoftext|>", 50256}}, "", "<|endoftext|>", false},
      {"cl100k_base",
       100256,
       kCl100kPattern,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}},
       "",
       "<|endoftext|>",
       false},
      {"o200k_base",
       199998,
       kO200kPattern,
       {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}},
       "",
       "<|endoftext|>",
       false},
      {"llama3", 128000, kLlama3Pattern, llama3_special(), "<|begin_of_text|>", "<|end_of_text|>",
       true},
      {"qwen", 151643, kQwenPattern, qwen_special(), "", "<|endoftext|>", false},
  };
  return kAll;
}

const Encoding& encoding_of(size_t ranks, const std::string& source) {
  std::string known;
  for (const Encoding& encoding : encodings()) {
    if (encoding.ranks == ranks) return encoding;
    known += cat(known.empty() ? "" : ", ", encoding.name, " (", encoding.ranks, ")");
  }
  throw DataError(source, ": ", ranks,
                  " ranks are no known encoding, and such a file does not say ",
                  "how text is split; known: ", known, ". Use the model's tokenizer.json");
}

// What both kinds of file come down to.
std::unique_ptr<Tokenizer> assemble(BpeTokenizerParts parts, TokenIds ranks,
                                    const std::string& pattern,
                                    const std::vector<SpecialToken>& special) {
  for (const auto& [bytes, id] : ranks) parts.vocabulary.emplace_back(spell_bytes(bytes), id);
  Vocabulary vocabulary(std::move(ranks), parts.source);
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    if (vocabulary.find({&byte, 1}) < 0) {
      throw DataError(parts.source, ": the byte ", b, " has no rank");
    }
  }
  BpeOptions options;
  options.bytes = true;
  options.ignore_merges = true;
  const std::vector<BpeMerge> merges = merges_of_ranks(vocabulary);
  parts.bpe = std::make_unique<Bpe>(std::move(vocabulary), merges, options, parts.source);
  parts.pre_tokenizer =
      isolating_pre_tokenizer(Regex(pattern, Regex::Dialect::kRust, parts.source));
  parts.decoder = byte_level_decoder();
  for (const SpecialToken& one : special) {
    AddedToken token;
    token.content = one.content;
    token.id = one.id;
    token.special = true;
    if (one.content == parts.bos && parts.before.empty()) parts.before = {one.id};
    parts.added.push_back(std::move(token));
  }
  return make_bpe_tokenizer(std::move(parts));
}

TokenIds read_ranks(std::string_view text, const std::string& source) {
  TokenIds out;
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = trim(text.substr(at, end - at));
    at = end + 1;
    ++number;
    if (line.empty()) continue;
    const size_t blank = line.find(' ');
    std::optional<std::string> bytes;
    if (blank != line.npos) bytes = decode_base64(line.substr(0, blank));
    int32_t rank = -1;
    const char* last = line.data() + line.size();
    const auto parsed = blank == line.npos
                            ? std::from_chars_result{nullptr, std::errc::invalid_argument}
                            : std::from_chars(line.data() + blank + 1, last, rank);
    if (!bytes || bytes->empty() || parsed.ec != std::errc() || parsed.ptr != last) {
      throw DataError(source, ":", number, ": expected base64, a blank and a rank, got '",
                      line.substr(0, 60), "'");
    }
    out.emplace_back(std::move(*bytes), rank);
  }
  return out;
}

// Ids are ranks moved up behind the special tokens.
TokenIds read_tekken_vocabulary(const Component& file, int32_t special, int32_t size) {
  TokenIds out;
  for (const Component& item : file.items("vocab")) {
    const int32_t rank = item.number("rank");
    if (rank >= size - special) continue;  // the file holds more than the model uses
    const std::optional<std::string> bytes = decode_base64(item.text("token_bytes"));
    if (!bytes || bytes->empty()) item.fail("'token_bytes' is no base64");
    out.emplace_back(*bytes, rank + special);
  }
  if (out.size() != size_t(size - special)) {
    file.fail("expected the ranks 0 to ", size - special - 1, ", found ", out.size(), " of them");
  }
  return out;
}

// mistral_common's Tekkenizer: those of the file, or of versions up to 7 these; names for the rest.
std::vector<SpecialToken> read_tekken_special(const Component& file, int32_t count) {
  std::vector<std::string> names;
  if (file.has("special_tokens")) {
    names.resize(file.items("special_tokens").size());
    for (const Component& item : file.items("special_tokens")) {
      const int32_t rank = item.number("rank");
      if (size_t(rank) >= names.size() || !names[size_t(rank)].empty()) {
        item.fail("rank ", rank, " is out of order");
      }
      names[size_t(rank)] = item.text("token_str");
    }
  } else {
    names = {"<unk>",
             "<s>",
             "</s>",
             "[INST]",
             "[/INST]",
             "[AVAILABLE_TOOLS]",
             "[/AVAILABLE_TOOLS]",
             "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]",
             "[TOOL_CALLS]",
             "[IMG]",
             "<pad>",
             "[IMG_BREAK]",
             "[IMG_END]",
             "[PREFIX]",
             "[MIDDLE]",
             "[SUFFIX]",
             "[SYSTEM_PROMPT]",
             "[/SYSTEM_PROMPT]",
             "[TOOL_CONTENT]"};
  }
  if (names.size() > size_t(count)) file.fail("more special tokens than the ", count, " announced");
  while (names.size() < size_t(count)) names.push_back(cat("<SPECIAL_", names.size(), ">"));
  return numbered(0, names);
}

// The settings may name special tokens; what they add would be new.
void refuse_other_tokens(const TokenizerSettings& settings, const Encoding& encoding,
                         const std::string& source) {
  const auto check = [&](const std::string& content) {
    const auto same = [&](const SpecialToken& have) { return have.content == content; };
    if (std::any_of(encoding.special.begin(), encoding.special.end(), same)) return;
    throw DataError(source, ": the settings beside it add the token '", content,
                    "', which the published encoding lacks; use the model's tokenizer.json");
  };
  for (const NamedToken& named : settings.additional) check(named.token.content);
  for (const auto& [id, token] : settings.added) check(token.content);
  if (settings.split_special) {
    throw DataError(source, ": split_special_tokens: true beside it is not supported; set it to ",
                    "false or use the model's tokenizer.json");
  }
}

}  // namespace

std::unique_ptr<Tokenizer> load_tiktoken(const fs::path& path) {
  BpeTokenizerParts parts;
  parts.source = path.string();
  const std::string text = read_file(path);
  parts.files.emplace_back(path.filename().string(), text);
  TokenIds ranks = read_ranks(text, parts.source);
  const Encoding& encoding = encoding_of(ranks.size(), parts.source);
  const fs::path dir = path.parent_path();
  read_settings_files(dir, parts.files);
  TokenizerSettings settings = parse_settings_files(parts.files, dir);
  const auto role = [&](const char* key, const std::string& other) {
    return settings.roles.count(key) ? settings.role(key) : other;
  };
  const std::string bos = role("bos_token", encoding.bos);
  parts.bos = settings.add_bos.value_or(encoding.adds_bos) ? bos : "";
  parts.eos = role("eos_token", encoding.eos);
  parts.pad = role("pad_token", "");
  refuse_other_tokens(settings, encoding, parts.source);
  return assemble(std::move(parts), std::move(ranks), encoding.pattern, encoding.special);
}

std::unique_ptr<Tokenizer> load_tekken(const fs::path& path) {
  BpeTokenizerParts parts;
  parts.source = path.string();
  const std::string text = read_file(path);
  parts.files.emplace_back("tekken.json", text);
  const Json json = parse_json(text, parts.source);
  const Component file(json, parts.source);
  const Component config = file.at("config");
  const int32_t special = config.number("default_num_special_tokens");
  const int32_t size = config.number("default_vocab_size");
  if (special >= size) config.fail(special, " special tokens in a vocabulary of ", size);
  parts.bos = "<s>";
  parts.eos = "</s>";
  parts.pad = "<pad>";
  return assemble(std::move(parts), read_tekken_vocabulary(file, special, size),
                  config.text("pattern"), read_tekken_special(file, special));
}

}  // namespace mgm
