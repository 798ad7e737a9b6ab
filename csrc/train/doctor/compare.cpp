#include "train/doctor/compare.h"

#include <algorithm>
#include <map>

namespace mgm {
namespace {

std::string named(const RankFacts& facts) { return cat("rank ", facts.rank, " on ", facts.host); }

const Shared* find(const RankFacts& facts, const std::string& name) {
  for (const Shared& item : facts.shared) {
    if (item.name == name) return &item;
  }
  return nullptr;
}

// The value most ranks have, and the first rank that has it.
std::pair<std::string, int> usual_value(const std::vector<RankFacts>& ranks,
                                        const std::string& name) {
  std::map<std::string, std::vector<int>> holders;
  for (const RankFacts& facts : ranks) {
    const Shared* item = find(facts, name);
    if (item && !item->value.empty()) holders[item->value].push_back(facts.rank);
  }
  std::pair<std::string, int> best{"", -1};
  size_t most = 0;
  for (const auto& [value, list] : holders) {
    if (list.size() < most || (list.size() == most && list.front() > best.second)) continue;
    most = list.size();
    best = {value, list.front()};
  }
  return best;
}

// Whether all that know it agree.
bool compare_shared(const std::vector<RankFacts>& ranks, const std::string& name,
                    const Explain& explain, Findings& out) {
  const size_t before = out.size();
  const auto [usual, holder] = usual_value(ranks, name);
  for (const RankFacts& facts : ranks) {
    const Shared* item = find(facts, name);
    if (!item || item->value.empty() || item->value == usual) continue;
    const std::string more = explain ? explain(name, holder, facts.rank) : "";
    const std::string text =
        cat(named(facts), ": ", name, " differs from rank ", holder,
            "'s: ", more.empty() ? cat(item->value, " instead of ", usual) : more);
    out.push_back(item->level == Level::kFail ? failed("ranks", item->kind, text, item->advice)
                                              : warned("ranks", text, item->advice));
  }
  return out.size() == before;
}

template <class Key>
void find_doubles(const std::vector<RankFacts>& ranks, const Key& key, const std::string& what,
                  const std::string& advice, Findings& out) {
  std::map<std::string, const RankFacts*> seen;
  for (const RankFacts& facts : ranks) {
    const std::string value = key(facts);
    if (value.empty()) continue;
    const auto [before, is_new] = seen.emplace(value, &facts);
    if (is_new) continue;
    out.push_back(failed("ranks", ExitCode::kDist,
                         cat(named(*before->second), " and ", named(facts), " ", what, " ",
                             value.substr(value.rfind(' ') + 1)),
                         advice));
  }
}

}  // namespace

Json to_json(const RankFacts& facts) {
  Json shared = Json::array();
  for (const Shared& item : facts.shared) {
    shared.push_back({item.name, item.value, static_cast<int>(item.kind),
                      static_cast<int>(item.level), item.advice});
  }
  return {{"rank", facts.rank}, {"local_rank", facts.local_rank}, {"node", facts.node},
          {"host", facts.host}, {"host_id", facts.host_id},       {"gpu", facts.gpu},
          {"shared", shared}};
}

RankFacts rank_facts(const Json& json) {
  RankFacts out;
  out.rank = json.at("rank").get<int>();
  out.local_rank = json.at("local_rank").get<int>();
  out.node = json.at("node").get<int>();
  out.host = json.at("host").get<std::string>();
  out.host_id = json.at("host_id").get<std::string>();
  out.gpu = json.at("gpu").get<std::string>();
  for (const Json& item : json.at("shared")) {
    Shared& shared =
        out.shared.emplace_back(Shared{item.at(0).get<std::string>(), item.at(1).get<std::string>(),
                                       static_cast<ExitCode>(item.at(2).get<int>())});
    if (item.size() < 5) continue;  // of another program, which is then what differs
    shared.level = static_cast<Level>(item.at(3).get<int>());
    shared.advice = item.at(4).get<std::string>();
  }
  return out;
}

Findings compare_ranks(const std::vector<RankFacts>& ranks, const Explain& explain) {
  Findings out;
  std::vector<std::string> names;
  for (const RankFacts& facts : ranks) {
    for (const Shared& item : facts.shared) {
      if (std::find(names.begin(), names.end(), item.name) == names.end()) {
        names.push_back(item.name);
      }
    }
  }
  std::vector<std::string> equal;
  for (const std::string& name : names) {
    if (compare_shared(ranks, name, explain, out)) equal.push_back(name);
  }
  if (outcome_of({{0, out}}) == ExitCode::kOk) {
    out.push_back(passed("ranks", cat("all agree on ", join(equal, ", "))));
  }
  return out;
}

Findings compare_places(const std::vector<RankFacts>& ranks) {
  Findings out;
  find_doubles(
      ranks, [](const RankFacts& f) { return f.gpu; }, "are on one GPU:",
      "start one rank per GPU; LOCAL_RANK, CUDA_VISIBLE_DEVICES or the launcher's binding is wrong",
      out);
  find_doubles(
      ranks, [](const RankFacts& f) { return cat(f.host_id, " ", f.node, " ", f.local_rank); },
      "have the same local rank:",
      "LOCAL_RANK must count the ranks of a host from 0; the launcher sets it", out);
  return out;
}

std::string config_difference(const std::string& usual, const std::string& other) {
  const auto table = [](const std::string& text) {
    std::map<std::string, std::string> values;
    for (const std::string& line : split(text, '\n')) {
      const size_t colon = line.find(": ");
      if (colon != line.npos) values[line.substr(0, colon)] = line.substr(colon + 2);
    }
    return values;
  };
  std::map<std::string, std::string> a = table(usual), b = table(other);
  for (const auto& [key, value] : a) b.emplace(key, "(absent)");
  std::vector<std::string> differences;
  for (const auto& [key, value] : b) {
    const auto it = a.find(key);
    const std::string before = it == a.end() ? "(absent)" : it->second;
    if (before != value) differences.push_back(cat(key, ": ", value, " instead of ", before));
  }
  return join(differences, "; ");
}

Findings compare_clocks(const std::vector<double>& clocks, double sent,
                        const std::vector<double>& received) {
  constexpr double kSkew = 5;  // seconds
  Findings out;
  for (size_t rank = 0; rank < clocks.size(); ++rank) {
    // The rank read its clock at some time between the two.
    const double ahead = clocks[rank] - received[rank], behind = sent - clocks[rank];
    if (std::max(ahead, behind) <= kSkew) continue;
    out.push_back(warned("ranks",
                         strf("the clock of rank %zu is at least %.0f s %s the first rank's", rank,
                              std::max(ahead, behind), ahead > behind ? "ahead of" : "behind"),
                         "start chrony or ntpd on that host; logs and checkpoint times mislead"));
  }
  return out;
}

}  // namespace mgm
