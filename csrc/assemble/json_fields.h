// Typed access to the fields of a config.json; errors say which field of which file is wrong. null
// counts as absent, as in Hugging Face configs, except where read_nullable() says otherwise. Whole
// numbers may be written 1.0, never 1.5. Numbers of a model obey the limits of the config schema.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "config/field_range.h"
#include "config/node.h"

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
    const Json& value = json_.at(key);
    if constexpr (std::is_same_v<T, int64_t>) {
      return whole(key, value);
    } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
      if (!value.is_array()) unexpected(key, value, "a list of whole numbers");
      std::vector<int64_t> out;
      for (const Json& item : value) out.push_back(whole(key, item));
      return out;
    } else {
      try {
        return value.get<T>();
      } catch (const Json::exception&) {
        unexpected(key, value, "");
      }
    }
  }

  template <class T>
  T get_or(const char* key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }

  // One of a few words: choice("side", {{"left", Side::kLeft}, ...}, Side::kLeft if absent).
  template <class T>
  T choice(const char* key, const std::vector<std::pair<const char*, T>>& words, T fallback) const {
    if (!has(key)) return fallback;
    const auto text = get<std::string>(key);
    std::vector<std::string> known;
    for (const auto& [word, value] : words) {
      if (text == word) return value;
      known.push_back(word);
    }
    throw CheckpointError(source_, ": field '", key, "' is '", shown(text),
                          "'; known: ", join(known, ", "));
  }

  // Into a number of a config struct, within the limits that its description has. The first form
  // needs the key, the second takes `fallback` without it.
  template <class Section, class T>
  void read(const char* key, Section& section, T& member) const {
    T value = get<T>(key);
    check(key, value, range_of(section, member));
    member = std::move(value);
  }
  template <class Section, class T>
  void read_or(const char* key, Section& section, T& member, T fallback) const {
    if (has(key)) return read(key, section, member);
    member = std::move(fallback);
  }
  // For fields where an absent key means a class default and null means none, which is 0.
  template <class Section, class T>
  void read_nullable(const char* key, Section& section, T& member, T if_absent) const {
    read_or(key, section, member, json_.contains(key) ? T{} : if_absent);
  }

  JsonFields sub(const char* key) const { return {get<Json>(key), source_ + " " + key}; }
  const std::string& source() const { return source_; }
  const Json& json() const { return json_; }

 private:
  [[noreturn]] void unexpected(const char* key, const Json& value, const char* expected) const {
    // Not of lists in lists: writing those recurses as deep as the file nests.
    bool nested = false;
    if (value.is_structured()) {
      for (const Json& item : value) nested |= item.is_structured();
    }
    const std::string text =
        nested ? cat("a nested ", value.type_name())
               : shown(value.dump(-1, ' ', false, Json::error_handler_t::replace));
    throw CheckpointError(source_, ": field '", key, "' has an unexpected value: ", text,
                          *expected ? cat("; expected ", expected) : "");
  }

  int64_t whole(const char* key, const Json& value) const {
    constexpr double kExact = 9007199254740992;  // 2^53: beyond it doubles are no exact integers
    if (value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX}) {
      return value.get<int64_t>();
    }
    if (value.is_number_integer() && !value.is_number_unsigned()) return value.get<int64_t>();
    if (value.is_number_float()) {
      const auto number = value.get<double>();
      if (std::trunc(number) == number && std::abs(number) <= kExact) {
        return static_cast<int64_t>(number);
      }
    }
    unexpected(key, value, "a whole number");
  }

  template <class T>
  void check(const std::string& key, const T& number, const Range& range) const {
    if (in_range(static_cast<double>(number), range)) return;
    throw CheckpointError(source_, ": field '", key, "' must be ", range_text(range), ", got ",
                          number);
  }
  template <class T>
  void check(const std::string& key, const std::vector<T>& numbers, const Range& each) const {
    for (size_t i = 0; i < numbers.size(); ++i) check(cat(key, "[", i, "]"), numbers[i], each);
  }

  Json json_;
  std::string source_;
};

}  // namespace mgm
