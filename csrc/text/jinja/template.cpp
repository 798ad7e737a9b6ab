#include "text/jinja/template.h"

#include "text/jinja/parser.h"
#include "text/utf8.h"

namespace mgm::jinja {

std::string render(const std::string& source, const OrderedJson& names) {
  if (source.size() > kMaxTemplate) {
    throw Unsupported("a template of more than ", kMaxTemplate, " bytes");
  }
  if (valid_utf8(source) != source) throw Failure("the template holds invalid UTF-8");
  const std::vector<Statement> statements = parse_template(tokenize(source));
  Run run;
  run.scope = std::make_shared<Scope>();
  for (const auto& [name, value] : names.items()) run.set(name, from_json(value));
  run_all(statements, run);
  return run.out;
}

}  // namespace mgm::jinja
