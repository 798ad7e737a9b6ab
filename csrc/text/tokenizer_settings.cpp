#include "text/tokenizer_settings.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "base/json.h"
#include "base/json_problem.h"

namespace mgm {
namespace {

constexpr std::string_view kAddedTokens = "added_tokens.json";
// Later ones count before earlier ones.
constexpr std::string_view kNames[] = {"special_tokens_map.json", "tokenizer_config.json",
                                       kAddedTokens};

// A token of a JSON file is a string or an object with "content".
std::string token_content(const Json& json) {
  if (json.is_string()) return json.get<std::string>();
  if (json.is_object() && json.contains("content")) return json.at("content").get<std::string>();
  return "";
}

void read_added_tokens(const Json& json, TokenizerSettings& settings) {
  for (const auto& [content, id] : json.items()) {
    AddedToken token;
    token.content = content;
    token.id = id.get<int32_t>();
    settings.added.try_emplace(token.id, token);
  }
}

// tokenizer_config.json and special_tokens_map.json name the special tokens alike.
void read_config(const Json& json, TokenizerSettings& settings) {
  for (const auto& [key, target] :
       {std::pair<const char*, std::string*>{"bos_token", &settings.bos},
        {"eos_token", &settings.eos},
        {"unk_token", &settings.unk},
        {"pad_token", &settings.pad}}) {
    if (json.contains(key) && !json.at(key).is_null()) *target = token_content(json.at(key));
  }
  const auto flag = [&](const char* key, auto& target) {
    if (json.contains(key) && json.at(key).is_boolean()) target = json.at(key).get<bool>();
  };
  flag("add_bos_token", settings.add_bos);
  flag("add_eos_token", settings.add_eos);
  flag("legacy", settings.legacy);
  flag("add_prefix_space", settings.add_prefix_space);
  settings.class_name = json.value("tokenizer_class", settings.class_name);
  const Json decoder = json.value("added_tokens_decoder", Json::object());
  for (const auto& [id_text, json_token] : decoder.items()) {
    AddedToken token;
    token.content = token_content(json_token);
    token.id = std::stoi(id_text);
    token.special = json_token.value("special", false);
    token.lstrip = json_token.value("lstrip", false);
    token.rstrip = json_token.value("rstrip", false);
    token.single_word = json_token.value("single_word", false);
    token.normalized = json_token.value("normalized", !token.special);
    settings.added[token.id] = token;
  }
}

}  // namespace

void read_settings_files(const fs::path& dir, TokenizerFiles& files) {
  std::error_code ignored;
  for (const std::string_view name : kNames) {
    if (fs::exists(dir / name, ignored)) files.emplace_back(name, read_file(dir / name));
  }
}

void apply_settings_files(const TokenizerFiles& files, const fs::path& dir,
                          TokenizerSettings& settings) {
  for (const auto& [name, text] : files) {
    if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames)) continue;
    const fs::path path = dir / name;
    const Json json = parse_json(text, path.string());
    try {
      if (name == kAddedTokens) {
        read_added_tokens(json, settings);
      } else {
        read_config(json, settings);
      }
    } catch (const Json::exception& e) {
      throw DataError(path.string(), ": unexpected content: ", json_problem(e));
    } catch (const std::exception& e) {
      throw DataError(path.string(), ": unexpected content: ", e.what());
    }
  }
}

void read_tokenizer_settings(const fs::path& dir, TokenizerSettings& settings,
                             TokenizerFiles& files) {
  read_settings_files(dir, files);
  apply_settings_files(files, dir, settings);
}

}  // namespace mgm
