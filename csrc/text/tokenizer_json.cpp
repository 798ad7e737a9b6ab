// Reads tokenizer.json of Hugging Face's tokenizers (0.22), model type BPE.
#include <algorithm>

#include "base/log_once.h"
#include "text/bpe_tokenizer.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer_kinds.h"

namespace mgm {
namespace {

using TokenIds = std::vector<std::pair<std::string, int32_t>>;

TokenIds read_vocabulary(const Component& model) {
  const Component vocab = model.at("vocab");
  if (!vocab.json().is_object()) vocab.fail("expected an object of token: id");
  TokenIds out;
  out.reserve(vocab.json().size());
  for (const auto& [token, id] : vocab.json().items()) {
    if (!id.is_number_integer() || id.get<int64_t>() != int64_t(id.get<int32_t>())) {
      vocab.fail("token '", token, "': expected an id, got ", id.dump());
    }
    out.emplace_back(token, id.get<int32_t>());
  }
  return out;
}

// "left right", or ["left", "right"] in newer files.
std::vector<std::pair<std::string, std::string>> read_merges(const Component& model) {
  std::vector<std::pair<std::string, std::string>> out;
  const Component list = model.at("merges");
  if (!list.json().is_array()) list.fail("expected a list");
  out.reserve(list.json().size());
  for (const Json& merge : list.json()) {
    const size_t number = out.size() + 1;
    if (merge.is_string()) {
      const auto text = merge.get<std::string>();
      if (text.starts_with("#version")) continue;  // the head of a merges.txt
      const size_t blank = text.find(' ');
      if (blank == text.npos || text.find(' ', blank + 1) != text.npos) {
        list.fail("merge ", number, ", '", text, "', is not two tokens with a blank between");
      }
      out.emplace_back(text.substr(0, blank), text.substr(blank + 1));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      out.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      list.fail("merge ", number, " is no pair of tokens: ", merge.dump());
    }
  }
  return out;
}

BpeOptions read_options(const Component& model, bool byte_level) {
  BpeOptions options;
  options.bytes = byte_level;
  options.byte_fallback = model.flag_or("byte_fallback", false);
  options.fuse_unk = model.flag_or("fuse_unk", false);
  options.ignore_merges = model.flag_or("ignore_merges", false);
  options.unk_token = model.text_or("unk_token", "");
  options.continuing_subword_prefix = model.text_or("continuing_subword_prefix", "");
  options.end_of_word_suffix = model.text_or("end_of_word_suffix", "");
  if (model.has("dropout") && model.json().at("dropout") != 0) {
    model.fail("'dropout' is not supported: encoding would be random");
  }
  if (byte_level &&
      !(options.continuing_subword_prefix.empty() && options.end_of_word_suffix.empty())) {
    model.fail("continuing_subword_prefix and end_of_word_suffix are not supported together with ",
               "the pre-tokenizer ByteLevel");
  }
  return options;
}

// The vocabulary in bytes. A token with a character that is no byte's can never come of text.
TokenIds in_bytes(const TokenIds& spelled) {
  TokenIds out;
  out.reserve(spelled.size());
  for (const auto& [token, id] : spelled) {
    std::optional<std::string> bytes = read_spelled_bytes(token);
    if (bytes) out.emplace_back(std::move(*bytes), id);
  }
  return out;
}

// Bytes of UTF-8 without a token vanish from the text, in the original too; whoever uses such a
// vocabulary should know.
void warn_of_missing_bytes(const Vocabulary& vocabulary, const std::string& where) {
  int missing = 0;
  for (int b = 0; b < 0xF5; ++b) {
    const char byte = static_cast<char>(b);
    if (b != 0xC0 && b != 0xC1 && vocabulary.find({&byte, 1}) < 0) ++missing;
  }
  if (missing > 0) {
    log::warn_once(cat(where, ": ", missing, " bytes have no token and there is no unknown token; ",
                       "characters that need them are left out"));
  }
}

void read_model(const Component& model, BpeTokenizerParts& parts) {
  const std::string type = model.text_or("type", model.has("merges") ? "BPE" : "(none)");
  if (type != "BPE") model.fail("model type '", type, "' is not supported; supported: BPE");
  const BpeOptions options = read_options(model, parts.pre_tokenizer.byte_level);
  parts.vocabulary = read_vocabulary(model);
  Vocabulary spelled(parts.vocabulary, model.where() + ".vocab");
  const std::vector<BpeMerge> merges =
      listed_merges(read_merges(model), spelled, options, model.where() + ".merges");
  if (options.bytes) {
    Vocabulary bytes(in_bytes(parts.vocabulary), model.where() + ".vocab");
    if (options.unk_token.empty()) warn_of_missing_bytes(bytes, model.where());
    parts.bpe = std::make_unique<Bpe>(std::move(bytes), merges, options, model.where());
  } else {
    parts.bpe = std::make_unique<Bpe>(std::move(spelled), merges, options, model.where());
  }
}

void read_added_tokens(const Component& file, BpeTokenizerParts& parts) {
  if (!file.has("added_tokens")) return;
  for (const Component& item : file.items("added_tokens")) {
    AddedToken token;
    token.content = item.text("content");
    token.id = item.number("id");
    token.special = item.flag_or("special", false);
    token.lstrip = item.flag_or("lstrip", false);
    token.rstrip = item.flag_or("rstrip", false);
    token.single_word = item.flag_or("single_word", false);
    token.normalized = item.flag_or("normalized", !token.special);
    parts.added.push_back(std::move(token));
  }
}

void read_template(const Component& processor, BpeTokenizerParts& parts) {
  std::vector<int32_t>* side = &parts.before;
  for (const Component& item : processor.items("single")) {
    if (item.has("Sequence")) {
      if (side == &parts.after) item.fail("the text comes twice; that is not supported");
      side = &parts.after;
    } else if (item.has("SpecialToken")) {
      const std::string name = item.at("SpecialToken").text("id");
      const Component token = processor.at("special_tokens").at(name.c_str());
      for (const Component& id : token.items("ids")) {
        if (!id.json().is_number_integer()) id.fail("expected an id");
        side->push_back(id.json().get<int32_t>());
      }
    } else {
      item.fail("expected a Sequence or a SpecialToken");
    }
  }
  if (side == &parts.before) processor.fail("'single' leaves out the text");
}

void read_post_processor(const Component& processor, BpeTokenizerParts& parts) {
  const std::string type = processor.type();
  if (type == "Sequence") {
    for (const Component& item : processor.items("processors")) read_post_processor(item, parts);
  } else if (type == "TemplateProcessing") {
    if (!parts.before.empty() || !parts.after.empty()) {
      processor.fail("a second template is not supported");
    }
    read_template(processor, parts);
  } else if (type != "ByteLevel") {  // ByteLevel only trims offsets
    processor.unsupported("TemplateProcessing, ByteLevel, Sequence");
  }
}

// Classes of transformers (4.57) that put BOS and EOS by tokenizer_config.json, whatever the
// post-processor says.
bool config_decides(const std::string& class_name) {
  static const std::vector<std::string> kClasses = {"LlamaTokenizer", "CodeLlamaTokenizer",
                                                    "GemmaTokenizer", "CohereTokenizer"};
  return std::find(kClasses.begin(), kClasses.end(), slow_class(class_name)) != kClasses.end();
}

int32_t id_of(const std::string& content, const BpeTokenizerParts& parts) {
  for (const AddedToken& token : parts.added) {
    if (token.content == content) return token.id;
  }
  for (const auto& [token, id] : parts.vocabulary) {
    if (token == content) return id;
  }
  throw DataError(parts.source, ": the token '", content,
                  "' that tokenizer_config.json names is not in the vocabulary");
}

// AddedVocabulary::add_tokens of tokenizers. A token that is new gets the next free id, whichever
// is written beside it.
class AddedVocabulary {
 public:
  explicit AddedVocabulary(BpeTokenizerParts& parts) : parts_(parts) {
    for (const auto& [content, id] : parts.vocabulary) ids_[content] = id;
    next_ = static_cast<int32_t>(ids_.size());
    for (const AddedToken& token : std::exchange(parts.added, {})) add(token, token.id);
    of_file_ = false;
  }

  bool has(const std::string& content) const { return entries_.count(content) > 0; }

  // `written`: the id beside it in a file, -1: none.
  void add(AddedToken token, int32_t written) {
    if (has(token.content)) return update(token);
    const auto it = ids_.find(token.content);
    token.id = it != ids_.end() ? it->second : next_;
    if (it != ids_.end() && written >= 0 && written != token.id) {
      throw DataError(parts_.source, ": added token '", token.content, "' (id ", written,
                      ") has the id ", token.id, " before");
    }
    if (written >= 0 && written != token.id) {
      if (of_file_) refuse_taken(token.content, written);
      log::warn_once(cat(parts_.source, ": the added token '", token.content, "' gets the id ",
                         token.id, ", the next one free, as from transformers; the id written ",
                         "with it is ", written));
    }
    next_ = std::max(next_, token.id + 1);
    entries_[token.content] = {parts_.added.size()};
    parts_.added.push_back(std::move(token));
  }

 private:
  // What was special stays special, and is looked for where it was; the rest is as said last.
  void update(const AddedToken& token) {
    std::vector<size_t>& places = entries_[token.content];
    const AddedToken last = parts_.added[places.back()];
    for (const size_t at : places) {
      AddedToken& have = parts_.added[at];
      have.lstrip = token.lstrip;
      have.rstrip = token.rstrip;
      have.single_word = token.single_word;
      have.special = have.special || token.special;
    }
    if (last.special || last.normalized == token.normalized) return;
    AddedToken other = parts_.added[places.back()];
    other.normalized = token.normalized;
    places.push_back(parts_.added.size());
    parts_.added.push_back(std::move(other));
  }

  // tokenizer.json contradicts itself; the settings may be of an older vocabulary.
  void refuse_taken(const std::string& content, int32_t written) const {
    for (const auto& [holder, id] : parts_.vocabulary) {
      if (id != written) continue;
      throw DataError(parts_.source, ": added token '", content, "' (id ", written,
                      ") takes the id of '", holder, "'");
    }
  }

  BpeTokenizerParts& parts_;
  bool of_file_ = true;                           // the tokens being added stand in tokenizer.json
  std::unordered_map<std::string, int32_t> ids_;  // of the model's vocabulary
  std::unordered_map<std::string, std::vector<size_t>> entries_;  // places in parts_.added
  int32_t next_ = 0;
};

// PreTrainedTokenizerFast adds the tokens of the settings that the file lacks: first the listed
// ones by id, then the named special ones.
void add_tokens(TokenizerSettings settings, BpeTokenizerParts& parts) {
  AddedVocabulary vocabulary(parts);
  if (!settings.has_decoder) {
    for (const AddedToken& token : parts.added) settings.added[token.id] = token;
  }
  const std::vector<NamedToken> special = settings.special_tokens();
  for (auto& [id, token] : settings.added) {
    for (const NamedToken& named : special) {
      if (named.token.content == token.content) token.special = true;
    }
    vocabulary.add(token, id);
  }
  for (const NamedToken& named : special) {
    if (!vocabulary.has(named.token.content) || (named.details && named.additional)) {
      vocabulary.add(named.token, -1);
    }
  }
}

void apply_settings(TokenizerSettings settings, BpeTokenizerParts& parts) {
  settings.use_defaults_of(settings.class_name);
  add_tokens(settings, parts);
  parts.split_special = settings.split_special;
  parts.bos = settings.role("bos_token");
  parts.eos = settings.role("eos_token");
  parts.pad = settings.role("pad_token");
  if (config_decides(settings.class_name)) {
    parts.before.clear();
    parts.after.clear();
    const bool add_bos = settings.add_bos.value_or(true);
    if (add_bos && parts.bos.empty()) {
      throw DataError(parts.source, ": tokenizer_config.json asks for a BOS token and names none");
    }
    if (add_bos) parts.before = {id_of(parts.bos, parts)};
    if (settings.add_eos.value_or(false) && !parts.eos.empty()) {
      parts.after = {id_of(parts.eos, parts)};
    }
  }
  // Without settings the one token before every text is taken for BOS.
  if (parts.bos.empty() && parts.before.size() == 1) {
    for (const AddedToken& token : parts.added) {
      if (token.id == parts.before[0]) parts.bos = token.content;
    }
  }
}

// PreTrainedTokenizerFast sets a ByteLevel that is the whole pre-tokenizer to add_prefix_space of
// tokenizer_config.json: false if the key is absent, the file's own with null. LlamaTokenizerFast
// has null for absent; CohereTokenizerFast sets every ByteLevel, to true only.
void set_prefix_space(const TokenizerSettings& settings, Json& pre_tokenizer) {
  if (!settings.has_config || !pre_tokenizer.is_object()) return;
  std::optional<bool> value = settings.add_prefix_space;
  const std::string name = slow_class(settings.class_name);
  if (!settings.has_prefix_space && name != "LlamaTokenizer") value = false;
  if (!value) return;
  const auto set = [&](Json& one) {
    if (one.is_object() && one.value("type", Json()) == "ByteLevel") {
      one["add_prefix_space"] = *value;
    }
  };
  set(pre_tokenizer);
  if (name != "CohereTokenizer" || !*value || !pre_tokenizer.contains("pretokenizers")) return;
  for (Json& one : pre_tokenizer["pretokenizers"]) set(one);
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const fs::path& path) {
  TokenizerFiles files = {{"tokenizer.json", read_file(path)}};
  read_settings_files(path.parent_path(), files);
  return make_json_tokenizer(path, std::move(files));
}

std::unique_ptr<Tokenizer> make_json_tokenizer(const fs::path& source, TokenizerFiles files) {
  BpeTokenizerParts parts;
  parts.source = source.string();
  parts.files = std::move(files);
  Json json = parse_json(parts.files.front().second, parts.source);
  if (!json.is_object()) throw DataError(parts.source, ": expected an object");
  const auto part = [&](const char* key) {
    return Component(json.at(key), cat(parts.source, ": ", key));
  };
  const Component file(json, parts.source);
  if (!file.has("model")) file.fail("no 'model' in it: is it a tokenizer.json?");
  if (file.has("truncation")) {
    log::warn_once(cat(parts.source, ": its 'truncation' is not applied"));
  }
  TokenizerSettings settings = parse_settings_files(parts.files, source.parent_path());
  if (file.has("pre_tokenizer")) set_prefix_space(settings, json["pre_tokenizer"]);
  if (file.has("normalizer")) parts.normalizer = read_normalizer(part("normalizer"));
  if (file.has("pre_tokenizer")) parts.pre_tokenizer = read_pre_tokenizer(part("pre_tokenizer"));
  read_model(part("model"), parts);
  read_added_tokens(file, parts);
  if (file.has("post_processor")) read_post_processor(part("post_processor"), parts);
  if (file.has("decoder")) parts.decoder = read_token_decoder(part("decoder"));
  apply_settings(std::move(settings), parts);
  return make_bpe_tokenizer(std::move(parts));
}

}  // namespace mgm
