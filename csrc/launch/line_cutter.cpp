#include "launch/line_cutter.h"

namespace mgm {
namespace {

// A line without an end is shown in pieces of this size, so that it cannot take all memory.
constexpr size_t kMaxLine = 1 << 20;
constexpr double kRewriteSeconds = 1;

}  // namespace

void LineCutter::feed(std::string_view bytes, double now_s) {
  while (!bytes.empty()) {
    const size_t end = bytes.find_first_of("\r\n");
    line_ += bytes.substr(0, end);
    if (end != 0) after_return_ = false;
    if (line_.size() > kMaxLine) {
      emit_(line_);
      line_.clear();
    }
    if (end == std::string_view::npos) return;
    if (bytes[end] == '\r') {
      rewrite(now_s);
    } else if (after_return_) {  // "\r\n", also in two pieces
      after_return_ = false;
      if (!rewritten_.empty()) show_rewritten(now_s);
    } else {
      rewritten_.clear();
      emit_(line_);
      line_.clear();
    }
    bytes.remove_prefix(end + 1);
  }
}

void LineCutter::rewrite(double now_s) {
  if (line_.empty()) return;
  rewritten_ = std::move(line_);
  line_.clear();
  after_return_ = true;
  tick(now_s);
}

void LineCutter::tick(double now_s) {
  if (!rewritten_.empty() && now_s - shown_s_ >= kRewriteSeconds) show_rewritten(now_s);
}

void LineCutter::show_rewritten(double now_s) {
  emit_(rewritten_);
  rewritten_.clear();
  shown_s_ = now_s;
}

void LineCutter::finish() {
  if (!line_.empty()) {
    emit_(line_);
  } else if (!rewritten_.empty()) {
    emit_(rewritten_);
  }
  line_.clear();
  rewritten_.clear();
}

}  // namespace mgm
