#include "model/adapters.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/strings.h"

namespace mgm {
namespace {

constexpr std::string_view kWeight = ".weight";

bool matches(const std::string& pattern, const Linear& linear) {
  return glob_match(pattern, linear.prefix()) || glob_match(pattern, linear.weight().spec.name);
}

// "model.layers.0.self_attn.q_proj" -> "q_proj".
std::string leaf(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// Names of one block differ from those of the next in its number, so what tells a target's meaning
// is its last part.
std::string nearest(std::string target, const std::vector<Linear*>& linears) {
  if (target.ends_with(kWeight)) target.resize(target.size() - kWeight.size());
  std::set<std::string> leaves;
  for (const Linear* linear : linears) leaves.insert(leaf(linear->prefix()));
  const std::string near = closest(leaf(target), {leaves.begin(), leaves.end()});
  for (const Linear* linear : linears) {
    if (leaf(linear->prefix()) != near) continue;
    const auto count = std::count_if(linears.begin(), linears.end(), [&](const Linear* other) {
      return leaf(other->prefix()) == near;
    });
    return cat("the nearest names are '", linear->prefix(), "' and the like, ", count, " of them");
  }
  return cat("they end in ", join({leaves.begin(), leaves.end()}, ", "));
}

}  // namespace

double adapter_scale(const AdapterConfig& config) {
  const double rank = double(config.rank);
  return config.alpha / (config.rslora ? std::sqrt(rank) : rank);
}

void add_adapters(const AdapterConfig& config, const std::vector<Linear*>& linears) {
  if (config.kind == AdapterKind::kNone) return;
  for (Linear* linear : linears) {
    const bool named =
        config.targets.empty() ||
        std::any_of(config.targets.begin(), config.targets.end(),
                    [&](const std::string& target) { return matches(target, *linear); });
    if (named) linear->adapt({config.rank, adapter_scale(config), config.dropout});
  }
}

std::vector<ConfigProblem> check_targets(const AdapterConfig& config,
                                         const std::vector<Linear*>& linears) {
  std::vector<ConfigProblem> out;
  if (config.kind == AdapterKind::kNone) return out;
  for (size_t i = 0; i < config.targets.size(); ++i) {
    const std::string& target = config.targets[i];
    if (std::any_of(linears.begin(), linears.end(),
                    [&](const Linear* linear) { return matches(target, *linear); })) {
      continue;
    }
    out.push_back({cat("model.adapter.targets[", i, "]"),
                   cat("'", target, "' names no linear of the language model's blocks; ",
                       nearest(target, linears))});
  }
  return out;
}

}  // namespace mgm
