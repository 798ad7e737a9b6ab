// mgm report: what a trained model answers, as text and as one HTML page.
#include <ATen/ATen.h>

#include <iostream>

#include "base/file_access.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/strings.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "image/encode.h"
#include "report/attention_picture.h"
#include "report/page.h"

namespace mgm::cli {
namespace {

struct ReportArgs {
  ModelArgs model;
  std::vector<std::string> runs;
  std::string heldin, heldout, images, out, note;
  int64_t print = 6;
};

constexpr uint64_t kExchangeSeed = 1;
constexpr size_t kAttentionPictures = 6;

// `count` questions spread over the set, of different pictures where possible; 0: all.
std::vector<size_t> spread(size_t total, size_t count) {
  std::vector<size_t> out;
  if (count == 0 || count > total) count = total;
  for (size_t i = 0; i < count; ++i) out.push_back(i * total / count);
  return out;
}

QuestionSet read_set(const std::string& title, const std::string& file, const std::string& images,
                     size_t shown) {
  QuestionSet set;
  set.title = title;
  set.questions = read_questions(file, images);
  set.shown = spread(set.questions.size(), shown);
  return set;
}

void evaluate_set(const LoadedModel& model, QuestionSet& set) {
  set.plain = evaluate(model, set.questions, Spoil::kNothing, kExchangeSeed);
  if (count_pictures(set.questions) > 1)
    set.permuted = evaluate(model, set.questions, Spoil::kPermutedPictures, kExchangeSeed);
  set.zero_hr = evaluate(model, set.questions, Spoil::kZeroHr, kExchangeSeed);
}

AttentionPicture attention_of(const LoadedModel& model, const std::string& path) {
  std::map<std::string, at::Tensor> trace;
  DirectRunner runner;
  ForwardContext ctx{runner};
  ctx.trace = &trace;
  const Picture picture = load_picture(path, model.description);
  encode_pictures(model, {picture}, ctx);
  const at::Tensor weights = trace.at("attention")[0].to(at::kCPU, at::kFloat).contiguous();
  const float* data = weights.const_data_ptr<float>();
  return {fs::path(path).filename().string(), encode_png(picture.canvas),
          encode_png(draw_attention(picture.canvas, {data, data + weights.numel()},
                                    model.model->geometry()))};
}

std::vector<AttentionPicture> draw_all(const LoadedModel& model, const QuestionSet& set) {
  std::vector<AttentionPicture> out;
  if (model.description.model.hr_encoder == HrEncoder::kNone) return out;
  for (const size_t i : spread(set.questions.size(), kAttentionPictures)) {
    for (const std::string& path : set.questions[i].images)
      out.push_back(attention_of(model, path));
  }
  return out;
}

void print_answers(const QuestionSet& set) {
  std::cout << "\n" << set.title << "\n";
  for (const size_t i : set.shown) {
    const Question& q = set.questions[i];
    std::cout << "  " << q.id << ": " << q.text << "\n    expected  " << q.expected
              << "\n    generated " << set.plain.answers[i] << "\n";
  }
}

void print_accuracies(const std::vector<QuestionSet>& sets) {
  std::cout << "\nexact answers            as trained   pictures exchanged   HR map zeroed\n";
  for (const QuestionSet& set : sets) {
    const std::string exchanged =
        set.permuted ? strf("%.1f", 100 * set.permuted->all.share()) : std::string("-");
    std::cout << strf("  %-20s %10.1f %% %18s %% %13.1f %%   of %lld\n", set.title.c_str(),
                      100 * set.plain.all.share(), exchanged.c_str(), 100 * set.zero_hr.all.share(),
                      static_cast<long long>(set.plain.all.total));
  }
  for (const QuestionSet& set : sets) {
    const std::string why = why_not_exchanged(set);
    if (!why.empty()) std::cout << why << "\n";
  }
}

// That the page can be written where it is to be, over nothing that it is made of.
void check_output(const ReportArgs& args, const std::vector<QuestionSet>& sets) {
  FileUse files;
  read_model(files, args.model);
  files.reads(args.heldin);
  if (!args.heldout.empty()) files.reads(args.heldout);
  for (const std::string& run : args.runs) files.reads(fs::path(run) / "metrics.jsonl");
  for (const QuestionSet& set : sets) {
    for (const Question& question : set.questions) {
      for (const std::string& picture : question.images) files.reads(picture);
    }
  }
  files.writes("--out", args.out);
}

void report(const ReportArgs& args) {
  Report out;
  for (const std::string& run : args.runs) out.runs.push_back(read_metrics(run));
  const auto print = static_cast<size_t>(args.print);
  out.sets.push_back(read_set("Held-in pictures", args.heldin, args.images, print));
  if (!args.heldout.empty()) {
    out.sets.push_back(read_set("Held-out pictures", args.heldout, args.images, 0));
  }
  check_output(args, out.sets);
  const LoadedModel model = load_model(args.model.dir, load_options(args.model));
  for (QuestionSet& set : out.sets) evaluate_set(model, set);
  for (const QuestionSet& set : out.sets) print_answers(set);
  print_accuracies(out.sets);
  if (!args.note.empty()) std::cout << "\n" << args.note << "\n";
  out.note = args.note;
  out.attention = draw_all(model, out.sets.front());
  const ImageGeometry& g = model.model->geometry();
  out.model_summary =
      cat(args.model.dir, ": HR ", g.hr_size, " px, ", g.lr_views(), " LR view(s) of ", g.lr_size,
          " px, windows of ", g.window, " x ", g.window, ", ", g.tokens(),
          " visual tokens; language model of width ", model.description.model.llm.hidden_size,
          " with ", model.description.model.llm.num_layers, " blocks.");
  write_file_atomic(args.out, report_page(out));
  log::info(cat("wrote ", args.out));
}

}  // namespace

void add_report(CLI::App& app) {
  auto args = std::make_shared<ReportArgs>();
  CLI::App* command = app.add_subcommand(
      "report", "Ask a model everything it was taught; answers, curves, pictures");
  add_model_options(*command, args->model);
  command->add_option("--run", args->runs, "Run folder whose curves to draw (repeatable)")
      ->allow_extra_args(false);
  command->add_option("--heldin", args->heldin, "LLaVA JSON of questions about trained pictures")
      ->required();
  command->add_option("--heldout", args->heldout, "LLaVA JSON about pictures never trained on");
  command->add_option("--images", args->images, "Folder of the pictures")->required();
  command->add_option("--out", args->out, "HTML file to write")->required();
  command->add_option("--note", args->note, "What readers should know of this run; printed too");
  command->add_option("--print", args->print, "Held-in answers to show")
      ->check(whole_number(1, 1'000'000'000))
      ->capture_default_str();
  command->footer(
      "Every question is asked three times: as trained, with the pictures exchanged among the\n"
      "questions (where there are two or more), and with the HR feature maps zeroed.\n"
      "Example:\n"
      "  mgm report runs/tiny/model --run runs/tiny/stage1 --run runs/tiny/stage2\n"
      "    --heldin data/embedded/eval_heldin.json --heldout data/embedded/heldout.json\n"
      "    --images data/embedded/images --out runs/tiny/report.html");
  command->callback([args] { report(*args); });
}

}  // namespace mgm::cli
