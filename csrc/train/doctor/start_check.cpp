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
    if (f.level == Level::kWarn) log::warn(f.text);
    if (f.level != Level::kFail) continue;
    text += cat(text.empty() ? "" : "\n", f.text, f.advice.empty() ? "" : cat("; ", f.advice));
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
  settle(gathering, "data, tokenizer and weights", to_json(mine).dump(), timeout_s,
         [&](const std::vector<std::string>& all) {
           std::vector<RankFacts> facts;
           std::vector<int> others;
           for (const std::string& text : all) {
             facts.push_back(rank_facts(parse_json(text, "facts of a rank")));
             others.push_back(facts.back().rank);
           }
           Findings out = compare_ranks(facts, {});
           if (!probe) return out;
           for (Finding& f : check_one_folder(*probe, others)) out.push_back(std::move(f));
           const Needs needs = estimate_needs(config, parts, device, ranks.topology);
           out.push_back(check_disk(dir, free_on_disk(dir), held_by_checkpoints(dir), needs));
           return out;
         });
  if (ranks.size() == 1) return;
  Findings own = check_reductions(ranks, device);
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
           return out;
         });
}

}  // namespace mgm
