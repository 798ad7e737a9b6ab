#include "text/jinja/builtins.h"
#include "text/jinja/parser.h"

namespace mgm::jinja {

Flow run_all(const std::vector<Statement>& statements, Run& run) {
  for (const Statement& statement : statements) {
    const Flow flow = statement(run);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

namespace {

using Body = std::vector<Statement>;

// Runs a body and gives back what it wrote instead of writing it.
std::string captured(const Body& body, Run& run) {
  std::string before = std::move(run.out);
  run.out.clear();
  run_all(body, run);
  std::string text = std::move(run.out);
  run.out = std::move(before);
  return text;
}

class TemplateParser {
 public:
  explicit TemplateParser(std::vector<Token> tokens)
      : tokens_(std::move(tokens)), expressions_(tokens_) {}

  Body parse() {
    Body out = parse_until({});
    if (tokens_.peek().kind != Token::Kind::kEnd) {
      tokens_.fail("unexpected {% ", tokens_.peek(1).text, " %}");
    }
    return out;
  }

 private:
  // Up to a block that begins with one of `ends`, which is left.
  Body parse_until(std::initializer_list<std::string_view> ends) {
    const TokenStream::Nested nested(tokens_);
    Body out;
    for (;;) {
      const Token& token = tokens_.peek();
      if (token.kind == Token::Kind::kEnd) {
        if (ends.size() > 0) tokens_.fail("{% ", *ends.begin(), " %} is missing");
        return out;
      }
      if (token.kind == Token::Kind::kText) {
        out.push_back([text = tokens_.next().text](Run& run) {
          run.write(text);
          return Flow::kNext;
        });
      } else if (token.kind == Token::Kind::kVariableBegin) {
        tokens_.next();
        out.push_back([value = expressions_.parse_tuple()](Run& run) {
          run.write(to_text(value(run)));
          return Flow::kNext;
        });
        expect(Token::Kind::kVariableEnd);
      } else {
        for (const std::string_view end : ends) {
          if (tokens_.is_name(end, 1)) return out;
        }
        tokens_.next();
        out.push_back(parse_block());
      }
    }
  }

  void expect(Token::Kind kind) {
    if (tokens_.peek().kind != kind) tokens_.fail("unexpected '", tokens_.peek().text, "'");
    tokens_.next();
  }
  void end_block() { expect(Token::Kind::kBlockEnd); }
  // {% name %}
  void take_end(std::string_view name) {
    expect(Token::Kind::kBlockBegin);
    if (!tokens_.take_name(name)) {
      tokens_.fail("expected {% ", name, " %}, got '", tokens_.peek().text, "'");
    }
    end_block();
  }

  Statement parse_block() {
    const std::string name = tokens_.expect_name();
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "generation") return parse_generation();
    if (name == "filter") return parse_filter_block();
    if (name == "break" || name == "continue") {
      end_block();
      const Flow flow = name == "break" ? Flow::kBreak : Flow::kContinue;
      return [flow](Run&) { return flow; };
    }
    for (const char* known : {"include", "import", "from", "extends", "block", "call", "with",
                              "autoescape", "do", "trans"}) {
      if (name == known) throw Unsupported("{% ", name, " %}");
    }
    tokens_.fail("unknown block {% ", name, " %}");
  }

  Statement parse_if() {
    std::vector<std::pair<Expression, Body>> branches;
    const Expression first = expressions_.parse();
    end_block();
    branches.emplace_back(first, parse_until({"endif", "elif", "else"}));
    Body otherwise;
    while (!tokens_.is_name("endif", 1)) {
      tokens_.next();
      if (tokens_.take_name("else")) {
        end_block();
        otherwise = parse_until({"endif"});
        break;
      }
      tokens_.next();
      const Expression condition = expressions_.parse();
      end_block();
      branches.emplace_back(condition, parse_until({"endif", "elif", "else"}));
    }
    take_end("endif");
    return [branches, otherwise](Run& run) {
      for (const auto& [condition, body] : branches) {
        if (truth(condition(run))) return run_all(body, run);
      }
      return run_all(otherwise, run);
    };
  }

  std::vector<std::string> parse_targets() {
    const bool bracket = tokens_.take_operator("(");
    std::vector<std::string> names = {tokens_.expect_name()};
    while (tokens_.take_operator(",")) names.push_back(tokens_.expect_name());
    if (bracket) tokens_.expect_operator(")");
    return names;
  }

  static void assign(const std::vector<std::string>& names, const Value& value, Run& run) {
    if (names.size() == 1) return run.set(names[0], value);
    const List items = elements(value);
    if (items.size() != names.size()) {
      throw Failure(items.size(), " values for ", names.size(), " names");
    }
    for (size_t i = 0; i < names.size(); ++i) run.set(names[i], items[i]);
  }

  // `loop`, as the body sees it in round i of `items`.
  static Value loop_object(const List& items, size_t i, int64_t depth) {
    const auto at = static_cast<int64_t>(i), n = static_cast<int64_t>(items.size());
    const auto cycle = [at](const Arguments& arguments) -> Value {
      const auto count = static_cast<int64_t>(arguments.positional.size());
      if (count == 0) throw Failure("loop.cycle() of nothing");
      return arguments.positional[static_cast<size_t>(at % count)];
    };
    const auto item = [&](bool is, size_t place, const char* name) {
      return is ? items[place] : Value::undefined(name);
    };
    Dict out;
    out.reserve(12);
    out.emplace_back("index", at + 1);
    out.emplace_back("index0", at);
    out.emplace_back("revindex", n - at);
    out.emplace_back("revindex0", n - at - 1);
    out.emplace_back("first", at == 0);
    out.emplace_back("last", at + 1 == n);
    out.emplace_back("length", n);
    out.emplace_back("depth", depth);
    out.emplace_back("depth0", depth - 1);
    out.emplace_back("previtem", item(i > 0, i - 1, "loop.previtem"));
    out.emplace_back("nextitem", item(i + 1 < items.size(), i + 1, "loop.nextitem"));
    out.emplace_back("cycle", std::make_shared<const Callable>(Callable{"cycle", cycle, {}}));
    return Value::dict(std::move(out));
  }

  struct For {
    std::vector<std::string> names;
    Expression list, condition;  // condition: may be empty
    Body body, otherwise;
    int64_t depth;

    Flow operator()(Run& run) const {
      List items = elements(list(run));
      if (condition) {
        List kept;
        for (const Value& one : items) {
          const InnerScope scope(run);
          run.charge(1);
          assign(names, one, run);
          if (truth(condition(run))) kept.push_back(one);
        }
        items = std::move(kept);
      }
      for (size_t i = 0; i < items.size(); ++i) {
        const InnerScope scope(run);
        const Value loop = loop_object(items, i, depth);
        run.charge(3 * loop.measure().weight);  // it takes longer than most
        run.set("loop", loop);
        assign(names, items[i], run);
        if (run_all(body, run) == Flow::kBreak) return Flow::kNext;
      }
      if (!items.empty()) return Flow::kNext;
      const InnerScope scope(run);
      return run_all(otherwise, run);
    }
  };

  Statement parse_for() {
    For loop;
    loop.names = parse_targets();
    if (!tokens_.take_name("in")) tokens_.fail("expected 'in', got '", tokens_.peek().text, "'");
    loop.list = expressions_.parse_or();
    if (tokens_.take_name("if")) loop.condition = expressions_.parse();
    if (tokens_.is_name("recursive")) throw Unsupported("{% for ... recursive %}");
    end_block();
    loop.depth = ++loops_;
    loop.body = parse_until({"endfor", "else"});
    --loops_;
    if (tokens_.is_name("else", 1)) {
      tokens_.next();
      tokens_.next();
      end_block();
      loop.otherwise = parse_until({"endfor"});
    }
    take_end("endfor");
    return loop;
  }

  Statement parse_set() {
    if (tokens_.is_operator(".", 1)) {  // of a namespace
      const std::string space = tokens_.expect_name();
      tokens_.next();
      const std::string name = tokens_.expect_name();
      tokens_.expect_operator("=");
      const Expression value = expressions_.parse_tuple();
      end_block();
      return [=](Run& run) {
        const Value* found = run.look_up(space);
        const auto* target = found ? found->get<Namespace>() : nullptr;
        if (!target) throw Failure("'", space, "' is no namespace");
        const auto values = target->values;
        const Value given = value(run);
        run.charge(static_cast<int64_t>(values->size() / 16));
        put(*values, name, not_a_namespace(given));
        return Flow::kNext;
      };
    }
    const std::vector<std::string> names = parse_targets();
    if (tokens_.take_operator("=")) {
      const Expression value = expressions_.parse_tuple();
      end_block();
      return [=](Run& run) {
        assign(names, value(run), run);
        return Flow::kNext;
      };
    }
    if (names.size() > 1) tokens_.fail("expected '='");
    const auto text = std::make_shared<Value>();
    const Expression filtered = expressions_.parse_filters([text](Run&) { return *text; });
    end_block();
    const Body body = parse_until({"endset"});
    take_end("endset");
    return [=](Run& run) {
      {
        const InnerScope scope(run);
        *text = captured(body, run);
      }
      run.set(names[0], filtered(run));
      return Flow::kNext;
    };
  }

  struct Parameter {
    std::string name;
    Expression value;  // by default; may be empty
  };

  struct Macro {
    std::string name;
    std::vector<Parameter> parameters;
    Body body;

    Value call(const Arguments& arguments, Run& run, const ScopePtr& home) const {
      if (arguments.positional.size() > parameters.size()) {
        throw Failure("macro '", name, "' takes ", parameters.size(), " arguments, got ",
                      arguments.positional.size());
      }
      run.charge(static_cast<int64_t>(parameters.size() * (1 + arguments.named.size() / 8)));
      for (const auto& [given, value] : arguments.named) check_name(given);
      if (run.macros >= kMaxDepth) throw Unsupported("macro calls deeper than ", kMaxDepth);
      const InnerScope scope(run, home);
      for (size_t i = 0; i < parameters.size(); ++i) {
        const Value* given = arguments.find(i, parameters[i].name);
        const Expression& other = parameters[i].value;
        run.set(parameters[i].name, given   ? *given
                                    : other ? other(run)
                                            : Value::undefined(parameters[i].name));
      }
      ++run.macros;
      std::string text = captured(body, run);
      --run.macros;
      return text;
    }

    void check_name(const std::string& given) const {
      for (const Parameter& parameter : parameters) {
        if (parameter.name == given) return;
      }
      throw Failure("macro '", name, "' takes no argument '", given, "'");
    }
  };

  Statement parse_macro() {
    auto macro = std::make_shared<Macro>();
    macro->name = tokens_.expect_name();
    tokens_.expect_operator("(");
    while (!tokens_.take_operator(")")) {
      if (!macro->parameters.empty()) tokens_.expect_operator(",");
      Parameter parameter{tokens_.expect_name(), {}};
      if (tokens_.take_operator("=")) parameter.value = expressions_.parse();
      macro->parameters.push_back(std::move(parameter));
    }
    end_block();
    macro->body = parse_until({"endmacro"});
    take_end("endmacro");
    return [macro](Run& run) {
      // The scope that holds the macro must not be held by it in turn.
      const std::weak_ptr<Scope> home = run.scope;
      const auto call = [macro, home, &run](const Arguments& arguments) {
        const ScopePtr scope = home.lock();
        if (!scope) throw Unsupported("a macro called outside the block it stands in");
        return macro->call(arguments, run, scope);
      };
      run.set(macro->name, std::make_shared<const Callable>(Callable{macro->name, call, {}}));
      return Flow::kNext;
    };
  }

  // transformers' mark of what the assistant says; a call of its body.
  Statement parse_generation() {
    end_block();
    const Body body = parse_until({"endgeneration"});
    take_end("endgeneration");
    return [body](Run& run) {
      const InnerScope scope(run);
      return run_all(body, run);
    };
  }

  Statement parse_filter_block() {
    const auto text = std::make_shared<Value>();
    // The first filter stands without its bar.
    const std::string name = tokens_.expect_name();
    if (tokens_.is_operator("(")) throw Unsupported("{% filter ", name, "(...) %}");
    const Expression filtered = expressions_.parse_filters(
        [text, name](Run& run) { return apply_filter(name, *text, {}, run); });
    end_block();
    const Body body = parse_until({"endfilter"});
    take_end("endfilter");
    return [=](Run& run) {
      {
        const InnerScope scope(run);
        *text = captured(body, run);
      }
      run.write(to_text(filtered(run)));
      return Flow::kNext;
    };
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int64_t loops_ = 0;
};

}  // namespace

std::vector<Statement> parse_template(std::vector<Token> tokens) {
  return TemplateParser(std::move(tokens)).parse();
}

}  // namespace mgm::jinja
