#include "config/suggest.h"

#include "base/strings.h"
#include "config/flatten.h"

namespace mgm {
namespace {

constexpr size_t kLongestKey = 80;  // longer text is no misspelt key, and comparing it costs time

std::string leaf(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// "; did you mean 'a' or 'b'?"
std::string question(const std::vector<std::string>& keys) {
  if (keys.empty()) return "";
  std::vector<std::string> quoted;
  for (const std::string& key : keys) quoted.push_back("'" + key + "'");
  return cat("; did you mean ", join(quoted, " or "), "?");
}

std::vector<std::string> keys_with_leaf(const std::string& name) {
  std::vector<std::string> out;
  for (const FlatField& field : config_keys()) {
    if (leaf(field.key) == name) out.push_back(field.key);
  }
  return out;
}

}  // namespace

std::string suggest_key(const std::string& key, const std::vector<std::string>& siblings) {
  const std::string name = leaf(key);
  if (name.size() > kLongestKey) return "";
  if (name == "extends" || name == "stages") {
    return cat("; ", name, " is read at the top of a file",
               name == "extends" ? " or of a stage only" : " only");
  }
  const std::string near = closest(name, siblings);
  return near.empty() ? question(keys_with_leaf(name)) : question({near});
}

std::string suggest_key(const std::string& key) {
  if (key.size() > kLongestKey) return "";
  std::vector<std::string> all;
  for (const FlatField& field : config_keys()) all.push_back(field.key);
  const std::string near = closest(key, all);
  const std::vector<std::string> elsewhere = keys_with_leaf(leaf(key));
  if (!elsewhere.empty()) return question(elsewhere);
  return near.empty() ? "" : question({near});
}

}  // namespace mgm
