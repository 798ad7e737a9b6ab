#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "base/host_memory.h"
#include "train/doctor/facts.h"

namespace mgm {
namespace {

std::string text_or_empty(const fs::path& path) {
  try {
    return std::string(trim(read_file(path)));
  } catch (const Error&) {
    return "";  // a file that this kernel does not have
  }
}

// A number, or nothing for "max" and for what cgroup v1 says where there is no limit.
std::optional<int64_t> limit_of(const std::string& text) {
  constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max() / 2;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0 || value >= kUnlimited) return std::nullopt;
  return value;
}

int64_t meminfo(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  std::string name;
  int64_t kib = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    if (words >> name >> kib && name == key + ":") return kib * 1024;
  }
  return 0;
}

// The group's path in one hierarchy: "" for v2, "memory" or "cpu" for v1.
std::optional<std::string> group_path(const std::string& proc_self_cgroup,
                                      const std::string& controller) {
  for (const std::string& line : split(proc_self_cgroup, '\n')) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::vector<std::string> names = split(line.substr(first + 1, second - first - 1), ',');
    if (std::find(names.begin(), names.end(), controller) != names.end()) {
      return line.substr(second + 1);
    }
  }
  return std::nullopt;
}

// From the group's own folder up to the root of the hierarchy. A container often sees only the
// root, which is then its own group.
template <class Visit>
void walk_up(const fs::path& hierarchy, const std::string& path, const Visit& visit) {
  fs::path below = fs::path(path).relative_path();
  while (true) {
    visit(hierarchy / below);
    if (below.empty()) return;
    below = below.parent_path();
  }
}

void read_cpu_quota(const fs::path& root, const std::string& groups, HostFacts& out) {
  const auto take = [&](double quota, double period) {
    if (quota <= 0 || period <= 0) return;
    out.cores = std::min(out.cores, std::max<int64_t>(1, std::llround(quota / period)));
  };
  const fs::path sys = root / "sys/fs/cgroup";
  if (const auto path = group_path(groups, "")) {
    walk_up(sys, *path, [&](const fs::path& folder) {
      double quota = 0, period = 0;
      std::istringstream words(text_or_empty(folder / "cpu.max"));
      if (words >> quota >> period) take(quota, period);
    });
  }
  if (const auto path = group_path(groups, "cpu")) {
    walk_up(sys / "cpu", *path, [&](const fs::path& folder) {
      const auto quota = limit_of(text_or_empty(folder / "cpu.cfs_quota_us"));
      const auto period = limit_of(text_or_empty(folder / "cpu.cfs_period_us"));
      if (quota && period) take(double(*quota), double(*period));
    });
  }
}

// "580.65.06" of "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release ...":
// CUDA's own number stays the same over many of them.
std::string gpu_driver_version(const std::string& proc_version) {
  std::istringstream words(split(proc_version, '\n').front());
  for (std::string word; words >> word;) {
    const bool number = word.find_first_not_of("0123456789.") == word.npos;
    if (number && word.find('.') != word.npos) return word;
  }
  return "";
}

int64_t soft_limit(decltype(RLIMIT_NOFILE) what) {
  struct rlimit limit {};
  if (::getrlimit(what, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<int64_t>(limit.rlim_cur);
}

}  // namespace

HostFacts read_host_facts(const fs::path& root) {
  HostFacts out;
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  out.name = name;
  out.boot = text_or_empty(root / "proc/sys/kernel/random/boot_id");
  std::error_code none;
  out.network = fs::read_symlink(root / "proc/self/ns/net", none).string();
  out.gpu_driver = gpu_driver_version(text_or_empty(root / "proc/driver/nvidia/version"));
  const std::string memory = text_or_empty(root / "proc/meminfo");
  out.memory_total = meminfo(memory, "MemTotal");
  out.memory_available = meminfo(memory, "MemAvailable");
  out.memory_free = static_cast<int64_t>(available_host_memory(root));
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(0, sizeof cpus, &cpus) == 0) out.cores = CPU_COUNT(&cpus);
  const std::string groups = text_or_empty(root / "proc/self/cgroup");
  read_cpu_quota(root, groups, out);
  out.open_files = soft_limit(RLIMIT_NOFILE);
  out.locked_memory = soft_limit(RLIMIT_MEMLOCK);
  return out;
}

}  // namespace mgm
