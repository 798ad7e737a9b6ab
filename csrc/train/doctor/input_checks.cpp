#include "train/doctor/input_checks.h"

#include <algorithm>

#include "assemble/initial_weights.h"
#include "checkpoint/mm_projector_file.h"
#include "data/check.h"
#include "text/chat_template.h"
#include "train/step_agreement.h"

namespace mgm {
namespace {

// What `act` finds, or the error it ends with as a finding.
template <class Act>
void guarded(const std::string& check, Findings& out, const Act& act) {
  try {
    act();
  } catch (const std::exception& e) {
    out.push_back(failed(check, e));
  }
}

std::string count_of(int64_t n, const char* what) {
  return cat(with_commas(n), " ", what, n == 1 ? "" : "s");
}

// Every path of model.* that is set and is not there.
void check_paths(const ModelConfig& model, Findings& out) {
  std::vector<std::pair<const char*, std::string>> paths = {
      {"model.projector.path", model.projector.path}};
  if (model.init == ModelInit::kPretrained) {
    paths.push_back({"model.path", model.path});
    if (model.path.empty()) {
      paths.push_back({"model.llm.path", model.llm.path});
      paths.push_back({"model.vision_tower.path", model.vision_tower.path});
      if (model.hr_encoder != HrEncoder::kNone) {
        paths.push_back({"model.convnext.path", model.convnext.path});
      }
    }
  }
  for (const auto& [key, path] : paths) {
    if (path.empty() || fs::exists(path)) continue;
    const bool projector = path == model.projector.path;
    out.push_back(failed("weights", ExitCode::kCheckpoint, cat(key, ": ", path, " is not there"),
                         projector ? "stage 1 writes it when it completes; to begin with a random "
                                     "projector: --set 'model.projector.path=\"\"'"
                                   : "correct the path, or copy the weights to this host; relative "
                                     "paths start at the current folder"));
  }
}

void report_problems(const CheckReport& report, bool skip, const std::string& of, Findings& out) {
  for (int k = 0; k < kNumProblemKinds; ++k) {
    const int64_t n = report.by_kind[static_cast<size_t>(k)];
    if (n == 0) continue;
    const auto first =
        std::find_if(report.problems.begin(), report.problems.end(),
                     [&](const Problem& problem) { return static_cast<int>(problem.kind) == k; });
    const std::string text = cat(n, " of ", of, ": ", kind_name(static_cast<ProblemKind>(k)),
                                 "; the first: ", describe(*first));
    const std::string advice = "mgm data check CONFIG lists every one";
    out.push_back(skip ? warned("data", text, advice + "; data.on_error: skip leaves them out")
                       : failed("data", ExitCode::kData, text,
                                advice + "; data.on_error: skip would leave them out"));
  }
}

}  // namespace

Findings check_batch(const RunConfig& config, const LaunchEnv& env) {
  Findings out;
  const TrainConfig& train = config.train;
  const DistConfig& dist = config.dist;
  guarded("config", out, [&] {
    const Topology topology = make_topology(dist, env.rank, env.world, env.local_world);
    const int64_t each = micro_batches_per_rank(train.global_batch, train.micro_batch,
                                                leaf_micro_batches(config), env.world);
    out.push_back(passed("config", cat(describe(topology), "; ", train.global_batch, " samples = ",
                                       env.world, " x ", each, " x ", train.micro_batch)));
  });
  return out;
}

Findings check_weights(const RunConfig& config, const ModelParts& parts, bool deep) {
  Findings out;
  check_paths(config.model, out);
  for (const ConfigProblem& problem : drawn_tower_problems(config, parts)) {
    out.push_back(
        failed("weights", ExitCode::kConfig, cat(problem.key, ": ", problem.message), ""));
  }
  if (!out.empty()) return out;
  guarded("weights", out, [&] {
    const bool pretrained = config.model.init == ModelInit::kPretrained;
    // Of weights that are drawn nothing can be wrong: none are.
    const auto wanted = [&](const Param& param) {
      const bool read = deep && (pretrained || (!config.model.projector.path.empty() &&
                                                in_projector_file(param.spec.name)));
      return ElementRange{0, read ? param.spec.numel() : 0};
    };
    initial_weights(config, parts.params, [](Param&, int64_t, const at::Tensor&) {}, wanted);
    const bool any = pretrained || !config.model.projector.path.empty();
    out.push_back(passed("weights", !any   ? "drawn from train.seed; no file is read"
                                    : deep ? "every name and shape fits, every value is finite"
                                           : "every name and shape fits (headers alone; --deep "
                                             "reads the values)"));
  });
  return out;
}

Findings check_tokenizer(const RunConfig& config, std::unique_ptr<Tokenizer>* tokenizer) {
  Findings out;
  guarded("tokenizer", out, [&] {
    const std::string path = tokenizer_path(config);
    auto loaded = load_tokenizer(path);
    const int64_t tokens = loaded->vocab_size(), rows = config.model.llm.vocab_size;
    if (tokens > rows) {
      out.push_back(failed("tokenizer", ExitCode::kConfig,
                           cat(path, " has ", tokens, " tokens, model.llm.vocab_size is ", rows,
                               ": ids from ", rows, " on have no embedding"),
                           "use the tokenizer of this language model, or set "
                           "model.llm.vocab_size"));
    }
    const ConversationTemplate conversation = load_template(config.text.template_name);
    for (const std::string& token : missing_end_tokens(conversation, *loaded)) {
      out.push_back(failed("tokenizer", ExitCode::kConfig,
                           cat("text.template ", conversation.name, " ends answers with '", token,
                               "', which is no token of ", path),
                           "take the template of this language model: the end of an answer would "
                           "be taught as ordinary text"));
    }
    if (out.empty()) {
      const std::string endless = endless_answers_warning(conversation, *loaded);
      if (!endless.empty()) {
        out.push_back(warned("tokenizer", endless, "name the token under the format's stop"));
      }
      const std::string warning =
          chat_template_warning({path, llm_path(config.model)}, conversation, *loaded);
      if (!warning.empty()) {
        out.push_back(warned("tokenizer", warning,
                             "right if the model is to learn this format; else take another "
                             "text.template, or write the directory's as a row of YAML"));
      }
      out.push_back(passed("tokenizer", cat(path, ": ", tokens, " tokens for ", rows, " rows")));
      *tokenizer = std::move(loaded);
    }
  });
  return out;
}

Findings check_annotations(const RunConfig& config, std::unique_ptr<AnnotationIndex>* index) {
  Findings out;
  const std::vector<DataSource>& sources = config.data.sources;
  if (sources.empty()) {
    return {failed("data", ExitCode::kConfig, "data.sources: no annotation file to train on",
                   "name at least one")};
  }
  try {
    auto made = std::make_unique<AnnotationIndex>(sources);
    const bool skip = config.data.on_error == OnError::kSkip;
    if (made->malformed() > 0) {
      std::string first = "no record";
      try {
        made->record(made->first_malformed());
      } catch (const DataError& e) {
        first = e.what();
      }
      const std::string text =
          cat(count_of(made->malformed(), "malformed record"), "; the first: ", first);
      out.push_back(skip ? warned("data", text, "data.on_error: skip leaves them out")
                         : failed("data", ExitCode::kData, text, "correct or remove them"));
    }
    const int64_t expected = config.data.expected_samples;
    if (made->size() == 0) {
      out.push_back(failed("data", ExitCode::kData, "the annotation files hold no sample",
                           "look at data.sources"));
    } else if (expected > 0 && expected != made->size()) {
      out.push_back(warned("data",
                           cat("data.expected_samples is ", with_commas(expected), ", there are ",
                               count_of(made->size(), "sample")),
                           "a file may be cut, or another version"));
    } else {
      out.push_back(passed("data", cat(count_of(made->size(), "sample"), " in ",
                                       count_of(int64_t(sources.size()), "file"))));
    }
    *index = std::move(made);
  } catch (const std::exception&) {
    for (const DataSource& source : sources) {  // every bad one, not the first alone
      guarded("data", out, [&] { const AnnotationIndex one(std::vector<DataSource>{source}); });
    }
  }
  return out;
}

Findings check_samples(const RunConfig& config, const AnnotationIndex& index,
                       const Tokenizer& tokenizer, int64_t samples) {
  constexpr double kFewTargets = 0.01;  // of the text tokens
  Findings out;
  guarded("data", out, [&] {
    const SampleBuilder builder(config, index, tokenizer);
    const CheckReport report =
        check_data(builder, static_cast<int>(config.data.workers), {}, samples);
    const std::string of = report.records == index.size()
                               ? cat("all ", count_of(report.records, "sample"))
                               : cat("the first ", count_of(report.records, "sample"));
    report_problems(report, config.data.on_error == OnError::kSkip, of, out);
    if (report.good() == 0) return;
    const double share = double(report.targets) / double(std::max<int64_t>(1, report.text_tokens));
    const std::string text =
        strf("%.1f %% of the text tokens of %s are supervised", 100 * share, of.c_str());
    out.push_back(share < kFewTargets
                      ? warned("data", text, "mgm data show CONFIG --index 0 marks them")
                      : passed("data", text));
  });
  return out;
}

}  // namespace mgm
