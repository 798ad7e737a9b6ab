// What a model directory says of its tokenizer besides the vocabulary: tokenizer_config.json,
// special_tokens_map.json and added_tokens.json, as Hugging Face's classes read them.
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

struct TokenizerSettings {
  std::string class_name;  // tokenizer_class
  bool legacy = true;
  std::optional<bool> add_bos, add_eos;
  bool add_prefix_space = true;
  std::string bos, eos, unk, pad;  // empty: not named
  std::map<int32_t, AddedToken> added;
};

// Appends the settings files that are there.
void read_settings_files(const fs::path& dir, TokenizerFiles& files);

// Takes what the settings files among `files` say into `settings`, whose values are the defaults.
// Throws DataError naming the file, as one of `dir`.
void apply_settings_files(const TokenizerFiles& files, const fs::path& dir,
                          TokenizerSettings& settings);

// Both of it.
void read_tokenizer_settings(const fs::path& dir, TokenizerSettings& settings,
                             TokenizerFiles& files);

}  // namespace mgm
