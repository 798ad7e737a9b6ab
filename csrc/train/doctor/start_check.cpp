#include "train/doctor/start_check.h"

#include "base/log.h"
#include "dist/watch.h"
#include "train/doctor/gathering.h"
#include "train/doctor/host_checks.h"
#include "train/doctor/identity.h"
#include "train/doctor/link_checks.h"

namespace mgm {
namespace {

// One round: every rank's `mine` to the first, what it finds in them to all. Throws on failures.
void settle(Gathering& ranks, const std::string& round, const std::string& mine, double timeout_s,
            const std::function<Findings(const std::vector<std::string>&)>& judge) {
  std::map<int, Findings> found;
  const std::vector<std::string> all = ranks.gather_all(round, mine, timeout_s);
  if (ranks.is_first()) found[0] = judge(all);
  std::string text;
  for (const Finding& f : found[0]) {
    const std::string words = cat(f.text, f.advice.empty() ? "" : cat("; ", f.advice));
    if (f.level == Level::kWarn) log::warn(words);
    if (f.level == Level::kFail) text += cat(text.empty() ? "" : "\n", words);
  }
  const Json verdict = {{"code", static_cast<int>(outcome_of(found))}, {"text", text}};
  const Json told =
      parse_json(ranks.share(cat(round, ": verdict"), verdict.dump(), timeout_s), round);
  const auto code = static_cast<ExitCode>(told.at("code").get<int>());
  if (code == ExitCode::kOk) return;
  const auto sentence = told.at("text").get<std::string>();
  if (ranks.world() == 1) throw Error(code, sentence);
  throw PeerError(code, sentence);
}

// Memory of this rank, and for the ranks of its host, that the plan does not fit into. The run goes
// on: the plan assumes lengths of samples, and the free memory of some virtual machines grows as it
// is used.
Findings memory_warnings(const Needs& needs, const DeviceSetup& device, const LaunchEnv& env) {
  const HostFacts host = read_host_facts();
  Findings found;
  if (env.local_rank == 0) found.push_back(check_host_memory(host, needs, env));
  if (device.device.is_cuda()) {
    // The context and the groups are there by now.
    const GpuFacts gpu = read_gpu_facts(device.device.index());
    found.push_back(check_gpu_memory(gpu, needs.device - needs.begun));
  }
  Findings out;
  for (const Finding& f : found) {
    if (f.level != Level::kFail) continue;
    const std::string who = env.world > 1 ? cat("rank ", env.rank, " on ", host.name, ": ") : "";
    out.push_back(warned(f.check, who + f.text, f.advice));
  }
  return out;
}

// All failures, and of each check's warnings the first, with the number of the others: hosts of a
// kind are short of the same.
Findings shortened(const Findings& all) {
  Findings out;
  std::map<std::string, int> more;
  for (const Finding& f : all) {
    if (f.level != Level::kWarn || more[f.check]++ == 0) out.push_back(f);
  }
  for (Finding& f : out) {
    const int others = f.level == Level::kWarn ? more[f.check] - 1 : 0;
    if (others > 0) f.text += cat(" (and ", others, others == 1 ? " rank" : " ranks", " more)");
  }
  return out;
}

Gathering gathering_of(const Ranks& ranks) {
  return {ranks.store ? ranks.store->below("start") : nullptr, ranks.rank(), ranks.size(),
          ranks.log.get()};
}

}  // namespace

void check_ranks_agree(const Ranks& ranks, const RunConfig& config, const DeviceSetup& device) {
  if (ranks.size() == 1) return;
  Gathering gathering = gathering_of(ranks);
  const GpuFacts gpu = device.device.is_cuda() ? read_gpu_facts(device.device.index()) : GpuFacts();
  Json mine = {{"facts", to_json(place_facts(config, ranks.env, read_host_facts(), gpu))},
               {"config", config_lines(config)}};
  settle(gathering, "program, config and place", mine.dump(), config.dist.timeout_s.start,
         [](const std::vector<std::string>& all) {
           std::vector<RankFacts> facts;
           std::vector<std::string> configs;
           for (const std::string& text : all) {
             const Json json = parse_json(text, "facts of a rank");
             facts.push_back(rank_facts(json.at("facts")));
             configs.push_back(json.at("config").get<std::string>());
           }
           Findings out = compare_ranks(facts, [&](const std::string& name, int usual, int other) {
             if (name != "the config") return std::string();
             return config_difference(configs[static_cast<size_t>(usual)],
                                      configs[static_cast<size_t>(other)]);
           });
           for (Finding& f : compare_places(facts)) out.push_back(std::move(f));
           return out;
         });
}

void check_inputs_agree(Ranks& ranks, const RunConfig& config, const RunIdentity& identity,
                        const ModelParts& parts, const DeviceSetup& device, FolderUse use) {
  const double timeout_s = config.dist.timeout_s.start;
  const std::string& dir = config.run.dir;
  Gathering gathering = gathering_of(ranks);
  const std::string nonce =
      gathering.share("name of a probe", SharedFolderProbe::make_nonce(), timeout_s);
  std::optional<SharedFolderProbe> probe;
  if (use == FolderUse::kWrite) probe.emplace(dir, nonce, ranks.rank());
  // Alone there is nothing to compare with.
  const auto content = ranks.size() > 1 ? WeightContent::kSampled : WeightContent::kNone;
  const RankFacts mine = input_facts(ranks.env, read_host_facts(), identity.data_hash,
                                     identity.tokenizer_hash, weights_hash(config, content));
  const Needs needs = estimate_needs(config, parts, device, ranks.topology);
  settle(gathering, "data, tokenizer and weights", to_json(mine).dump(), timeout_s,
         [&](const std::vector<std::string>& all) {
           std::vector<RankFacts> facts;
           std::vector<int> others;
           for (const std::string& text : all) {
             facts.push_back(rank_facts(parse_json(text, "facts of a rank")));
             others.push_back(facts.back().rank);
           }
           Findings out = compare_ranks(facts, {});
           if (ranks.size() == 1) {
             for (Finding& f : memory_warnings(needs, device, ranks.env)) {
               out.push_back(std::move(f));
             }
           }
           if (!probe) return out;
           for (Finding& f : check_one_folder(*probe, others)) out.push_back(std::move(f));
           out.push_back(check_disk(dir, free_on_disk(dir), held_by_checkpoints(dir), needs));
           return out;
         });
  if (ranks.size() == 1) return;
  Findings own = check_reductions(ranks, device);
  for (Finding& f : memory_warnings(needs, device, ranks.env)) own.push_back(std::move(f));
  if (probe) {
    for (Finding& f : check_one_folder(*probe, {0})) own.push_back(std::move(f));
  }
  settle(gathering, "sums and run folder", to_json(own).dump(), timeout_s,
         [](const std::vector<std::string>& all) {
           Findings out;
           for (const std::string& text : all) {
             for (Finding& f : findings_from_json(parse_json(text, "findings of a rank"))) {
               out.push_back(std::move(f));
             }
           }
           return shortened(out);
         });
}

}  // namespace mgm
