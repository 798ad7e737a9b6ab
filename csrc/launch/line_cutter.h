// Whole lines out of the bytes that a process writes in pieces. A carriage return rewrites a line,
// as on a terminal: of the texts that follow each other so, one is shown a second (times are in
// seconds of any steady clock) and the last one always.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace mgm {

class LineCutter {
 public:
  using Emit = std::function<void(std::string_view line)>;  // without its line end

  explicit LineCutter(Emit emit) : emit_(std::move(emit)) {}

  void feed(std::string_view bytes, double now_s);
  // Shows a rewritten text that has waited for a second; to be called about as often.
  void tick(double now_s);
  // The process has ended: what it left without a line end.
  void finish();

 private:
  void rewrite(double now_s);
  void show_rewritten(double now_s);

  Emit emit_;
  std::string line_;           // since the last line end or carriage return
  std::string rewritten_;      // what the last carriage return ended; "" when shown or none
  bool after_return_ = false;  // nothing came since the carriage return
  double shown_s_ = -1e9;
};

}  // namespace mgm
