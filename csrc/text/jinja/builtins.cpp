#include "text/jinja/builtins.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <map>

#include "text/jinja/methods.h"
#include "text/jinja/run.h"

namespace mgm::jinja {
namespace {

using Filter = std::function<Value(const Value&, const Arguments&)>;
using Test = std::function<bool(const Value&, const Arguments&)>;

const Value& required(const Arguments& arguments, size_t place, const char* what) {
  const Value* value = arguments.find(place, what);
  if (!value) throw Failure("argument '", what, "' is missing");
  return *value;
}

bool flag(const Arguments& arguments, size_t place, const char* name) {
  const Value* value = arguments.find(place, name);
  return value && truth(*value);
}

// ---- tests --------------------------------------------------------------------------------------

Test comparing(bool (*compare)(const Value&, const Value&)) {
  return [compare](const Value& value, const Arguments& arguments) {
    return compare(value, required(arguments, 0, "other"));
  };
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.get<std::string>() || value.list() ||
         (value.dict() && !value.get<Namespace>());
}

bool same(const Value& a, const Value& b) {
  if (a.data.index() != b.data.index()) return false;
  if (a.list() || a.dict()) throw Unsupported("the test 'sameas' of a ", type_name(a));
  return equal(a, b);
}

int64_t remainder_of(const Value& value, int64_t by) {
  if (by == 0) throw Failure("division by zero");
  return to_integer(value, "the tested value") % by;
}

const std::map<std::string, Test>& tests() {
  using V = const Value&;
  using A = const Arguments&;
  static const auto eq = comparing(equal);
  static const auto ne = comparing([](V a, V b) { return !equal(a, b); });
  static const auto lt = comparing(less);
  static const auto gt = comparing([](V a, V b) { return less(b, a); });
  static const auto le = comparing([](V a, V b) { return !less(b, a); });
  static const auto ge = comparing([](V a, V b) { return !less(a, b); });
  static const auto is_mapping = [](V v) { return v.dict() && !v.get<Namespace>(); };
  static const std::map<std::string, Test> kAll = {
      {"defined", [](V v, A) { return !v.is_undefined(); }},
      {"undefined", [](V v, A) { return v.is_undefined(); }},
      {"none", [](V v, A) { return v.is_none(); }},
      {"boolean", [](V v, A) { return v.get<bool>() != nullptr; }},
      {"true", [](V v, A) { return v.get<bool>() && *v.get<bool>(); }},
      {"false", [](V v, A) { return v.get<bool>() && !*v.get<bool>(); }},
      {"integer", [](V v, A) { return v.get<int64_t>() != nullptr; }},
      {"float", [](V v, A) { return v.get<double>() != nullptr; }},
      {"number", [](V v, A) { return v.is_number(); }},
      {"string", [](V v, A) { return v.get<std::string>() != nullptr; }},
      {"mapping", [](V v, A) { return is_mapping(v); }},
      {"iterable", [](V v, A) { return is_iterable(v); }},
      {"sequence", [](V v, A) { return is_iterable(v); }},
      {"callable", [](V v, A) { return v.get<std::shared_ptr<const Callable>>() != nullptr; }},
      {"odd", [](V v, A) { return remainder_of(v, 2) != 0; }},
      {"even", [](V v, A) { return remainder_of(v, 2) == 0; }},
      {"divisibleby",
       [](V v, A a) { return remainder_of(v, to_integer(required(a, 0, "num"), "num")) == 0; }},
      {"in", [](V v, A a) { return contains(required(a, 0, "seq"), v); }},
      {"sameas", comparing(same)},
      {"eq", eq},
      {"equalto", eq},
      {"ne", ne},
      {"lt", lt},
      {"lessthan", lt},
      {"gt", gt},
      {"greaterthan", gt},
      {"le", le},
      {"ge", ge},
  };
  return kAll;
}

// ---- filters ------------------------------------------------------------------------------------

Value text_filter(const char* method, const Value& value, const Arguments& arguments) {
  return call_method(to_text(value), method, arguments);
}

Filter by_method(const char* method) {
  return [method](const Value& value, const Arguments& a) { return text_filter(method, value, a); };
}

// "a.b" of every element.
Value path(Value value, const std::string& dotted) {
  for (const std::string& name : split(dotted, '.')) value = attribute(value, name);
  return value;
}

std::string text_argument(const Arguments& arguments, size_t place, const char* name) {
  const Value& value = required(arguments, place, name);
  const auto* text = value.get<std::string>();
  if (!text) throw Failure("argument '", name, "' must be text, got ", type_name(value));
  return *text;
}

Arguments behind(const Arguments& arguments, size_t count) {
  Arguments out = arguments;
  const auto first = out.positional.begin();
  out.positional.erase(first,
                       first + static_cast<ptrdiff_t>(std::min(count, out.positional.size())));
  return out;
}

// select, reject: a test of the element; selectattr, rejectattr: of an attribute of it.
Filter selecting(bool by_attribute, bool wanted) {
  return [=](const Value& value, const Arguments& arguments) {
    const size_t place = by_attribute ? 1 : 0;
    const bool tested = arguments.positional.size() > place;
    const std::string test = tested ? text_argument(arguments, place, "test") : "";
    const Arguments rest = behind(arguments, place + 1);
    List out;
    if (!truth(value)) return Value::list({});  // None too
    for (const Value& one : elements(value)) {
      const Value of = by_attribute ? path(one, text_argument(arguments, 0, "attribute")) : one;
      if ((tested ? apply_test(test, of, rest) : truth(of)) == wanted) out.push_back(one);
    }
    return Value::list(std::move(out));
  };
}

Value map_filter(const Value& value, const Arguments& arguments) {
  const Value* name = find(arguments.named, "attribute");
  const Value* other = find(arguments.named, "default");
  List out;
  if (!truth(value)) return Value::list({});
  for (const Value& one : elements(value)) {
    if (name) {
      const Value of = path(one, to_text(*name));
      out.push_back(of.is_undefined() && other ? *other : of);
    } else {
      out.push_back(apply_filter(text_argument(arguments, 0, "filter"), one, behind(arguments, 1)));
    }
  }
  return Value::list(std::move(out));
}

Value join_filter(const Value& value, const Arguments& arguments) {
  const Value* between = arguments.find(0, "d");
  const Value* name = arguments.find(1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& one : elements(value)) {
    if (!first && between) out += to_text(*between);
    out += to_text(name ? path(one, to_text(*name)) : one);
    checked(out);
    first = false;
  }
  return out;
}

Value default_filter(const Value& value, const Arguments& arguments) {
  const bool missing = value.is_undefined() || (flag(arguments, 1, "boolean") && !truth(value));
  if (!missing) return value;
  const Value* other = arguments.find(0, "default_value");
  return other ? *other : Value(std::string());
}

Value int_filter(const Value& value, const Arguments& arguments) {
  if (const auto* number = value.get<double>()) return static_cast<int64_t>(*number);
  if (value.is_number()) return to_integer(value, "int");
  const auto* text = value.get<std::string>();
  const std::string digits(text ? trim(*text) : "");
  const bool number = !digits.empty() && digits.size() < 18 &&
                      digits.find_first_not_of("0123456789", digits[0] == '-') == digits.npos &&
                      digits != "-";
  if (number) return static_cast<int64_t>(std::stoll(digits));
  const Value* other = arguments.find(0, "default");
  return other ? *other : Value(int64_t{0});
}

Value indent_filter(const Value& value, const Arguments& arguments) {
  const Value* width = arguments.find(0, "width");
  std::string blanks;
  if (width && width->get<std::string>()) {
    blanks = *width->get<std::string>();
  } else {
    const int64_t count = width ? to_integer(*width, "width") : 4;
    blanks.assign(static_cast<size_t>(std::clamp<int64_t>(count, 0, 1000)), ' ');
  }
  const bool first = flag(arguments, 1, "first"), blank_lines = flag(arguments, 2, "blank");
  std::string out;
  const std::vector<std::string> lines = split(to_text(value), '\n');
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += "\n";
    if (i == 0 ? first : blank_lines || !lines[i].empty()) out += blanks;
    out += lines[i];
  }
  return checked(out);
}

Value reverse_filter(const Value& value, const Arguments&) {
  List out = elements(value);
  std::reverse(out.begin(), out.end());
  if (!value.get<std::string>()) return Value::list(std::move(out));
  std::string text;
  for (const Value& one : out) text += to_text(one);
  return text;
}

Value tojson_filter(const Value& value, const Arguments& arguments) {
  for (const auto& [name, argument] : arguments.named) {
    if (name != "indent" && !(name == "ensure_ascii" && !truth(argument))) {
      throw Unsupported("the filter 'tojson' with ", name);
    }
  }
  if (arguments.positional.size() > 1) throw Unsupported("the filter 'tojson' with separators");
  const Value* indent = find(arguments.named, "indent");
  if (!indent || indent->is_none()) return to_json(value, -1);
  return to_json(value,
                 static_cast<int>(std::clamp<int64_t>(to_integer(*indent, "indent"), 0, 100)));
}

Value absolute(const Value& value, const Arguments&) {
  if (const auto* number = value.get<double>()) return std::abs(*number);
  return std::abs(to_integer(value, "abs"));
}

const std::map<std::string, Filter>& filters() {
  using V = const Value&;
  using A = const Arguments&;
  static const Filter length_of = [](V v, A) { return length(v); };
  static const Filter as_text = [](V v, A) { return to_text(v); };
  static const std::map<std::string, Filter> kAll = {
      {"trim", by_method("strip")},
      {"upper", by_method("upper")},
      {"lower", by_method("lower")},
      {"capitalize", by_method("capitalize")},
      {"replace", by_method("replace")},
      {"string", as_text},
      {"safe", [](V v, A) { return v; }},
      {"length", length_of},
      {"count", length_of},
      {"first",
       [](V v, A) {
         const List list = elements(v);
         return list.empty() ? Value::undefined("the first of nothing") : list.front();
       }},
      {"last",
       [](V v, A) {
         const List list = elements(v);
         return list.empty() ? Value::undefined("the last of nothing") : list.back();
       }},
      {"list", [](V v, A) { return Value::list(elements(v)); }},
      {"items",
       [](V v, A) { return v.is_undefined() ? Value::list({}) : call_method(v, "items", {}); }},
      {"join", join_filter},
      {"default", default_filter},
      {"d", default_filter},
      {"int", int_filter},
      {"abs", absolute},
      {"indent", indent_filter},
      {"reverse", reverse_filter},
      {"tojson", tojson_filter},
      {"map", map_filter},
      {"select", selecting(false, true)},
      {"reject", selecting(false, false)},
      {"selectattr", selecting(true, true)},
      {"rejectattr", selecting(true, false)},
  };
  return kAll;
}

// ---- functions ----------------------------------------------------------------------------------

Value make_namespace(const Arguments& arguments) {
  if (!arguments.positional.empty()) throw Unsupported("namespace() of a dictionary");
  return Namespace{std::make_shared<Dict>(arguments.named)};
}

Value range(const Arguments& arguments) {
  std::vector<int64_t> numbers;
  for (const Value& one : arguments.positional) numbers.push_back(to_integer(one, "range()"));
  if (numbers.empty() || numbers.size() > 3) throw Failure("range() takes one to three numbers");
  const int64_t begin = numbers.size() > 1 ? numbers[0] : 0;
  const int64_t end = numbers.size() > 1 ? numbers[1] : numbers[0];
  const int64_t by = numbers.size() > 2 ? numbers[2] : 1;
  if (by == 0) throw Failure("range() with a step of 0");
  constexpr int64_t kFar = 1'000'000'000;
  if (std::max({std::abs(begin), std::abs(end), std::abs(by)}) > kFar) {
    throw Unsupported("range() beyond ", kFar);
  }
  List out;
  for (int64_t i = begin; by > 0 ? i < end : i > end; i += by) {
    if (out.size() >= kMaxItems) throw Unsupported("a list of more than ", kMaxItems);
    out.emplace_back(i);
  }
  return Value::list(std::move(out));
}

Value raise_exception(const Arguments& arguments) {
  throw Failure("the template refuses: ", to_text(required(arguments, 0, "message")));
}

Value strftime_now(const Arguments& arguments) {
  const std::string format = text_argument(arguments, 0, "format");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char out[256];
  return std::string(out, std::strftime(out, sizeof out, format.c_str(), &local));
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto it = filters().find(name);
  if (it == filters().end()) throw Unsupported("the filter '", name, "'");
  return it->second(value, arguments);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto it = tests().find(name);
  if (it == tests().end()) throw Unsupported("the test '", name, "'");
  return it->second(value, arguments);
}

Value global_function(const std::string& name) {
  using Function = Value (*)(const Arguments&);
  static const std::map<std::string, Function> kAll = {{"namespace", make_namespace},
                                                       {"range", range},
                                                       {"raise_exception", raise_exception},
                                                       {"strftime_now", strftime_now}};
  const auto it = kAll.find(name);
  if (it == kAll.end()) return Value::undefined(name);
  return std::make_shared<const Callable>(Callable{name, it->second});
}

Value attribute(const Value& value, const std::string& name) {
  if (const auto* undefined = value.get<Undefined>()) {
    throw Failure("'", undefined->name, "' is undefined, and has no '", name, "'");
  }
  if (has_method(value, name)) {
    const auto call = [value, name](const Arguments& a) { return call_method(value, name, a); };
    return std::make_shared<const Callable>(Callable{name, call});
  }
  const Dict* dict = value.dict();
  const Value* found = dict ? find(*dict, name) : nullptr;
  return found ? *found : Value::undefined(name);
}

Value item(const Value& value, const Value& key) {
  if (const auto* undefined = value.get<Undefined>()) {
    throw Failure("'", undefined->name, "' is undefined, and has no items");
  }
  if (const Dict* dict = value.dict()) {
    const auto* name = key.get<std::string>();
    const Value* found = name ? find(*dict, *name) : nullptr;
    return found ? *found : Value::undefined(name ? *name : "an item");
  }
  const bool whole = key.get<int64_t>() || key.get<bool>();
  if (!whole || !(value.list() || value.get<std::string>())) return Value::undefined("an item");
  const List list = elements(value);
  const auto size = static_cast<int64_t>(list.size());
  int64_t at = to_integer(key, "an index");
  if (at < 0) at += size;
  if (at < 0 || at >= size) return Value::undefined("an item behind the end");
  return list[static_cast<size_t>(at)];
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step) {
  if (!value.list() && !value.get<std::string>()) {
    throw Failure("an object of type ", type_name(value), " cannot be cut");
  }
  const List list = elements(value);
  const auto size = static_cast<int64_t>(list.size());
  const int64_t by = step.is_none() ? 1 : to_integer(step, "a step");
  if (by == 0) throw Failure("slice step cannot be zero");
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? size : size - 1;
  const auto place = [&](const Value& at, int64_t other) {
    if (at.is_none()) return other;
    const int64_t number = to_integer(at, "a place");
    return std::clamp(number < 0 ? number + size : number, low, high);
  };
  const int64_t first = place(begin, by > 0 ? low : high), last = place(end, by > 0 ? high : low);
  List out;
  for (int64_t i = first; by > 0 ? i < last : i > last;) {
    out.push_back(list[static_cast<size_t>(i)]);
    if (by > size || by < -size) break;  // also keeps the sum in range
    i += by;
  }
  if (!value.get<std::string>()) return Value::list(std::move(out));
  std::string text;
  for (const Value& one : out) text += to_text(one);
  return text;
}

}  // namespace mgm::jinja
