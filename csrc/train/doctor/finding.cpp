#include "train/doctor/finding.h"

#include <algorithm>
#include <array>

namespace mgm {
namespace {

constexpr std::array kKinds = {ExitCode::kConfig, ExitCode::kData, ExitCode::kCheckpoint,
                               ExitCode::kDist, ExitCode::kInternal};

struct Line {
  Finding finding;
  std::vector<int> ranks;
};

size_t place_of(ExitCode kind) {
  return static_cast<size_t>(std::find(kKinds.begin(), kKinds.end(), kind) - kKinds.begin());
}

// Worst first, failures by kind; otherwise in the order they were found in.
std::vector<Line> merged(const std::map<int, Findings>& by_rank) {
  std::vector<Line> lines;
  for (const auto& [rank, findings] : by_rank) {
    for (const Finding& finding : findings) {
      const auto same = std::find_if(lines.begin(), lines.end(),
                                     [&](const Line& line) { return line.finding == finding; });
      if (same == lines.end()) {
        lines.push_back({finding, {rank}});
      } else if (same->ranks.back() != rank) {
        same->ranks.push_back(rank);
      }
    }
  }
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) {
    if (a.finding.level != b.finding.level) return a.finding.level > b.finding.level;
    return a.finding.level == Level::kFail && place_of(a.finding.kind) < place_of(b.finding.kind);
  });
  return lines;
}

// Lines behind the first begin below its text.
std::string indented(const std::string& text, size_t spaces) {
  return replace_all(text, "\n", "\n" + std::string(spaces, ' '));
}

}  // namespace

Finding passed(const std::string& check, const std::string& text) {
  return {Level::kOk, ExitCode::kOk, check, text, ""};
}

Finding warned(const std::string& check, const std::string& text, const std::string& advice) {
  return {Level::kWarn, ExitCode::kOk, check, text, advice};
}

Finding failed(const std::string& check, ExitCode kind, const std::string& text,
               const std::string& advice) {
  return {Level::kFail, kind, check, text, advice};
}

Finding failed(const std::string& check, const std::exception& error) {
  const auto* typed = dynamic_cast<const Error*>(&error);
  return failed(check, typed ? typed->code() : ExitCode::kInternal, error.what(), "");
}

Json to_json(const Findings& findings) {
  Json out = Json::array();
  for (const Finding& f : findings) {
    out.push_back({{"level", static_cast<int>(f.level)},
                   {"kind", static_cast<int>(f.kind)},
                   {"check", f.check},
                   {"text", f.text},
                   {"advice", f.advice}});
  }
  return out;
}

Findings findings_from_json(const Json& json) {
  Findings out;
  for (const Json& f : json) {
    out.push_back({static_cast<Level>(f.at("level").get<int>()),
                   static_cast<ExitCode>(f.at("kind").get<int>()), f.at("check").get<std::string>(),
                   f.at("text").get<std::string>(), f.at("advice").get<std::string>()});
  }
  return out;
}

std::string name_ranks(const std::vector<int>& ranks) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i;
    while (end + 1 < ranks.size() && ranks[end + 1] == ranks[end] + 1) ++end;
    parts.push_back(end == i ? std::to_string(ranks[i]) : cat(ranks[i], "-", ranks[end]));
    i = end + 1;
  }
  return cat(ranks.size() == 1 ? "rank " : "ranks ", join(parts, ", "));
}

std::string format_findings(const std::map<int, Findings>& by_rank, int world) {
  constexpr const char* kNames[] = {"ok", "warn", "FAIL"};
  constexpr size_t kColumn = 18;  // where texts begin
  std::array<int, 3> counts{};
  std::string out;
  for (const Line& line : merged(by_rank)) {
    const Finding& f = line.finding;
    const auto level = static_cast<size_t>(f.level);
    ++counts[level];
    out += strf("%-6s%-12s", kNames[level], f.check.c_str()) + indented(f.text, kColumn);
    if (world > 1 && line.ranks.size() < static_cast<size_t>(world)) {
      out += cat("  [", name_ranks(line.ranks), "]");
    }
    out += "\n";
    if (!f.advice.empty()) {
      out += cat(std::string(kColumn, ' '), "-> ", indented(f.advice, kColumn), "\n");
    }
  }
  const auto counted = [](int n, const char* what) { return cat(n, " ", what, n == 1 ? "" : "s"); };
  return out + cat(counted(counts[2], "failure"), ", ", counted(counts[1], "warning"), ", ",
                   counts[0], " ok\n");
}

ExitCode outcome_of(const std::map<int, Findings>& by_rank) {
  ExitCode worst = ExitCode::kOk;
  for (const Line& line : merged(by_rank)) {
    if (line.finding.level == Level::kFail) {
      worst = line.finding.kind;
      break;
    }
  }
  return worst;
}

}  // namespace mgm
