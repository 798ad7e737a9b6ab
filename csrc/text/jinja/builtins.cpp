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
  const int64_t tested = to_integer(value, "the tested value");
  return by == -1 ? 0 : tested % by;  // the quotient may be beyond 64 bits
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

// What a filter does to every element counts as work, more than the element itself does.
using ListFilter = std::function<Value(const Value&, const Arguments&, Run&)>;

int64_t work_of(const Arguments& arguments) {
  int64_t out = 5;
  for (const Value& one : arguments.positional) out += one.measure().weight;
  for (const auto& [name, one] : arguments.named) out += one.measure().weight;
  return out;
}

// select, reject: a test of the element; selectattr, rejectattr: of an attribute of it.
ListFilter selecting(bool by_attribute, bool wanted) {
  return [=](const Value& value, const Arguments& arguments, Run& run) {
    const size_t place = by_attribute ? 1 : 0;
    const bool tested = arguments.positional.size() > place;
    const std::string test = tested ? text_argument(arguments, place, "test") : "";
    const Arguments rest = behind(arguments, place + 1);
    const int64_t work = work_of(arguments);
    ListMaker out;
    if (!truth(value)) return out.done();  // None too
    for (const Value& one : elements(value)) {
      run.charge(work);
      const Value of = by_attribute ? path(one, text_argument(arguments, 0, "attribute")) : one;
      if ((tested ? apply_test(test, of, rest) : truth(of)) == wanted) out.add(one);
    }
    return out.done();
  };
}

Value map_filter(const Value& value, const Arguments& arguments, Run& run) {
  const Value* name = find(arguments.named, "attribute");
  const Value* other = find(arguments.named, "default");
  const int64_t work = work_of(arguments);
  ListMaker out;
  if (!truth(value)) return out.done();
  for (const Value& one : elements(value)) {
    run.charge(work);
    if (name) {
      const Value of = path(one, to_text(*name));
      out.add(of.is_undefined() && other ? *other : of);
    } else {
      out.add(apply_filter(text_argument(arguments, 0, "filter"), one, behind(arguments, 1), run));
    }
  }
  return out.done();
}

Value join_filter(const Value& value, const Arguments& arguments, Run& run) {
  const Value* between = arguments.find(0, "d");
  const Value* name = arguments.find(1, "attribute");
  const int64_t work = work_of(arguments);
  std::string out;
  bool first = true;
  for (const Value& one : elements(value)) {
    run.charge(work);
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

// Whether int() or float() of Python could take the text.
bool may_be_a_number(const std::string& text) {
  const std::string word = to_lower(text.substr(text.find_first_not_of("+-") == 1 ? 1 : 0));
  if (word == "inf" || word == "infinity" || word == "nan") return true;
  const auto ascii = [](char c) { return (c & 0x80) == 0; };
  if (!std::all_of(text.begin(), text.end(), ascii)) return true;
  return text.find_first_not_of("0123456789_+-.eE") == text.npos &&
         text.find_first_of("0123456789") != text.npos;
}

Value int_filter(const Value& value, const Arguments& arguments) {
  if (const auto* undefined = value.get<Undefined>()) {
    throw Failure("'", undefined->name, "' is undefined, and no integer");
  }
  if (arguments.find(1, "base")) throw Unsupported("the filter 'int' with a base");
  if (const auto* number = value.get<double>()) {
    constexpr double kEnd = 0x1p63;  // the first beyond; not a number fails too
    if (!(*number >= -kEnd && *number < kEnd)) throw Unsupported("integers beyond 64 bits");
    return static_cast<int64_t>(*number);
  }
  if (value.is_number()) return to_integer(value, "int");
  const auto* text = value.get<std::string>();
  const std::string digits(text ? trim(*text) : "");
  const bool number = !digits.empty() && digits.size() < 18 &&
                      digits.find_first_not_of("0123456789", digits[0] == '-') == digits.npos &&
                      digits != "-";
  if (number) return static_cast<int64_t>(std::stoll(digits));
  if (may_be_a_number(digits)) throw Unsupported("the filter 'int' of '", digits, "'");
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
    if (count > 1000) throw Unsupported("the filter 'indent' by ", count);
    blanks.assign(static_cast<size_t>(std::max<int64_t>(count, 0)), ' ');
  }
  const bool first = flag(arguments, 1, "first"), blank_lines = flag(arguments, 2, "blank");
  const std::string text = to_text(value);
  for (const char* other :
       {"\r", "\v", "\f", "\x1C", "\x1D", "\x1E", "\xC2\x85", "\u2028", "\u2029"}) {
    if (text.find(other) != text.npos) throw Unsupported("the filter 'indent' of odd line ends");
  }
  std::string out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (begin == 0 ? first : blank_lines || end > begin) out += blanks;
    checked(out.append(text, begin, end + 1 - begin));  // with the newline
    begin = end + 1;
  }
  return out;
}

Value reverse_filter(const Value& value, const Arguments&) {
  if (value.get<std::string>()) return slice(value, None{}, None{}, int64_t{-1});
  List out = elements(value);
  std::reverse(out.begin(), out.end());
  return Value::list(std::move(out));
}

// One of the elements; -1: the last.
Value element(const Value& value, int64_t at) {
  if (value.get<std::string>() || value.list()) return item(value, at);
  return item(Value::list(elements(value)), at);
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
  const int64_t blanks = to_integer(*indent, "indent");
  if (blanks > 100) throw Unsupported("the filter 'tojson' with an indent of ", blanks);
  return to_json(value, static_cast<int>(std::max<int64_t>(blanks, 0)));
}

Value absolute(const Value& value, const Arguments&) {
  if (const auto* number = value.get<double>()) return std::abs(*number);
  const int64_t number = to_integer(value, "abs");
  if (number == INT64_MIN) throw Unsupported("integers beyond 64 bits");
  return std::abs(number);
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
      {"first", [](V v, A) { return element(v, 0); }},
      {"last", [](V v, A) { return element(v, -1); }},
      {"list", [](V v, A) { return Value::list(elements(v)); }},
      {"items",
       [](V v, A) { return v.is_undefined() ? Value::list({}) : call_method(v, "items", {}); }},
      {"default", default_filter},
      {"d", default_filter},
      {"int", int_filter},
      {"abs", absolute},
      {"indent", indent_filter},
      {"reverse", reverse_filter},
      {"tojson", tojson_filter},
  };
  return kAll;
}

const std::map<std::string, ListFilter>& list_filters() {
  static const std::map<std::string, ListFilter> kAll = {
      {"join", join_filter},
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
  Dict values;
  for (const auto& [name, value] : arguments.named) put(values, name, not_a_namespace(value));
  return Namespace{std::make_shared<Dict>(std::move(values))};
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
  for (const int64_t number : numbers) {
    if (number > kFar || number < -kFar) throw Unsupported("range() beyond ", kFar);
  }
  ListMaker out;
  for (int64_t i = begin; by > 0 ? i < end : i > end; i += by) out.add(i);
  return out.done();
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
  const size_t size = std::strftime(out, sizeof out, format.c_str(), &local);
  if (size == 0 && !format.empty()) throw Unsupported("strftime_now() of more than a date");
  return std::string(out, size);
}

}  // namespace

const Value& not_a_namespace(const Value& value) {
  if (value.measure().space) throw Unsupported("a namespace in a namespace");
  return value;
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Run& run) {
  const Deeper deeper(run);  // a filter may take another to apply
  const auto of_lists = list_filters().find(name);
  if (of_lists != list_filters().end()) return of_lists->second(value, arguments, run);
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
  return std::make_shared<const Callable>(Callable{name, it->second, {}});
}

Value attribute(const Value& value, const std::string& name) {
  if (const auto* undefined = value.get<Undefined>()) {
    throw Failure("'", undefined->name, "' is undefined, and has no '", name, "'");
  }
  if (has_method(value, name)) {
    Measure held;
    held.add(value.measure());
    const auto call = [value, name](const Arguments& a) { return call_method(value, name, a); };
    return std::make_shared<const Callable>(Callable{name, call, held});
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
  const auto* text = value.get<std::string>();
  const int64_t size = length(value);
  int64_t at = to_integer(key, "an index");
  if (at < 0) at += size;
  if (at < 0 || at >= size) return Value::undefined("an item behind the end");
  if (text) return std::string(character_views(*text)[static_cast<size_t>(at)]);
  return (*value.list())[static_cast<size_t>(at)];
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step) {
  if (!value.list() && !value.get<std::string>()) {
    throw Failure("an object of type ", type_name(value), " cannot be cut");
  }
  const auto* whole = value.get<std::string>();
  const int64_t size = length(value);
  const int64_t by = step.is_none() ? 1 : to_integer(step, "a step");
  if (by == 0) throw Failure("slice step cannot be zero");
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? size : size - 1;
  const auto place = [&](const Value& at, int64_t other) {
    if (at.is_none()) return other;
    const int64_t number = to_integer(at, "a place");
    return std::clamp(number < 0 ? number + size : number, low, high);
  };
  const int64_t first = place(begin, by > 0 ? low : high), last = place(end, by > 0 ? high : low);
  std::vector<size_t> places;
  for (int64_t i = first; by > 0 ? i < last : i > last;) {
    places.push_back(static_cast<size_t>(i));
    if (by > size || by < -size) break;  // also keeps the sum in range
    i += by;
  }
  if (!whole) {
    ListMaker out;
    for (const size_t i : places) out.add((*value.list())[i]);
    return out.done();
  }
  const std::vector<std::string_view> views = character_views(*whole);
  std::string text;
  for (const size_t i : places) text += views[i];
  return text;
}

}  // namespace mgm::jinja
