#include <algorithm>
#include <cmath>

#include "text/jinja/builtins.h"
#include "text/jinja/parser.h"

namespace mgm::jinja {

const Token& TokenStream::peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

Token TokenStream::next() {
  Token out = peek();
  // A row of operators, some of which are words, is a chain of calls when it runs.
  if (out.kind == Token::Kind::kVariableBegin || out.kind == Token::Kind::kBlockBegin) {
    operators_ = 0;
  } else if (out.kind == Token::Kind::kOperator || out.kind == Token::Kind::kName) {
    if (++operators_ > kMaxOperators) {
      throw Unsupported("more than ", kMaxOperators, " operators and names in a tag");
    }
  }
  if (at_ + 1 < tokens_.size()) ++at_;
  return out;
}

bool TokenStream::is_operator(std::string_view text, size_t ahead) const {
  return peek(ahead).kind == Token::Kind::kOperator && peek(ahead).text == text;
}

bool TokenStream::is_name(std::string_view text, size_t ahead) const {
  return peek(ahead).kind == Token::Kind::kName && peek(ahead).text == text;
}

bool TokenStream::take_operator(std::string_view text) {
  if (!is_operator(text)) return false;
  next();
  return true;
}

bool TokenStream::take_name(std::string_view text) {
  if (!is_name(text)) return false;
  next();
  return true;
}

void TokenStream::expect_operator(std::string_view text) {
  if (!take_operator(text)) fail("expected '", text, "', got '", peek().text, "'");
}

std::string TokenStream::expect_name() {
  if (peek().kind != Token::Kind::kName) fail("expected a name, got '", peek().text, "'");
  return next().text;
}

TokenStream::Nested::Nested(TokenStream& stream) : stream_(stream) {
  if (++stream_.depth_ > kMaxDepth) {
    --stream_.depth_;
    throw Unsupported("expressions or blocks nested deeper than ", kMaxDepth);
  }
}

namespace {

Expression constant(Value value) {
  return [value = std::move(value)](Run&) { return value; };
}

// What takes longer than making a value as large does.
constexpr int64_t kSlow = 2;

Value call(const Value& function, const Arguments& arguments, Run& run) {
  run.charge(kSlow * function.measure().weight);
  const auto* callable = function.get<std::shared_ptr<const Callable>>();
  if (callable) return (*callable)->call(arguments);
  const auto* undefined = function.get<Undefined>();
  throw Failure(undefined ? cat("'", undefined->name, "' is undefined")
                          : cat("a ", type_name(function), " cannot be called"));
}

Value add(const Value& a, const Value& b) {
  const auto *left = a.get<std::string>(), *right = b.get<std::string>();
  if (left && right) return checked(*left + *right);
  if (a.list() && b.list()) {
    List out = *a.list();
    out.insert(out.end(), b.list()->begin(), b.list()->end());
    return Value::list(std::move(out));
  }
  if (!a.is_number() || !b.is_number()) {
    const auto name = [](const Value& v) {
      const auto* undefined = v.get<Undefined>();
      return undefined ? cat("'", undefined->name, "', which is undefined") : type_name(v);
    };
    throw Failure("cannot add ", name(a), " and ", name(b));
  }
  if (a.get<double>() || b.get<double>()) return to_real(a) + to_real(b);
  int64_t out = 0;
  if (__builtin_add_overflow(to_integer(a, "+"), to_integer(b, "+"), &out)) {
    throw Unsupported("integers beyond 64 bits");
  }
  return out;
}

// - * / // % of numbers.
Value arithmetic(const std::string& op, const Value& a, const Value& b) {
  if (a.get<std::string>() || a.list()) {
    throw Unsupported("'", op, "' of a ", type_name(a));
  }
  const bool real = a.get<double>() || b.get<double>() || op == "/";
  if (op != "-" && op != "*" && to_real(b) == 0) throw Failure("division by zero");
  if (real) {
    const double x = to_real(a), y = to_real(b);
    if (op == "-") return x - y;
    if (op == "*") return x * y;
    // Two large integers Python divides more exactly.
    constexpr double kLarge = 0x1p53;
    const bool large = std::abs(x) >= kLarge || std::abs(y) >= kLarge;
    const bool whole = !a.get<double>() && !b.get<double>();
    if (op == "/" && !(whole && large)) return x / y;
    throw Unsupported("'", op, "' of real numbers");
  }
  const int64_t x = to_integer(a, op.c_str()), y = to_integer(b, op.c_str());
  int64_t out = 0;
  bool beyond = false;
  if (op == "-") {
    beyond = __builtin_sub_overflow(x, y, &out);
  } else if (op == "*") {
    beyond = __builtin_mul_overflow(x, y, &out);
  } else if (y == -1) {
    beyond = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &out);
  } else {  // rounds down, and the remainder has the divisor's sign
    const int64_t rest = x % y;
    const bool other_sign = rest != 0 && (rest < 0) != (y < 0);
    out = op == "%" ? (other_sign ? rest + y : rest) : x / y - (other_sign ? 1 : 0);
  }
  if (beyond) throw Unsupported("integers beyond 64 bits");
  return out;
}

Value negative(const Value& value) {
  const auto* real = value.get<double>();
  return real ? Value(-*real) : arithmetic("-", int64_t{0}, value);  // -0.0 has a sign
}

bool compare(const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return equal(a, b);
  if (op == "!=") return !equal(a, b);
  if (op == "in") return contains(b, a);
  if (op == "not in") return !contains(b, a);
  if (op == "<") return less(a, b);
  if (op == ">") return less(b, a);
  return op == "<=" ? !less(b, a) : !less(a, b);
}

}  // namespace

Arguments ExpressionParser::ArgumentList::evaluate(Run& run) const {
  Arguments out;
  for (const Expression& one : positional) out.positional.push_back(one(run));
  for (const auto& [name, value] : named) out.named.emplace_back(name, value(run));
  return out;
}

Expression ExpressionParser::parse() {
  const TokenStream::Nested nested(tokens_);
  Expression value = parse_or();
  while (tokens_.take_name("if")) {
    const Expression condition = parse_or();
    const Expression other =
        tokens_.take_name("else")
            ? parse()
            : constant(Value::undefined("the value of an 'if' without 'else'"));
    value = [value, condition, other](Run& run) {
      return truth(condition(run)) ? value(run) : other(run);
    };
  }
  return value;
}

Expression ExpressionParser::parse_tuple() {
  Expression first = parse();
  if (!tokens_.is_operator(",")) return first;
  std::vector<Expression> items = {first};
  while (tokens_.take_operator(",")) items.push_back(parse());
  return [items](Run& run) {
    ListMaker out;
    for (const Expression& one : items) out.add(one(run));
    return out.done();
  };
}

Expression ExpressionParser::parse_or() {
  Expression left = parse_and();
  while (tokens_.take_name("or")) {
    left = [left, right = parse_and()](Run& run) {
      Value value = left(run);
      return truth(value) ? value : right(run);
    };
  }
  return left;
}

Expression ExpressionParser::parse_and() {
  Expression left = parse_not();
  while (tokens_.take_name("and")) {
    left = [left, right = parse_not()](Run& run) {
      Value value = left(run);
      return truth(value) ? right(run) : value;
    };
  }
  return left;
}

Expression ExpressionParser::parse_not() {
  if (!tokens_.is_name("not")) return parse_compare();
  const TokenStream::Nested nested(tokens_);
  tokens_.next();
  return [value = parse_not()](Run& run) -> Value { return !truth(value(run)); };
}

Expression ExpressionParser::parse_compare() {
  const Expression first = parse_sum();
  std::vector<std::pair<std::string, Expression>> rest;
  for (;;) {
    std::string op;
    for (const char* known : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (op.empty() && tokens_.take_operator(known)) op = known;
    }
    if (op.empty() && tokens_.take_name("in")) op = "in";
    if (op.empty() && tokens_.is_name("not") && tokens_.is_name("in", 1)) {
      tokens_.next();
      tokens_.next();
      op = "not in";
    }
    if (op.empty()) break;
    rest.emplace_back(op, parse_sum());
  }
  if (rest.empty()) return first;
  return [first, rest](Run& run) -> Value {
    Value left = first(run);
    for (const auto& [op, expression] : rest) {  // a < b < c: every pair
      Value right = expression(run);
      run.charge(left.measure().weight + right.measure().weight);
      if (!compare(op, left, right)) return false;
      left = std::move(right);
    }
    return true;
  };
}

Expression ExpressionParser::parse_sum() {
  Expression left = parse_concat();
  for (;;) {
    if (tokens_.take_operator("+")) {
      left = [left, right = parse_concat()](Run& run) {
        const Value value = left(run);
        return add(value, right(run));
      };
    } else if (tokens_.take_operator("-")) {
      left = [left, right = parse_concat()](Run& run) {
        const Value value = left(run);
        return arithmetic("-", value, right(run));
      };
    } else {
      return left;
    }
  }
}

Expression ExpressionParser::parse_concat() {
  Expression left = parse_product();
  while (tokens_.take_operator("~")) {
    left = [left, right = parse_product()](Run& run) -> Value {
      const std::string text = to_text(left(run));
      return checked(text + to_text(right(run)));
    };
  }
  return left;
}

Expression ExpressionParser::parse_product() {
  Expression left = parse_unary(true);
  for (;;) {
    std::string op;
    for (const char* known : {"*", "/", "//", "%"}) {
      if (op.empty() && tokens_.take_operator(known)) op = known;
    }
    if (tokens_.is_operator("**")) throw Unsupported("the operator '**'");
    if (op.empty()) return left;
    left = [left, op, right = parse_unary(true)](Run& run) {
      const Value value = left(run);
      return arithmetic(op, value, right(run));
    };
  }
}

Expression ExpressionParser::parse_unary(bool with_filters) {
  const TokenStream::Nested nested(tokens_);
  Expression value;
  if (tokens_.take_operator("-")) {
    value = [of = parse_unary(false)](Run& run) { return negative(of(run)); };
  } else if (tokens_.take_operator("+")) {
    value = [of = parse_unary(false)](Run& run) { return arithmetic("-", of(run), int64_t{0}); };
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters(std::move(value)) : value;
}

Expression ExpressionParser::parse_primary() {
  const Token token = tokens_.next();
  switch (token.kind) {
    case Token::Kind::kName: {
      const std::string& name = token.text;
      if (name == "true" || name == "True") return constant(true);
      if (name == "false" || name == "False") return constant(false);
      if (name == "none" || name == "None") return constant(None{});
      return [name](Run& run) {
        const Value* found = run.look_up(name);
        return found ? *found : global_function(name);
      };
    }
    case Token::Kind::kString: {
      std::string text = token.text;
      while (tokens_.peek().kind == Token::Kind::kString) text += tokens_.next().text;
      return constant(std::move(text));
    }
    case Token::Kind::kInteger:
      return constant(static_cast<int64_t>(std::stoll(token.text)));
    case Token::Kind::kReal:
      return constant(std::stod(token.text));
    case Token::Kind::kOperator:
      if (token.text == "[") return parse_list("]");
      if (token.text == "{") return parse_dict();
      if (token.text == "(") {
        if (tokens_.take_operator(")")) return constant(Value::list({}));
        Expression value = parse_tuple();
        tokens_.expect_operator(")");
        return value;
      }
      [[fallthrough]];
    default:
      throw Failure("line ", token.line, ": unexpected '", token.text, "'");
  }
}

Expression ExpressionParser::parse_list(std::string_view end) {
  std::vector<Expression> items;
  while (!tokens_.take_operator(end)) {
    if (!items.empty()) {
      tokens_.expect_operator(",");
      if (tokens_.take_operator(end)) break;
    }
    items.push_back(parse());
  }
  return [items](Run& run) {
    ListMaker out;
    for (const Expression& one : items) out.add(one(run));
    return out.done();
  };
}

Expression ExpressionParser::parse_dict() {
  std::vector<std::pair<Expression, Expression>> items;
  while (!tokens_.take_operator("}")) {
    if (!items.empty()) {
      tokens_.expect_operator(",");
      if (tokens_.take_operator("}")) break;
    }
    const Expression key = parse();
    tokens_.expect_operator(":");
    items.emplace_back(key, parse());
  }
  return [items](Run& run) {
    Dict out;
    for (const auto& [key, value] : items) {
      const Value name = key(run);
      if (!name.get<std::string>()) throw Unsupported("a dictionary with a key that is no text");
      run.charge(static_cast<int64_t>(out.size() / 16));
      put(out, *name.get<std::string>(), value(run));
    }
    return Value::dict(std::move(out));
  };
}

Expression ExpressionParser::parse_postfix(Expression value) {
  for (;;) {
    if (tokens_.take_operator(".")) {
      if (tokens_.peek().kind == Token::Kind::kInteger) {
        const int64_t at = std::stoll(tokens_.next().text);
        value = [value, at](Run& run) { return item(value(run), at); };
      } else {
        const std::string name = tokens_.expect_name();
        value = [value, name](Run& run) { return attribute(value(run), name); };
      }
    } else if (tokens_.take_operator("[")) {
      value = parse_subscript(std::move(value));
    } else if (tokens_.take_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

Expression ExpressionParser::parse_subscript(Expression value) {
  Expression parts[3];
  int colons = 0;
  while (!tokens_.take_operator("]")) {
    if (tokens_.take_operator(":")) {
      if (++colons > 2) tokens_.fail("unexpected ':'");
    } else if (parts[colons]) {
      if (tokens_.is_operator(",")) throw Unsupported("an index of several parts");
      tokens_.fail("expected ']', got '", tokens_.peek().text, "'");
    } else {
      parts[colons] = parse();
    }
  }
  if (colons == 0) {
    if (!parts[0]) tokens_.fail("an index is missing");
    return [value, at = parts[0]](Run& run) {
      const Value of = value(run);
      return item(of, at(run));
    };
  }
  for (Expression& part : parts) {
    if (!part) part = constant(None{});
  }
  return [value, begin = parts[0], end = parts[1], step = parts[2]](Run& run) {
    const Value of = value(run);
    run.charge(kSlow * of.measure().weight);
    return slice(of, begin(run), end(run), step(run));
  };
}

ExpressionParser::ArgumentList ExpressionParser::parse_arguments() {
  ArgumentList out;
  bool first = true;
  while (!tokens_.take_operator(")")) {
    if (!first) {
      tokens_.expect_operator(",");
      if (tokens_.take_operator(")")) break;
    }
    first = false;
    if (tokens_.is_operator("*") || tokens_.is_operator("**")) {
      throw Unsupported("arguments from a list or dictionary (* and **)");
    }
    if (tokens_.peek().kind == Token::Kind::kName && tokens_.is_operator("=", 1)) {
      const std::string name = tokens_.next().text;
      tokens_.next();
      out.named.emplace_back(name, parse());
    } else {
      if (!out.named.empty()) tokens_.fail("an argument without a name behind one with a name");
      out.positional.push_back(parse());
    }
  }
  return out;
}

Expression ExpressionParser::parse_call(Expression function) {
  return [function, arguments = parse_arguments()](Run& run) {
    const Value of = function(run);
    return call(of, arguments.evaluate(run), run);
  };
}

Expression ExpressionParser::parse_filters(Expression value) {
  for (;;) {
    if (tokens_.take_operator("|")) {
      value = parse_filter(std::move(value));
    } else if (tokens_.take_name("is")) {
      value = parse_test(std::move(value));
    } else if (tokens_.take_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

Expression ExpressionParser::parse_filter(Expression value) {
  std::string name = tokens_.expect_name();
  while (tokens_.take_operator(".")) name += "." + tokens_.expect_name();
  const ArgumentList arguments = tokens_.take_operator("(") ? parse_arguments() : ArgumentList{};
  return [value, name, arguments](Run& run) {
    const Value of = value(run);
    run.charge(kSlow * of.measure().weight);
    return apply_filter(name, of, arguments.evaluate(run), run);
  };
}

Expression ExpressionParser::parse_test(Expression value) {
  const bool negated = tokens_.take_name("not");
  const std::string name = tokens_.expect_name();
  ArgumentList arguments;
  const Token& next = tokens_.peek();
  const bool word = next.kind == Token::Kind::kName && next.text != "else" && next.text != "or" &&
                    next.text != "and" && next.text != "is" && next.text != "if" &&
                    next.text != "in" && next.text != "not";
  if (tokens_.take_operator("(")) {
    arguments = parse_arguments();
  } else if (word || next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
             next.kind == Token::Kind::kReal || tokens_.is_operator("[") ||
             tokens_.is_operator("{")) {
    arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  return [value, name, arguments, negated](Run& run) -> Value {
    const Value of = value(run);
    return apply_test(name, of, arguments.evaluate(run)) != negated;
  };
}

}  // namespace mgm::jinja
