#include "train/doctor/doctor.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "train/doctor/gathering.h"
#include "train/doctor/host_checks.h"
#include "train/doctor/identity.h"
#include "train/doctor/input_checks.h"
#include "train/doctor/link_checks.h"
#include "train/rank_setup.h"

namespace mgm {
namespace {

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Folders that had to be made for the checks; they go again if they are empty.
class MadeFolders {
 public:
  explicit MadeFolders(const fs::path& dir) {
    std::error_code code;
    for (fs::path at = fs::absolute(dir).lexically_normal();
         !fs::exists(at, code) && at.has_relative_path(); at = at.parent_path()) {
      made_.push_back(at);
    }
    fs::create_directories(dir, code);
  }
  ~MadeFolders() {
    std::error_code ignored;
    for (const fs::path& dir : made_) fs::remove(dir, ignored);  // the deepest first
  }
  MadeFolders(const MadeFolders&) = delete;
  MadeFolders& operator=(const MadeFolders&) = delete;

 private:
  std::vector<fs::path> made_;
};

// One stage on one rank.
class Examination {
 public:
  Examination(const ResolvedConfig* resolved, const std::string& unreadable, const Meeting& meeting,
              const DoctorOptions& options, int stage)
      : resolved_(resolved),
        unreadable_(unreadable),
        meeting_{meeting.env,
                 meeting.store ? meeting.store->below(cat("doctor/", stage)) : nullptr},
        options_(options),
        gathering_(meeting_.store, meeting.env.rank, meeting.env.world),
        host_(read_host_facts()) {}

  struct Outcome {
    ExitCode code = ExitCode::kOk;
    std::string report;  // of the first rank
  };
  Outcome run();

 private:
  template <class Act>
  void guarded(const std::string& check, const Act& act) {
    try {
      act();
    } catch (const std::exception& e) {
      add({failed(check, e)});
    }
  }
  void add(Findings found) { findings_.insert(findings_.end(), found.begin(), found.end()); }

  void open_device();
  bool meet_others();
  double patience_s() const;
  void take_as_silent(const std::vector<std::optional<std::string>>& answers,
                      const std::string& missing);
  std::string told_by_first(const std::string& key, const std::string& text, double timeout_s);
  void check_inputs();
  void check_machine();
  Json input_facts() const;
  bool compare_inputs();
  void compare_clock(double sent, double wait_s);
  void try_links();
  Outcome conclude();

  const ResolvedConfig* const resolved_;  // null: cannot be read
  const std::string unreadable_;
  Meeting meeting_;
  const DoctorOptions& options_;
  Gathering gathering_;
  const HostFacts host_;

  Findings findings_;
  std::optional<DeviceSetup> device_;
  GpuFacts gpu_;
  std::optional<ModelParts> parts_;
  bool fits_ = false;  // the world, so that there is a topology
  std::string data_hash_, tokenizer_hash_, weights_hash_;
  std::vector<int> present_;          // first rank
  std::map<int, std::string> hosts_;  // first rank: of those that came
  std::string first_host_;
  std::optional<MadeFolders> folders_;
  std::optional<SharedFolderProbe> probe_;
};

void Examination::open_device() {
  if (!resolved_) {
    add({failed("config", ExitCode::kConfig, unreadable_, "")});
    return;
  }
  guarded("gpu", [&] {
    const DeviceSetup device = setup_device(resolved_->config, meeting_.env);
    gpu_ = read_gpu_facts(device.device.is_cuda() ? device.device.index() : -1);
    device_ = device;
  });
}

// How long a rank may take over its files behind the others: as long as at the start of a run, or
// as the user says. One that hangs gives no other sign.
double Examination::patience_s() const {
  return std::max(options_.wait_s, resolved_ ? resolved_->config.dist.timeout_s.start : 0);
}

// At the first rank: those that came and have not answered are named, and not waited for again.
void Examination::take_as_silent(const std::vector<std::optional<std::string>>& answers,
                                 const std::string& missing) {
  std::vector<int> here;
  std::map<std::string, std::vector<int>> silent;  // by host
  for (const int r : present_) {
    (answers[static_cast<size_t>(r)] ? here : silent[hosts_[r]]).push_back(r);
  }
  for (const auto& [host, ranks] : silent) {
    add({failed("ranks", ExitCode::kDist,
                cat(name_ranks(ranks), " on ", host, " came and then went silent: ", missing),
                "look at the log of the rank and at the kernel's on that host: a file system that "
                "does not answer, a full memory? If it is slow, give it a longer --wait")});
  }
  present_ = std::move(here);
}

// The first rank's word; it waits for others itself.
std::string Examination::told_by_first(const std::string& key, const std::string& text,
                                       double timeout_s) {
  try {
    return gathering_.share(key, text, timeout_s);
  } catch (const DistError& e) {
    throw DistError("rank 0 on ", first_host_, " came and then went silent: ", e.what());
  }
}

// Whether all have come and could join groups.
bool Examination::meet_others() {
  const LaunchEnv& env = meeting_.env;
  const Json hello = {{"config", resolved_ ? config_lines(resolved_->config) : std::string()},
                      {"facts", to_json(resolved_ ? place_facts(resolved_->config, env, host_, gpu_)
                                                  : rank_place(env, host_))}};
  const auto all = gathering_.gather("hello", hello.dump(), options_.wait_s);
  Json told = {{"nonce", SharedFolderProbe::make_nonce()}, {"host", host_.name}};
  if (gathering_.is_first()) {
    std::vector<RankFacts> facts;
    std::map<int, std::string> configs;
    std::vector<int> missing;
    for (int r = 0; r < env.world; ++r) {
      const std::optional<std::string>& text = all[static_cast<size_t>(r)];
      if (!text) {
        missing.push_back(r);
        continue;
      }
      present_.push_back(r);
      const Json json = parse_json(*text, "facts of a rank");
      facts.push_back(rank_facts(json.at("facts")));
      hosts_[r] = facts.back().host;
      configs[r] = json.at("config").get<std::string>();
    }
    if (!missing.empty()) {
      add({failed("ranks", ExitCode::kDist,
                  cat(name_ranks(missing), " of ", env.world, " did not come within ",
                      options_.wait_s, " s"),
                  "look at the launcher's log of that host: was the program started there, with "
                  "RANK, WORLD_SIZE and MASTER_ADDR of this job?")});
    }
    Findings found = compare_ranks(facts, [&](const std::string& name, int usual, int other) {
      return name == "the config" ? config_difference(configs[usual], configs[other]) : "";
    });
    for (Finding& f : compare_places(facts)) found.push_back(std::move(f));
    if (env.world > 1) add(found);
    told["connect"] = missing.empty() && outcome_of({{0, found}}) == ExitCode::kOk;
  }
  // Others have come: the first rank has waited for them.
  told = parse_json(gathering_.share("met", told.dump(), 2 * options_.wait_s), "words of rank 0");
  first_host_ = told.at("host").get<std::string>();
  if (resolved_ && !resolved_->config.run.dir.empty()) {
    const std::string& dir = resolved_->config.run.dir;
    folders_.emplace(dir);
    probe_.emplace(dir, told.at("nonce").get<std::string>(), env.rank);
  }
  return told.at("connect").get<bool>();
}

void Examination::check_inputs() {
  const RunConfig& config = resolved_->config;
  const Findings batch = check_batch(config, meeting_.env);
  add(batch);
  fits_ = outcome_of({{0, batch}}) == ExitCode::kOk;
  guarded("config", [&] { parts_ = describe_model(*resolved_); });
  if (parts_) {
    const Findings weights = check_weights(config, *parts_, options_.deep);
    add(weights);
    if (outcome_of({{0, weights}}) == ExitCode::kOk) {
      guarded("weights", [&] {
        const auto content = options_.deep ? WeightContent::kWhole : WeightContent::kSampled;
        weights_hash_ = weights_hash(config, content);
      });
    }
  }
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<AnnotationIndex> index;
  add(check_tokenizer(config, &tokenizer));
  add(check_annotations(config, &index));
  if (tokenizer) tokenizer_hash_ = tokenizer_hash(*tokenizer);
  if (index) data_hash_ = data_hash(*index);
  // The ranks of a host read the same files: one of them does.
  const bool reads = meeting_.env.local_rank == 0 && options_.samples != 0;
  if (tokenizer && index && index->size() > 0 && reads) {
    add(check_samples(config, *index, *tokenizer, options_.samples));
  }
}

void Examination::check_machine() {
  const RunConfig& config = resolved_->config;
  if (config.run.dir.empty()) {
    add({failed("config", ExitCode::kConfig, "run.dir: is required: the folder that takes the run",
                "")});
  } else {
    add(check_run_folder(*resolved_, gathering_.is_first(), data_hash_, tokenizer_hash_));
  }
  if (!parts_ || !device_ || !fits_) return;
  guarded("host", [&] {
    const Topology topology =
        make_topology(config.dist, meeting_.env.rank, meeting_.env.world, meeting_.env.local_world);
    const Needs needs = estimate_needs(config, *parts_, *device_, topology);
    add(check_gpu(gpu_, needs, config, *device_));
    if (meeting_.env.local_rank == 0) add(check_host(host_, needs, config, meeting_.env));
    const std::string& dir = config.run.dir;
    if (gathering_.is_first() && !dir.empty()) {
      add({check_disk(dir, free_on_disk(dir), held_by_checkpoints(dir), needs)});
    }
  });
}

Json Examination::input_facts() const {
  bool able = device_.has_value();
  for (const Finding& f : findings_) {
    able = able && (f.level != Level::kFail || f.check != "config");
  }
  return {{"facts", to_json(mgm::input_facts(meeting_.env, host_, data_hash_, tokenizer_hash_,
                                             weights_hash_))},
          {"able", able}};
}

// Whether all ranks could join groups, as the first rank sees it.
bool Examination::compare_inputs() {
  bool able = true;
  std::vector<RankFacts> facts;
  const auto all = gathering_.gather("inputs", input_facts().dump(), patience_s());
  if (!gathering_.is_first()) return false;
  const size_t came = present_.size();
  take_as_silent(all, cat("not through with its files within ", patience_s(),
                          " s of rank 0 (the longer of --wait and dist.timeout_s.start)"));
  for (const int r : present_) {
    const Json json = parse_json(*all[static_cast<size_t>(r)], "facts of a rank");
    facts.push_back(rank_facts(json.at("facts")));
    able = able && json.at("able").get<bool>();
  }
  if (gathering_.world() > 1) {
    add(compare_ranks(facts, {}));
  }
  if (probe_ && gathering_.world() > 1) {
    add(check_one_folder(*probe_, present_));
  }
  return able && present_.size() == came;
}

void Examination::compare_clock(double sent, double wait_s) {
  const auto clocks = gathering_.gather("clock", strf("%.6f", wall_clock()), wait_s);
  std::vector<double> read, received(clocks.size(), wall_clock());
  for (size_t r = 0; r < clocks.size(); ++r) {
    read.push_back(clocks[r] ? std::stod(*clocks[r]) : received[r]);
  }
  add(compare_clocks(read, sent, received));
}

void Examination::try_links() {
  RunConfig config = resolved_->config;
  config.dist.timeout_s.start = config.dist.timeout_s.step = config.dist.timeout_s.save =
      options_.wait_s / 2;  // join() doubles it
  double rate = 0;
  guarded("links", [&] {
    Ranks ranks = take_place(config, meeting_, *device_, 0);
    try {
      join(ranks, config, *device_);
      add(check_reductions(ranks, *device_));
      rate = measure_link(ranks, *device_);
      ranks.shutdown();
    } catch (...) {
      ranks.abort();
      throw;
    }
  });
  const auto rates = gathering_.gather("rates", strf("%.6g", rate), 2 * options_.wait_s);
  std::vector<double> values;
  for (const std::optional<std::string>& text : rates)
    values.push_back(text ? std::stod(*text) : 0);
  if (gathering_.is_first() && *std::min_element(values.begin(), values.end()) > 0) {
    add({check_link_rates(values,
                          expected_link(*device_, meeting_.env.nodes, options_.link_gb_per_s))});
  }
}

Examination::Outcome Examination::conclude() {
  const auto all = gathering_.gather("findings", to_json(findings_).dump(), options_.wait_s);
  std::map<int, Findings> by_rank;
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r]) {
      by_rank[static_cast<int>(r)] = findings_from_json(parse_json(*all[r], "findings of a rank"));
    }
  }
  if (gathering_.is_first()) {
    take_as_silent(all, cat("findings did not come within ", options_.wait_s, " s"));
    by_rank[0] = findings_;
  }
  // The first rank may have waited for others at the clocks, the links, their rates and findings.
  const std::string code =
      told_by_first("verdict", cat(static_cast<int>(outcome_of(by_rank))), 6 * options_.wait_s);
  Outcome out{static_cast<ExitCode>(std::stoi(code)), ""};
  if (gathering_.is_first()) out.report = format_findings(by_rank, gathering_.world());
  probe_.reset();
  gathering_.leave(static_cast<int>(present_.size()), /*timeout_s=*/10);
  return out;
}

Examination::Outcome Examination::run() {
  open_device();
  const bool agreed = meet_others();
  if (resolved_) {
    check_inputs();
    check_machine();
  }
  const bool able = compare_inputs();
  const double sent = wall_clock();
  const std::string word = agreed && able ? "yes" : "no";
  // The first rank looks at its files too, and then waits for those of others.
  const bool connect = told_by_first("connect", word, 2 * patience_s()) == "yes";
  if (gathering_.world() > 1) {
    if (connect) compare_clock(sent, options_.wait_s);
    if (probe_) add(check_one_folder(*probe_, {0}));
    if (connect) {
      try_links();
    } else if (gathering_.is_first()) {
      add({warned("links", "not tried, because of the failures above",
                  "correct them and run the doctor again")});
    }
  }
  return conclude();
}

}  // namespace

ExitCode run_doctor(const DoctorInput& input, const Meeting& meeting, const DoctorOptions& options,
                    const std::function<void(const std::string&)>& print) {
  const LaunchEnv& env = meeting.env;
  Gathering all(meeting.store ? meeting.store->below("doctor") : nullptr, env.rank, env.world);
  const size_t mine = std::max<size_t>(1, input.stages.size());
  const size_t stages = std::stoul(all.share("stages", std::to_string(mine), options.wait_s));
  ExitCode code = ExitCode::kOk;
  for (size_t i = 0; i < stages; ++i) {
    const ResolvedConfig* resolved = i < input.stages.size() ? &input.stages[i] : nullptr;
    const std::string unreadable = input.unreadable.empty()
                                       ? cat(input.source, " has ", input.stages.size(),
                                             " stages here, ", stages, " on rank 0")
                                       : input.unreadable;
    const auto outcome =
        Examination(resolved, unreadable, meeting, options, static_cast<int>(i)).run();
    if (env.rank == 0) {
      print(cat(input.source, stages > 1 ? cat(", stage ", i + 1, " of ", stages) : "", ": ",
                env.world, env.world == 1 ? " rank" : " ranks", " (", env.launcher, ")\n",
                outcome.report));
    }
    if (code == ExitCode::kOk) code = outcome.code;
  }
  return code;
}

}  // namespace mgm
