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
  const std::string name =
      class_name.ends_with("Fast") ? class_name.substr(0, class_name.size() - 4) : class_name;
  static const std::vector<std::string> kClasses = {"LlamaTokenizer", "CodeLlamaTokenizer",
                                                    "GemmaTokenizer", "CohereTokenizer"};
  return std::find(kClasses.begin(), kClasses.end(), name) != kClasses.end();
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

// transformers adds the tokens of the settings that the file lacks.
void add_missing_tokens(const TokenizerSettings& settings, BpeTokenizerParts& parts) {
  for (const auto& [id, token] : settings.added) {
    const auto same = [&content = token.content](const auto& have) {
      return have.content == content;
    };
    if (std::none_of(parts.added.begin(), parts.added.end(), same)) parts.added.push_back(token);
  }
}

void apply_settings(const TokenizerSettings& settings, BpeTokenizerParts& parts) {
  add_missing_tokens(settings, parts);
  parts.bos = settings.bos;
  parts.eos = settings.eos;
  parts.pad = settings.pad;
  if (config_decides(settings.class_name)) {
    parts.before.clear();
    parts.after.clear();
    const bool add_bos = settings.add_bos.value_or(true);
    if (add_bos && settings.bos.empty()) {
      throw DataError(parts.source, ": tokenizer_config.json asks for a BOS token and names none");
    }
    if (add_bos) parts.before = {id_of(settings.bos, parts)};
    if (settings.add_eos.value_or(false) && !settings.eos.empty()) {
      parts.after = {id_of(settings.eos, parts)};
    }
  }
  // Without settings the one token before every text is taken for BOS.
  if (parts.bos.empty() && parts.before.size() == 1) {
    for (const AddedToken& token : parts.added) {
      if (token.id == parts.before[0]) parts.bos = token.content;
    }
  }
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
  const Json json = parse_json(parts.files.front().second, parts.source);
  if (!json.is_object()) throw DataError(parts.source, ": expected an object");
  const auto part = [&](const char* key) {
    return Component(json.at(key), cat(parts.source, ": ", key));
  };
  const Component file(json, parts.source);
  if (!file.has("model")) file.fail("no 'model' in it: is it a tokenizer.json?");
  if (file.has("truncation")) {
    log::warn_once(cat(parts.source, ": its 'truncation' is not applied"));
  }
  if (file.has("normalizer")) parts.normalizer = read_normalizer(part("normalizer"));
  if (file.has("pre_tokenizer")) parts.pre_tokenizer = read_pre_tokenizer(part("pre_tokenizer"));
  read_model(part("model"), parts);
  read_added_tokens(file, parts);
  if (file.has("post_processor")) read_post_processor(part("post_processor"), parts);
  if (file.has("decoder")) parts.decoder = read_token_decoder(part("decoder"));
  TokenizerSettings settings;
  apply_settings_files(parts.files, source.parent_path(), settings);
  apply_settings(settings, parts);
  return make_bpe_tokenizer(std::move(parts));
}

}  // namespace mgm
