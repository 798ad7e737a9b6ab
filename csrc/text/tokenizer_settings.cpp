#include "text/tokenizer_settings.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/json_problem.h"

namespace mgm {
namespace {

constexpr const char* kMap = "special_tokens_map.json";
constexpr const char* kConfig = "tokenizer_config.json";
constexpr const char* kAddedTokens = "added_tokens.json";
constexpr const char* kAdditional = "additional_special_tokens";
constexpr const char* kExtra = "extra_special_tokens";
// In the order in which they are added.
constexpr const char* kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

AddedToken read_token(const OrderedJson& json, bool special) {
  AddedToken token;
  if (json.is_string()) {
    token.content = json.get<std::string>();
    token.special = special;
    token.normalized = !special;
    return token;
  }
  if (!json.is_object() || !json.contains("content")) {
    throw DataError("expected a token, got ", json.dump());
  }
  token.content = json.at("content").get<std::string>();
  token.special = special || json.value("special", false);
  token.lstrip = json.value("lstrip", false);
  token.rstrip = json.value("rstrip", false);
  token.single_word = json.value("single_word", false);
  token.normalized = json.value("normalized", !token.special);
  return token;
}

NamedToken read_named(const OrderedJson& json, bool additional) {
  return {read_token(json, true), json.is_object(), additional};
}

// The settings of the two files that name special tokens, in one object.
struct Merged {
  OrderedJson json = OrderedJson::object();  // extra tokens are added in the order of the file
  std::set<std::string> of_map;              // keys from special_tokens_map.json
};

Merged merge(const OrderedJson* config, const OrderedJson* map) {
  Merged out;
  if (config) out.json = *config;
  if (!map || out.json.contains("added_tokens_decoder")) return out;
  for (const auto& [key, value] : map->items()) {
    const auto it = out.json.find(key);
    if (key == kAdditional && value.is_array() && it != out.json.end() && it->is_array()) {
      it->insert(it->end(), value.begin(), value.end());
    } else {
      out.json[key] = value;
    }
    out.of_map.insert(key);
  }
  return out;
}

void read_special_tokens(const std::string& key, const OrderedJson& value,
                         TokenizerSettings& settings) {
  if (std::find(std::begin(kRoles), std::end(kRoles), key) != std::end(kRoles)) {
    settings.roles[key] = value.is_null() ? NamedToken{} : read_named(value, false);
  } else if ((key == kAdditional || key == kExtra) && !value.is_null()) {
    // extra_special_tokens maps names to tokens; transformers 5 writes a list.
    if (!value.is_array() && !(key == kExtra && value.is_object())) {
      throw DataError("expected a list of tokens");
    }
    const bool names = value.is_object();
    for (const OrderedJson& token : value) settings.additional.push_back(read_named(token, !names));
  }
}

void read_flag(const std::string& key, const OrderedJson& value, TokenizerSettings& settings) {
  const auto flag = [&](const char* name, auto& target) {
    if (key != name || value.is_null()) return;
    if (!value.is_boolean()) throw DataError("expected true or false, got ", value.dump());
    target = value.get<bool>();
  };
  flag("add_bos_token", settings.add_bos);
  flag("add_eos_token", settings.add_eos);
  flag("legacy", settings.legacy);
  flag("add_prefix_space", settings.add_prefix_space);
  flag("split_special_tokens", settings.split_special);
  if (key == "add_prefix_space") settings.has_prefix_space = true;
}

void read_merged(const Merged& merged, const fs::path& dir, TokenizerSettings& settings) {
  for (const auto& [key, value] : merged.json.items()) {
    const fs::path path = dir / (merged.of_map.count(key) ? kMap : kConfig);
    try {
      read_special_tokens(key, value, settings);
      read_flag(key, value, settings);
      if (key == "tokenizer_class" && !value.is_null()) {
        settings.class_name = value.get<std::string>();
      } else if (key == "added_tokens_decoder") {
        settings.has_decoder = true;
        for (const auto& [id, token] : value.items()) {
          AddedToken& added = settings.added[std::stoi(id)];
          added = read_token(token, false);
          added.id = std::stoi(id);
        }
      }
    } catch (const Json::exception& e) {
      throw DataError(path.string(), ": ", key, ": unexpected content: ", json_problem(e));
    } catch (const std::exception& e) {
      throw DataError(path.string(), ": ", key, ": unexpected content: ", e.what());
    }
  }
}

void read_added_tokens(const OrderedJson& json, const fs::path& path, TokenizerSettings& settings) {
  const std::vector<NamedToken> special = settings.special_tokens();
  for (const auto& [content, id] : json.items()) {
    if (!id.is_number_integer()) {
      throw DataError(path.string(), ": unexpected content: '", content, "' has no id");
    }
    AddedToken token;
    token.content = content;
    token.id = id.get<int32_t>();
    token.normalized = true;
    for (const NamedToken& named : special) {
      if (named.token.content == content) token.special = true, token.normalized = false;
    }
    settings.added[token.id] = token;
  }
}

}  // namespace

std::string slow_class(const std::string& class_name) {
  return class_name.ends_with("Fast") ? class_name.substr(0, class_name.size() - 4) : class_name;
}

std::string TokenizerSettings::role(const char* key) const {
  const auto it = roles.find(key);
  return it == roles.end() ? "" : it->second.token.content;
}

void TokenizerSettings::use_defaults_of(const std::string& name) {
  static const std::map<std::string, std::map<std::string, std::string>> kDefaults = {
      {"LlamaTokenizer", {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}}},
      {"CodeLlamaTokenizer", {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}}},
      {"GemmaTokenizer",
       {{"bos_token", "<bos>"},
        {"eos_token", "<eos>"},
        {"unk_token", "<unk>"},
        {"pad_token", "<pad>"}}},
      {"CohereTokenizer",
       {{"bos_token", "<BOS_TOKEN>"},
        {"eos_token", "<|END_OF_TURN_TOKEN|>"},
        {"unk_token", "<UNK>"}}},
      {"GPT2Tokenizer",
       {{"bos_token", "<|endoftext|>"},
        {"eos_token", "<|endoftext|>"},
        {"unk_token", "<|endoftext|>"}}},
      {"Qwen2Tokenizer",
       {{"eos_token", "<|endoftext|>"},
        {"unk_token", "<|endoftext|>"},
        {"pad_token", "<|endoftext|>"}}}};
  const auto it = kDefaults.find(slow_class(name));
  if (it == kDefaults.end()) return;
  for (const auto& [key, content] : it->second) roles.try_emplace(key, read_named(content, false));
}

std::vector<NamedToken> TokenizerSettings::special_tokens() const {
  std::vector<NamedToken> out;
  const auto add = [&](const NamedToken& named) {
    const auto same = [&](const NamedToken& have) {
      return have.token.content == named.token.content;
    };
    if (named.token.content.empty() || std::any_of(out.begin(), out.end(), same)) return;
    out.push_back(named);
  };
  for (const char* key : kRoles) {
    const auto it = roles.find(key);
    if (it != roles.end()) add(it->second);
  }
  for (const bool extra : {false, true}) {
    for (const NamedToken& named : additional) {
      if (named.additional != extra) add(named);
    }
  }
  return out;
}

void read_settings_files(const fs::path& dir, TokenizerFiles& files) {
  std::error_code ignored;
  for (const char* name : {kMap, kConfig, kAddedTokens}) {
    if (fs::exists(dir / name, ignored)) files.emplace_back(name, read_file(dir / name));
  }
}

TokenizerSettings parse_settings_files(const TokenizerFiles& files, const fs::path& dir) {
  std::map<std::string, OrderedJson> read;
  for (const auto& [name, text] : files) {
    if (name != kMap && name != kConfig && name != kAddedTokens) continue;
    const std::string path = (dir / name).string();
    parse_json(text, path);  // its errors say where
    const OrderedJson& json = read[name] = OrderedJson::parse(text);
    if (!json.is_object()) throw DataError(path, ": unexpected content: expected an object");
  }
  const auto find = [&](const char* name) {
    const auto it = read.find(name);
    return it == read.end() ? nullptr : &it->second;
  };
  TokenizerSettings settings;
  settings.has_config = find(kConfig) != nullptr;
  read_merged(merge(find(kConfig), find(kMap)), dir, settings);
  const OrderedJson* added = find(kAddedTokens);
  if (added && !settings.has_decoder) read_added_tokens(*added, dir / kAddedTokens, settings);
  return settings;
}

}  // namespace mgm
