#include "config/writer.h"

#include "base/strings.h"
#include "config/flatten.h"

namespace mgm {
namespace {

// Splits "a.b[0].c" into "a", "b", "[0]", "c".
std::vector<std::string> steps_of(const std::string& key) {
  std::vector<std::string> steps;
  for (const std::string& part : split(key, '.')) {
    const size_t bracket = part.find('[');
    steps.push_back(part.substr(0, bracket));
    if (bracket != part.npos) steps.push_back(part.substr(bracket));
  }
  return steps;
}

std::string origin_text(const std::map<std::string, Where>& origins, const std::string& key) {
  const auto it = origins.find(key);
  // The comment must stay on its line, whatever a file is called.
  return it == origins.end() ? "default" : replace_all(it->second.text(), "\n", "\\n");
}

}  // namespace

std::string to_yaml(const RunConfig& config, const std::map<std::string, Where>* origins) {
  constexpr size_t kCommentColumn = 48;
  std::string out;
  std::vector<std::string> open;  // the steps above the line before
  for (const FlatField& field : flatten(config)) {
    const std::vector<std::string> steps = steps_of(field.key);
    size_t same = 0;
    while (same < open.size() && same + 1 < steps.size() && open[same] == steps[same]) ++same;
    bool dash = false;  // of a list item whose first key is the next line
    const auto line_start = [&](size_t depth) {
      std::string start(2 * depth, ' ');
      if (dash) start.replace(2 * depth - 2, 1, "-");
      dash = false;
      return start;
    };
    for (size_t i = same; i + 1 < steps.size(); ++i) {
      if (steps[i][0] == '[') {
        dash = true;
      } else {
        out += line_start(i) + steps[i] + ":\n";
      }
    }
    open.assign(steps.begin(), steps.end() - 1);
    std::string line = line_start(steps.size() - 1) + steps.back() + ": " + field.value;
    if (origins) {
      if (line.size() < kCommentColumn) line.resize(kCommentColumn, ' ');
      line += "  # " + origin_text(*origins, field.key);
    }
    out += line + "\n";
  }
  return out;
}

std::string to_yaml(const std::vector<ResolvedConfig>& stages, bool with_origins) {
  const auto one = [&](const ResolvedConfig& stage) {
    return to_yaml(stage.config, with_origins ? &stage.origins : nullptr);
  };
  if (stages.size() == 1) return one(stages[0]);
  std::string out = "stages:\n";
  for (const ResolvedConfig& stage : stages) {
    std::string text = one(stage);
    text.pop_back();
    out += "  - " + replace_all(text, "\n", "\n    ") + "\n";
  }
  return out;
}

std::vector<ConfigDifference> diff(const RunConfig& a, const RunConfig& b) {
  std::map<std::string, std::string> left;
  for (const FlatField& field : flatten(a)) left[field.key] = field.value;
  std::vector<ConfigDifference> out;
  for (const FlatField& field : flatten(b)) {
    const auto it = left.find(field.key);
    if (it == left.end()) {
      out.push_back({field.key, std::nullopt, field.value});
      continue;
    }
    if (it->second != field.value) out.push_back({field.key, it->second, field.value});
    left.erase(it);
  }
  for (const auto& [key, value] : left) out.push_back({key, value, std::nullopt});
  return out;
}

}  // namespace mgm
