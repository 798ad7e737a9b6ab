#include "text/jinja/run.h"

namespace mgm::jinja {

void Run::charge(int64_t units) {
  work += units;
  if (work > kMaxWork) throw Unsupported("more work than ", kMaxWork, " values");
}

void Run::write(const std::string& text) {
  charge(weight_of(text));
  out += text;
  checked(out);
}

void Run::set(const std::string& name, Value value) {
  charge(static_cast<int64_t>(1 + scope->names.size() / 16));
  put(scope->names, name, std::move(value));
}

const Value* Run::look_up(const std::string& name) {
  for (const Scope* at = scope.get(); at; at = at->outer.get()) {
    charge(static_cast<int64_t>(1 + at->names.size() / 16));
    if (const Value* value = find(at->names, name)) return value;
  }
  return nullptr;
}

Deeper::Deeper(Run& run) : run_(run) {
  if (++run_.nesting > kMaxNesting) {
    --run_.nesting;
    throw Unsupported("expressions nested deeper than ", kMaxNesting, " when they run");
  }
}

InnerScope::InnerScope(Run& run, const ScopePtr& outer) : run_(run), saved_(run.scope) {
  run_.scope = std::make_shared<Scope>();
  run_.scope->outer = outer ? outer : saved_;
}

}  // namespace mgm::jinja
