// report.html: one file without outside resources and without scripts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/evaluation.h"

namespace mgm {

// The columns of a metrics.jsonl.
struct RunMetrics {
  std::string name;  // the run folder
  std::vector<double> step, loss, lr, grad_norm;
};
// Throws DataError naming file and line.
RunMetrics read_metrics(const std::string& run_dir);

struct QuestionSet {
  std::string title;
  std::vector<Question> questions;
  Evaluation plain, zero_hr;
  std::optional<Evaluation> permuted;  // nothing where there are not two pictures to exchange
  std::vector<size_t> shown;           // questions drawn with their pictures
};

// Why a set has no column of exchanged pictures, in words; "" if it has one.
std::string why_not_exchanged(const QuestionSet& set);

struct AttentionPicture {
  std::string caption;
  std::string canvas_png, overlay_png;  // encoded pictures
};

struct Report {
  std::vector<RunMetrics> runs;
  std::vector<QuestionSet> sets;
  std::vector<AttentionPicture> attention;
  std::string model_summary;
  std::string note;  // plain text; empty: none
};

std::string report_page(const Report& report);

}  // namespace mgm
