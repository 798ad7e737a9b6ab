// What a template needs while it is rendered: names, the text so far, and limits, since a template
// comes from a file that anyone may have written.
#pragma once

#include <memory>
#include <string>

#include "text/jinja/value.h"

namespace mgm::jinja {

struct Scope {
  Dict names;
  std::shared_ptr<Scope> outer;  // null: the outermost
};
using ScopePtr = std::shared_ptr<Scope>;

inline constexpr int64_t kMaxWork = 8'000'000;
inline constexpr size_t kMaxTemplate = size_t{1} << 20;  // bytes
inline constexpr int kMaxOperators = 5000;               // of one tag
inline constexpr int kMaxNesting = 2000;  // of what is evaluated, macro calls counted

struct Run {
  ScopePtr scope;
  std::string out;
  int64_t work = 0;
  int macros = 0, nesting = 0;

  // Counts work: one for what takes a constant time, and the weight of the values made or gone
  // through. Throws Unsupported beyond the limit, which is soon, and the same on every machine.
  void charge(int64_t units);
  void write(const std::string& text);
  void set(const std::string& name, Value value);  // in the present scope
  const Value* look_up(const std::string& name);   // there and outwards
};

// Counts nesting for as long as the object lives.
class Deeper {
 public:
  explicit Deeper(Run& run);
  ~Deeper() { --run_.nesting; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Run& run_;
};

// A scope inside the present one for as long as the object lives.
class InnerScope {
 public:
  explicit InnerScope(Run& run, const ScopePtr& outer = nullptr);
  ~InnerScope() { run_.scope = saved_; }
  InnerScope(const InnerScope&) = delete;
  InnerScope& operator=(const InnerScope&) = delete;

 private:
  Run& run_;
  ScopePtr saved_;
};

}  // namespace mgm::jinja
