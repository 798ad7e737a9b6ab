#include "text/jinja/run.h"

namespace mgm::jinja {

const Value* Scope::look_up(const std::string& name) const {
  for (const Scope* scope = this; scope; scope = scope->outer.get()) {
    if (const Value* value = find(scope->names, name)) return value;
  }
  return nullptr;
}

void Run::step() {
  if (++steps > kMaxSteps) throw Unsupported("more than ", kMaxSteps, " steps");
}

void Run::write(const std::string& text) {
  out += text;
  checked(out);
}

InnerScope::InnerScope(Run& run, const ScopePtr& outer) : run_(run), saved_(run.scope) {
  run_.scope = std::make_shared<Scope>();
  run_.scope->outer = outer ? outer : saved_;
}

const std::string& checked(const std::string& text) {
  if (text.size() > kMaxText) throw Unsupported("a text of more than ", kMaxText, " bytes");
  return text;
}

}  // namespace mgm::jinja
