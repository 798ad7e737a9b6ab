// metrics.jsonl: one line per optimizer step, full precision. No step twice and none missing: a
// checkpoint stores the file's length, and a resumed run truncates to it.
#pragma once

#include <cstdio>

#include "base/fs.h"
#include "train/hooks/hook.h"

namespace mgm {

// Throws CheckpointError if the file has fewer than `offset` bytes.
void check_metrics_length(const fs::path& path, int64_t offset);

class MetricsFile : public Hook {
 public:
  // Opens `path` and cuts it to `offset` bytes; throws as check_metrics_length.
  MetricsFile(const fs::path& path, int64_t offset);
  ~MetricsFile() override;
  void on_step(const StepReport& report) override;
  void on_checkpoint(int64_t step) override;
  void on_end() override;
  int64_t offset() const { return offset_; }

 private:
  void sync();
  fs::path path_;
  std::FILE* file_ = nullptr;
  int64_t offset_ = 0;
};

}  // namespace mgm
