// Typed access to the fields of a config.json; errors say which field of which file is wrong. null
// counts as absent, as in Hugging Face configs, except where nullable() says otherwise.
#pragma once

#include <string>
#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace mgm {

class JsonFields {
 public:
  JsonFields(const Json& json, std::string source) : json_(json), source_(std::move(source)) {
    if (!json.is_object()) throw CheckpointError(source_, ": expected a JSON object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  template <class T>
  T get(const char* key) const {
    if (!has(key)) throw CheckpointError(source_, ": field '", key, "' is missing");
    try {
      return json_.at(key).get<T>();
    } catch (const Json::exception&) {
      throw CheckpointError(source_, ": field '", key,
                            "' has an unexpected value: ", json_.at(key).dump());
    }
  }

  template <class T>
  T get_or(const char* key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }

  // For fields where an absent key means a class default and null means none.
  template <class T>
  T nullable(const char* key, T if_absent, T if_null) const {
    if (has(key)) return get<T>(key);
    return json_.contains(key) ? if_null : if_absent;
  }

  JsonFields sub(const char* key) const { return {get<Json>(key), source_ + " " + key}; }
  const std::string& source() const { return source_; }
  const Json& json() const { return json_; }

 private:
  Json json_;
  std::string source_;
};

}  // namespace mgm
