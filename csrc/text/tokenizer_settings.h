// What a model directory says of its tokenizer besides the vocabulary: tokenizer_config.json,
// special_tokens_map.json and added_tokens.json, as Hugging Face's classes read them. With an
// added_tokens_decoder in tokenizer_config.json the other two files say nothing; without one
// special_tokens_map.json goes before tokenizer_config.json.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/fs.h"
#include "text/added_tokens.h"

namespace mgm {

// Name -> content, in the order they were read.
using TokenizerFiles = std::vector<std::pair<std::string, std::string>>;

// A token that the settings name as special. The token has no id yet.
struct NamedToken {
  AddedToken token;      // without content: the role is said to be empty
  bool details = false;  // lstrip and the like were written with it
  bool additional = false;
};

struct TokenizerSettings {
  std::string class_name;  // tokenizer_class
  bool legacy = true;
  std::optional<bool> add_bos, add_eos;
  std::optional<bool> add_prefix_space;     // with null: not there
  bool has_prefix_space = false;            // the key is there, maybe with null
  bool split_special = false;               // special tokens written in a text are text
  bool has_config = false;                  // there is a tokenizer_config.json
  bool has_decoder = false;                 // with an added_tokens_decoder
  std::map<std::string, NamedToken> roles;  // "bos_token" and so on; only those that are named
  std::vector<NamedToken> additional;       // additional_special_tokens, extra_special_tokens
  std::map<int32_t, AddedToken> added;

  // The token in a role; empty: none.
  std::string role(const char* key) const;
  // Tokens for roles the files do not name, as the class of `transformers` has them; for an unknown
  // class none.
  void use_defaults_of(const std::string& class_name);
  // Every special token once, in the order `transformers` adds those that are missing.
  std::vector<NamedToken> special_tokens() const;
};

// "LlamaTokenizerFast" -> "LlamaTokenizer".
std::string slow_class(const std::string& class_name);

// Appends the settings files that are there.
void read_settings_files(const fs::path& dir, TokenizerFiles& files);

// What the settings files among `files` say. Throws DataError naming the file, as one of `dir`.
TokenizerSettings parse_settings_files(const TokenizerFiles& files, const fs::path& dir);

}  // namespace mgm
