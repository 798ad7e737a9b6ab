#include "infer/prompt_file.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/json_problem.h"
#include "base/strings.h"

namespace mgm {
namespace {

void check_keys(const Json& record, const std::string& where) {
  if (!record.is_object()) {
    throw DataError(where, ": expected an object with id, prompt and image, got ", record.dump());
  }
  static const std::vector<std::string> known = {"id", "prompt", "image"};
  for (const auto& [key, value] : record.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw DataError(where, ": unknown key '", key, "'; known: ", join(known, ", "));
    }
  }
}

const Json& require(const Json& record, const char* key, const std::string& where) {
  const auto it = record.find(key);
  if (it == record.end()) throw DataError(where, ": '", key, "' is missing");
  return *it;
}

std::vector<std::string> read_images(const Json& record, const std::string& where) {
  const auto it = record.find("image");
  if (it == record.end() || it->is_null()) return {};
  const Json list = it->is_array() ? *it : Json::array({*it});
  std::vector<std::string> out;
  for (const Json& path : list) {
    if (!path.is_string()) {
      throw DataError(where, ": 'image' must be a path or a list of paths, got ", it->dump());
    }
    out.push_back(path.get<std::string>());
    std::error_code ignored;
    if (!fs::is_regular_file(out.back(), ignored)) {
      throw DataError(where, ": no picture at '", out.back(), "' (relative to ",
                      fs::current_path().string(), ")");
    }
  }
  return out;
}

BatchPrompt read_prompt(const Json& record, const std::string& where) {
  const Json& prompt = require(record, "prompt", where);
  if (!prompt.is_string()) throw DataError(where, ": 'prompt' must be text, got ", prompt.dump());
  BatchPrompt out;
  out.where = where;
  out.images = read_images(record, where);
  out.turns = {{"human", prompt.get<std::string>()}};
  if (trim(out.turns[0].value).empty() && out.images.empty()) {
    throw DataError(where, ": 'prompt' is empty and there is no picture");
  }
  return out;
}

}  // namespace

PromptFile read_prompt_file(const fs::path& path) {
  PromptFile out;
  std::map<std::string, size_t> line_of_id;  // by the id's JSON, so that 1 is not "1"
  const std::vector<std::string> lines = split(read_file(path), '\n');
  for (size_t i = 0; i < lines.size(); ++i) {
    if (trim(lines[i]).empty()) continue;
    const std::string where = cat(path.string(), ":", i + 1);
    const Json record = parse_json_line(lines[i], i + 1, path.string());
    check_keys(record, where);
    const Json& id = require(record, "id", where);
    if (!id.is_string() && !id.is_number_integer()) {
      throw DataError(where, ": 'id' must be text or a whole number, got ", id.dump());
    }
    const auto [it, fresh] = line_of_id.emplace(id.dump(), i + 1);
    if (!fresh) throw DataError(where, ": id ", id.dump(), " is that of line ", it->second, " too");
    out.ids.push_back(id);
    out.prompts.push_back(read_prompt(record, where));
  }
  if (out.prompts.empty()) throw DataError(path.string(), ": holds no question");
  return out;
}

std::string answer_line(const Json& id, const Answer& answer) {
  OrderedJson line;
  line["id"] = id;
  if (answer.error.empty()) {
    line["answer"] = answer.text;
    line["stopped"] = answer.stopped;
  } else {
    line["error"] = answer.error;
  }
  return line.dump(-1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace mgm
