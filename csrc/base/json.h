// JSON through nlohmann_json, with errors that name file, line and column. For annotation files of
// gigabytes see data/annotations.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/fs.h"

namespace mgm {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps insertion order; for files we write

// `source` is the name shown in the error. Throws Error(kData).
Json parse_json(std::string_view text, const std::string& source);
Json read_json(const fs::path& path);

}  // namespace mgm
