#include "train/hooks/metrics_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/json.h"

namespace mgm {

void check_metrics_length(const fs::path& path, int64_t offset) {
  const int64_t size = fs::exists(path) ? static_cast<int64_t>(fs::file_size(path)) : 0;
  if (size < offset) {
    throw CheckpointError(path.string(), ": has ", size, " bytes, the checkpoint was written at ",
                          offset,
                          ": the file was cut since. Restore it, or start in a new run.dir.");
  }
}

MetricsFile::MetricsFile(const fs::path& path, int64_t offset) : path_(path), offset_(offset) {
  check_metrics_length(path, offset);
  file_ = std::fopen(path.c_str(), "ab");
  if (!file_ || ::ftruncate(::fileno(file_), offset) != 0) {
    throw InternalError(path.string(), ": cannot open for appending: ", std::strerror(errno));
  }
  std::setvbuf(file_, nullptr, _IONBF, 0);  // who follows the file sees whole lines, at once
}

MetricsFile::~MetricsFile() {
  if (file_) std::fclose(file_);
}

void MetricsFile::on_step(const StepReport& r) {
  OrderedJson line = {{"step", r.step},
                      {"loss", r.loss},
                      {"lr", r.lr},
                      {"grad_norm", r.grad_norm},
                      {"num_targets", r.num_targets},
                      {"tokens", r.tokens},
                      {"images", r.images},
                      {"samples", r.samples},
                      {"text_only", r.text_only},
                      {"holes", r.holes}};
  // Numbers that are not finite are null in JSON: the loss of a step without targets, too.
  if (!r.updated) line["updated"] = false;
  const std::string text = line.dump() + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size()) {
    const int reason = errno;
    const bool whole = ::ftruncate(::fileno(file_), offset_) == 0;  // what fitted may be there
    throw InternalError(path_.string(), ": cannot write: ", std::strerror(reason),
                        whole ? "" : "; its last line is cut");
  }
  offset_ += static_cast<int64_t>(text.size());
}

void MetricsFile::sync() {
  if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0) {
    throw InternalError(path_.string(), ": cannot write to disk: ", std::strerror(errno));
  }
}

void MetricsFile::on_checkpoint(int64_t) { sync(); }
void MetricsFile::on_end() { sync(); }

}  // namespace mgm
