// Expressions and statements of a Jinja template, read into functions that a run calls. Follows
// jinja2/parser.py. Throws Failure on what jinja2 would not read, Unsupported on statements that
// are not known here; an unknown filter, test or method is only said when it is reached.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "text/jinja/lexer.h"
#include "text/jinja/run.h"

namespace mgm::jinja {

using Expression = std::function<Value(Run&)>;

enum class Flow { kNext, kBreak, kContinue };
using Statement = std::function<Flow(Run&)>;

// The tokens and a place among them.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& peek(size_t ahead = 0) const;
  Token next();
  bool is_operator(std::string_view text, size_t ahead = 0) const;
  bool is_name(std::string_view text, size_t ahead = 0) const;
  bool take_operator(std::string_view text);
  bool take_name(std::string_view text);
  void expect_operator(std::string_view text);
  std::string expect_name();
  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    throw Failure("line ", peek().line, ": ", args...);
  }

  // Counts nesting for as long as the object lives.
  class Nested {
   public:
    explicit Nested(TokenStream& stream);
    ~Nested() { --stream_.depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    TokenStream& stream_;
  };

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, operators_ = 0;
};

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  Expression parse();        // with `a if b else c`
  Expression parse_or();     // without
  Expression parse_tuple();  // a, b, ...; one expression alone is itself
  // Filters behind a value, as {% set x | trim %} and {% filter %} have them.
  Expression parse_filters(Expression value);

 private:
  struct ArgumentList {
    std::vector<Expression> positional;
    std::vector<std::pair<std::string, Expression>> named;
    Arguments evaluate(Run& run) const;
  };

  Expression parse_and();
  Expression parse_not();
  Expression parse_compare();
  Expression parse_sum();
  Expression parse_concat();
  Expression parse_product();
  Expression parse_unary(bool with_filters);
  Expression parse_primary();
  Expression parse_postfix(Expression value);
  Expression parse_filter(Expression value);
  Expression parse_test(Expression value);
  Expression parse_call(Expression function);
  Expression parse_subscript(Expression value);
  Expression parse_list(std::string_view end);
  Expression parse_dict();
  ArgumentList parse_arguments();

  TokenStream& tokens_;
};

// The whole template.
std::vector<Statement> parse_template(std::vector<Token> tokens);

Flow run_all(const std::vector<Statement>& statements, Run& run);

}  // namespace mgm::jinja
