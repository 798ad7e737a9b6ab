// Expressions and statements of a Jinja template, read into functions that a run calls. Follows
// jinja2/parser.py. Throws Failure on what jinja2 would not read, Unsupported on statements that
// are not known here; an unknown filter, test or method is only said when it is reached.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "text/jinja/lexer.h"
#include "text/jinja/run.h"

namespace mgm::jinja {

// What a part of the template does. Shared, for one stands in another and is copied with it. All
// work passes through here and is counted: one for each, and the weight of what it results in.
template <class Result>
class Action {
 public:
  Action() = default;
  template <class F>
    requires(!std::is_same_v<std::decay_t<F>, Action>)
  Action(F function)  // NOLINT: actions are written as lambdas
      : function_(std::make_shared<const std::function<Result(Run&)>>(std::move(function))) {}

  Result operator()(Run& run) const {
    const Deeper deeper(run);
    Result out = (*function_)(run);
    if constexpr (std::is_same_v<Result, Value>) run.charge(out.measure().weight);
    run.charge(1);
    return out;
  }
  explicit operator bool() const { return function_ != nullptr; }

 private:
  std::shared_ptr<const std::function<Result(Run&)>> function_;
};

using Expression = Action<Value>;

enum class Flow { kNext, kBreak, kContinue };
using Statement = Action<Flow>;

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
