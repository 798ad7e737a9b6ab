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

  void set(const std::string& name, Value value) { put(names, name, std::move(value)); }
  const Value* look_up(const std::string& name) const;  // here and outwards
};
using ScopePtr = std::shared_ptr<Scope>;

inline constexpr int64_t kMaxSteps = 200'000;
inline constexpr size_t kMaxText = size_t{1} << 22;  // bytes of one text
inline constexpr size_t kMaxItems = 100'000;         // of one list
inline constexpr int kMaxOperators = 5000;           // of a template
inline constexpr int kMaxDepth = 100;                // of nested expressions, blocks, macro calls

struct Run {
  ScopePtr scope;
  std::string out;
  int64_t steps = 0;
  int depth = 0;  // of macro calls

  void step();  // throws Unsupported beyond the limit
  void write(const std::string& text);
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

// Throws Unsupported for a text that is too long.
const std::string& checked(const std::string& text);

}  // namespace mgm::jinja
