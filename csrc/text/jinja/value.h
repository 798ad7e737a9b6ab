// Values of a Jinja template: what Python's would be, as far as chat templates need them. Lists and
// dictionaries are shared and never change, as in the sandbox of Hugging Face's templates; only a
// namespace does. Text is UTF-8; lengths and places count characters.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace mgm::jinja {

// What is not supported here, though a template may use it; says what it is.
class Unsupported : public DataError {
 public:
  using DataError::DataError;
};

// What Python would refuse too: an undefined name, the wrong type, raise_exception().
class Failure : public DataError {
 public:
  using DataError::DataError;
};

// Limits of values, since a template comes from a file that anyone may have written.
inline constexpr size_t kMaxText = size_t{1} << 18;  // bytes of one text
inline constexpr int64_t kMaxWeight = 100'000;       // of one list or dictionary
inline constexpr int kMaxDepth = 100;                // of lists in lists; also of macro calls
inline constexpr size_t kMaxNames = 500;             // of a scope, a namespace, a {...}

// How large a value is when written out: lists are shared, so that a few of them may stand for very
// many values.
struct Measure {
  int64_t weight = 1;  // values in it, itself too; 16 bytes of text count as one
  int depth = 0;
  bool space = false;  // it holds a namespace, or is one

  void add(const Measure& part);  // throws Unsupported beyond the limits
};

inline int64_t weight_of(std::string_view text) {
  return static_cast<int64_t>(1 + text.size() / 16);
}

template <class T>
struct Measured {
  T items;
  Measure measure;
};

struct Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in order; keys are text

struct Arguments {
  List positional;
  Dict named;
  // By place or by name; null: not given.
  const Value* find(size_t place, const std::string& name) const;
};

struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
  Measure held;  // of the values that `call` keeps
};

struct Undefined {
  std::string name;
};
struct None {};
struct Namespace {
  std::shared_ptr<Dict> values;
};

struct Value {
  std::variant<Undefined, None, bool, int64_t, double, std::string,
               std::shared_ptr<const Measured<List>>, std::shared_ptr<const Measured<Dict>>,
               Namespace, std::shared_ptr<const Callable>>
      data;

  Value() : data(Undefined{}) {}
  template <class T>
    requires(!std::is_same_v<std::decay_t<T>, Value>)
  Value(T value) : data(std::move(value)) {}  // NOLINT: values are written as what they hold
  static Value list(List items);  // throws Unsupported beyond the limits, as dict() does
  static Value dict(Dict items);
  static Value undefined(std::string name);

  template <class T>
  const T* get() const {
    return std::get_if<T>(&data);
  }
  bool is_undefined() const { return get<Undefined>() != nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  bool is_number() const { return get<int64_t>() || get<double>() || get<bool>(); }
  const List* list() const;
  const Dict* dict() const;  // of a namespace too
  Measure measure() const;
};

// A list in the making: throws Unsupported as soon as it is too large.
class ListMaker {
 public:
  void add(Value value);
  Value done();

 private:
  Measured<List> list_;
};

Value from_json(const OrderedJson& json);

std::string type_name(const Value& value);  // Python's, for messages
bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
bool less(const Value& a, const Value& b);  // numbers, texts
bool contains(const Value& container, const Value& item);
std::string to_text(const Value& value);  // str(); throws Unsupported for what has an odd form
std::string to_json(const Value& value,
                    int indent);  // json.dumps(ensure_ascii=False); -1: one line
int64_t to_integer(const Value& value, const char* what);
double to_real(const Value& value);

int64_t length(const Value& value);
List elements(const Value& value);                            // what a loop runs over
const Value* find(const Dict& dict, const std::string& key);  // null: none
void put(Dict& dict, const std::string& key, Value value);    // at most kMaxNames

// Throws Unsupported for a text that is too long.
const std::string& checked(const std::string& text);
std::vector<std::string> characters(const std::string& text);
std::vector<std::string_view> character_views(std::string_view text);
int64_t count_characters(std::string_view text);
// The place of `part` at or behind `at`, in time that grows with the text alone; npos: none.
size_t find_part(std::string_view text, std::string_view part, size_t at = 0);

}  // namespace mgm::jinja
