#include "data/check.h"

#include <algorithm>
#include <optional>

#include "base/hash.h"
#include "base/strings.h"
#include "base/timer.h"
#include "base/worker_pool.h"

namespace mgm {
namespace {

constexpr int64_t kAhead = 64;      // samples built beyond the one being counted
constexpr double kProgressS = 0.1;  // seconds between calls of progress
constexpr int64_t kHistogramBins = 10;
constexpr int64_t kHistogramWidth = 40;  // characters of the longest bar

// What is left of a sample once it is counted; the pictures go at once.
struct Counted {
  std::optional<Problem> problem;
  int64_t tokens = 0, visual = 0, images = 0, targets = 0, collapsed = 0, rewritten = 0;
  int64_t straddling = 0;
};

Counted count(const SampleBuilder& builder, int64_t index) {
  SampleResult result = builder.build(index);
  Counted out;
  if (auto* problem = std::get_if<Problem>(&result)) {
    out.problem = std::move(*problem);
    return out;
  }
  const Sample& sample = std::get<Sample>(result);
  out.tokens = static_cast<int64_t>(sample.ids.size());
  out.images = static_cast<int64_t>(sample.pictures.size());
  out.visual = out.images * builder.geometry().tokens();
  out.targets = sample.targets;
  out.collapsed = sample.collapsed_markers;
  out.rewritten = sample.rewritten_paths;
  out.straddling = sample.straddling_tokens;
  return out;
}

int64_t quantile(const std::vector<int64_t>& sorted, double q) {
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

// Bins of equal width from the shortest sample to the longest.
std::string histogram(const std::vector<int64_t>& lengths) {
  const int64_t first = lengths.front();
  const int64_t width = (lengths.back() - first) / kHistogramBins + 1;
  std::vector<int64_t> bins(static_cast<size_t>((lengths.back() - first) / width + 1));
  for (const int64_t length : lengths) ++bins[static_cast<size_t>((length - first) / width)];
  const int64_t most = *std::max_element(bins.begin(), bins.end());
  std::string out;
  for (size_t b = 0; b < bins.size(); ++b) {
    const int64_t from = first + static_cast<int64_t>(b) * width;
    out += strf("  %7lld - %-7lld %10s", static_cast<long long>(from),
                static_cast<long long>(from + width - 1), with_commas(bins[b]).c_str());
    const auto bar = static_cast<size_t>((bins[b] * kHistogramWidth + most - 1) / most);
    out += (bar > 0 ? "  " : "") + std::string(bar, '#') + "\n";
  }
  return out;
}

std::string line(const char* name, int64_t value, const std::string& note = "") {
  return strf("%-22s %14s", name, with_commas(value).c_str()) + note + "\n";
}

std::string per_sample(int64_t total, int64_t samples) {
  return samples == 0 ? "" : strf("   %.1f per sample", double(total) / double(samples));
}

}  // namespace

CheckReport check_data(const SampleBuilder& builder, int workers, const CheckProgress& progress,
                       int64_t limit) {
  CheckReport report;
  report.records = builder.annotations().size();
  if (limit >= 0) report.records = std::min(report.records, limit);
  OrderedWorkers<Counted> pool(workers, kAhead, 0, report.records,
                               [&](int64_t i) { return count(builder, i); });
  Timer since;
  for (int64_t done = 1; auto counted = pool.next(); ++done) {
    if (counted->problem) {
      ++report.by_kind[static_cast<size_t>(counted->problem->kind)];
      report.problems.push_back(std::move(*counted->problem));
    } else {
      ++(counted->images > 0 ? report.with_images : report.text_only);
      report.images += counted->images;
      report.text_tokens += counted->tokens - counted->visual;
      report.visual_tokens += counted->visual;
      report.targets += counted->targets;
      report.collapsed_markers += counted->collapsed;
      report.rewritten_paths += counted->rewritten;
      report.straddling_tokens += counted->straddling;
      report.straddled += counted->straddling > 0 ? 1 : 0;
      report.lengths.push_back(counted->tokens);
    }
    if (progress && (since.seconds() > kProgressS || done == report.records)) {
      progress(done, report.records, static_cast<int64_t>(report.problems.size()));
      since.reset();
    }
  }
  std::sort(report.lengths.begin(), report.lengths.end());
  return report;
}

std::string format_check(const CheckReport& report, const SampleBuilder& builder,
                         const RunConfig& config) {
  const AnnotationIndex& index = builder.annotations();
  std::string out;
  for (const Problem& problem : report.problems) out += describe(problem) + "\n";
  if (!report.problems.empty()) out += "\n";
  for (size_t s = 0; s < config.data.sources.size(); ++s) {
    out += cat(config.data.sources[s].annotations, "  xxh3 ", hex64(index.file_hashes()[s]), "\n");
  }
  out += line("records", report.records);
  if (config.data.expected_samples > 0 && config.data.expected_samples != report.records) {
    out += cat("  data.expected_samples says ", with_commas(config.data.expected_samples), "\n");
  }
  out += line("  with pictures", report.with_images);
  out += line("  text only", report.text_only);
  out += line("pictures", report.images);
  out += line("text tokens", report.text_tokens, per_sample(report.text_tokens, report.good()));
  out += line("visual tokens", report.visual_tokens,
              cat("   ", builder.geometry().tokens(), " per picture"));
  out += line("supervised tokens", report.targets, per_sample(report.targets, report.good()));
  if (report.rewritten_paths > 0) out += line("rewritten paths", report.rewritten_paths);
  if (report.collapsed_markers > 0) out += line("collapsed markers", report.collapsed_markers);
  if (report.straddling_tokens > 0) {
    out += line(
        "straddling tokens", report.straddling_tokens,
        cat("   in ", with_commas(report.straddled), report.straddled == 1 ? " sample" : " samples",
            ": the end of a prompt and the beginning of its answer in one; not supervised"));
  }
  if (!report.lengths.empty()) {
    out += cat("length in tokens       median ", quantile(report.lengths, 0.5), ", 90 % ",
               quantile(report.lengths, 0.9), ", 99 % ", quantile(report.lengths, 0.99),
               ", longest ", report.lengths.back(), " (text.max_length ", config.text.max_length,
               ")\n", histogram(report.lengths));
  }
  out += line("defects", static_cast<int64_t>(report.problems.size()));
  for (int k = 0; k < kNumProblemKinds; ++k) {
    const int64_t n = report.by_kind[static_cast<size_t>(k)];
    if (n > 0) out += line(cat("  ", kind_name(static_cast<ProblemKind>(k))).c_str(), n);
  }
  return out;
}

OrderedJson check_to_json(const CheckReport& report, const SampleBuilder& builder) {
  OrderedJson out;
  out["records"] = report.records;
  out["with_images"] = report.with_images;
  out["text_only"] = report.text_only;
  out["images"] = report.images;
  out["text_tokens"] = report.text_tokens;
  out["visual_tokens"] = report.visual_tokens;
  out["supervised_tokens"] = report.targets;
  out["rewritten_paths"] = report.rewritten_paths;
  out["collapsed_markers"] = report.collapsed_markers;
  out["straddling_tokens"] = report.straddling_tokens;
  out["straddled_samples"] = report.straddled;
  if (!report.lengths.empty()) {
    out["length"] = {{"median", quantile(report.lengths, 0.5)},
                     {"p90", quantile(report.lengths, 0.9)},
                     {"p99", quantile(report.lengths, 0.99)},
                     {"max", report.lengths.back()}};
  }
  for (const uint64_t hash : builder.annotations().file_hashes()) {
    out["xxh3"].push_back(hex64(hash));
  }
  out["defects"] = OrderedJson::array();
  for (const Problem& problem : report.problems) {
    out["defects"].push_back({{"kind", kind_name(problem.kind)},
                              {"index", problem.index},
                              {"where", problem.where},
                              {"id", problem.id},
                              {"message", problem.message}});
  }
  return out;
}

}  // namespace mgm
