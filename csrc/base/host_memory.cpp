#include "base/host_memory.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/error.h"
#include "base/strings.h"

namespace mgm {
namespace {

std::string text_of(const fs::path& path) {
  try {
    return read_file(path);
  } catch (const DataError&) {
    return "";
  }
}

// "max" (cgroup v2: no limit) and what is not there are nothing.
std::optional<uint64_t> number_of(const std::string& text) {
  const std::string_view digits = trim(text);
  if (digits.empty() || digits.find_first_not_of("0123456789") != digits.npos) return std::nullopt;
  return std::stoull(std::string(digits));
}

// The number behind `key` at the beginning of a line of "key value" lines.
std::optional<uint64_t> field_of(const std::string& text, const std::string& key) {
  for (const std::string& line : split(text, '\n')) {
    if (line.rfind(key, 0) != 0) continue;
    const std::string rest(trim(std::string_view(line).substr(key.size())));
    return number_of(rest.substr(0, rest.find(' ')));
  }
  return std::nullopt;
}

struct Names {
  const char *limit, *usage, *droppable;
};
constexpr Names kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};
constexpr Names kVersion2{"memory.max", "memory.current", "inactive_file "};

uint64_t left_in(const fs::path& group, const Names& names) {
  constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
  const auto limit = number_of(text_of(group / names.limit));
  const auto usage = number_of(text_of(group / names.usage));
  if (!limit || !usage) return kNoLimit;
  const uint64_t cache = field_of(text_of(group / "memory.stat"), names.droppable).value_or(0);
  const uint64_t used = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, used);
}

}  // namespace

uint64_t available_host_memory(const fs::path& root) {
  uint64_t left = std::numeric_limits<uint64_t>::max();
  if (const auto kib = field_of(text_of(root / "proc/meminfo"), "MemAvailable:"))
    left = *kib * 1024;
  // "0::/path" (version 2) or "7:memory:/path" (version 1); every group above limits too.
  for (const std::string& line : split(text_of(root / "proc/self/cgroup"), '\n')) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers != "memory") continue;
    const fs::path top = root / "sys/fs/cgroup" / (v2 ? "" : "memory");
    fs::path inside = fs::path(line.substr(second + 1)).relative_path();
    while (true) {
      left = std::min(left, left_in(top / inside, v2 ? kVersion2 : kVersion1));
      if (inside.empty()) break;
      inside = inside.parent_path();
    }
  }
  return left;
}

}  // namespace mgm
