#include "formats/shard_index.h"

#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/json_problem.h"

namespace mgm {

std::vector<std::string> ShardIndex::files() const {
  std::set<std::string> unique;
  for (const auto& [name, file] : weight_map) unique.insert(file);
  return {unique.begin(), unique.end()};
}

ShardIndex parse_shard_index(std::string_view text, const std::string& source) {
  std::set<std::string> names;
  bool in_map = false;
  // Plain parsing would keep the last of two entries for a tensor.
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event != Json::parse_event_t::key) return true;
    const auto& key = value.get_ref<const std::string&>();
    if (depth == 1) in_map = key == "weight_map";
    if (depth == 2 && in_map && !names.insert(key).second) {
      throw CheckpointError(source, ": '", key, "' occurs twice in weight_map");
    }
    return true;
  };
  ShardIndex index;
  try {
    const Json json = Json::parse(text.begin(), text.end(), check);
    const Json& map = json.at("weight_map");
    if (!map.is_object()) throw CheckpointError(source, ": weight_map is no JSON object");
    for (const auto& [name, file] : map.items()) {
      const auto& shard = file.get_ref<const std::string&>();
      if (shard.empty() || shard == "." || shard == ".." ||
          shard.find_first_of(std::string_view("/\\\0", 3)) != shard.npos) {
        throw CheckpointError(source, ": '", name, "' lies in ", file.dump(),
                              ", which is no file name of the same folder");
      }
      index.weight_map[name] = shard;
    }
  } catch (const Json::exception& e) {
    throw CheckpointError(source, ": not a shard index: ", json_problem(e));
  }
  if (index.weight_map.empty()) {
    throw CheckpointError(source, ": the shard index names no tensor");
  }
  return index;
}

std::string make_shard_index(const ShardIndex& index) {
  const Json json = {
      {"metadata",
       {{"total_parameters", index.total_parameters}, {"total_size", index.total_size}}},
      {"weight_map", index.weight_map}};
  return json.dump(2) + "\n";
}

}  // namespace mgm
