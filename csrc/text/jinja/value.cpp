#include "text/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

namespace mgm::jinja {

const Value* Arguments::find(size_t place, const std::string& name) const {
  if (place < positional.size()) return &positional[place];
  return jinja::find(named, name);
}

void Measure::add(const Measure& part) {
  weight += part.weight;
  depth = std::max(depth, part.depth + 1);
  space = space || part.space;
  if (weight > kMaxWeight) {
    throw Unsupported("a list or dictionary of more than ", kMaxWeight, " values");
  }
  if (depth > kMaxDepth) throw Unsupported("values nested deeper than ", kMaxDepth);
}

Value Value::list(List items) {
  ListMaker out;
  for (Value& one : items) out.add(std::move(one));
  return out.done();
}

Value Value::dict(Dict items) {
  Measured<Dict> out;
  for (const auto& [name, value] : items) {
    out.measure.add({weight_of(name)});
    out.measure.add(value.measure());
  }
  out.items = std::move(items);
  return {std::make_shared<const Measured<Dict>>(std::move(out))};
}

Value Value::undefined(std::string name) { return {Undefined{std::move(name)}}; }

const List* Value::list() const {
  const auto* shared = get<std::shared_ptr<const Measured<List>>>();
  return shared ? &(*shared)->items : nullptr;
}

const Dict* Value::dict() const {
  if (const auto* space = get<Namespace>()) return space->values.get();
  const auto* shared = get<std::shared_ptr<const Measured<Dict>>>();
  return shared ? &(*shared)->items : nullptr;
}

Measure Value::measure() const {
  Measure out;
  if (const auto* text = get<std::string>()) out.weight = weight_of(*text);
  if (const auto* undefined = get<Undefined>()) out.weight = weight_of(undefined->name);
  if (const auto* list = get<std::shared_ptr<const Measured<List>>>()) out = (*list)->measure;
  if (const auto* dict = get<std::shared_ptr<const Measured<Dict>>>()) out = (*dict)->measure;
  if (const auto* call = get<std::shared_ptr<const Callable>>()) out = (*call)->held;
  if (const auto* space = get<Namespace>()) {
    out.weight += static_cast<int64_t>(space->values->size());  // it may grow
    out.space = true;
  }
  return out;
}

void ListMaker::add(Value value) {
  list_.measure.add(value.measure());
  list_.items.push_back(std::move(value));
}

Value ListMaker::done() { return {std::make_shared<const Measured<List>>(std::move(list_))}; }

namespace {

Value from_json(const OrderedJson& json, int depth) {
  if (depth > kMaxDepth) throw Unsupported("values nested deeper than ", kMaxDepth);
  if (json.is_null()) return None{};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) {
    throw Unsupported("integers beyond 64 bits");
  }
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return checked(json.get_ref<const std::string&>());
  if (json.is_array()) {
    ListMaker out;
    for (const OrderedJson& item : json) out.add(from_json(item, depth + 1));
    return out.done();
  }
  Dict out;
  for (const auto& [key, item] : json.items()) out.emplace_back(key, from_json(item, depth + 1));
  return Value::dict(std::move(out));
}

}  // namespace

Value from_json(const OrderedJson& json) { return from_json(json, 0); }

std::string type_name(const Value& value) {
  constexpr const char* kNames[] = {"Undefined", "NoneType", "bool", "int",       "float",
                                    "str",       "list",     "dict", "Namespace", "function"};
  return kNames[value.data.index()];
}

bool truth(const Value& value) {
  if (const auto* flag = value.get<bool>()) return *flag;
  if (const auto* number = value.get<int64_t>()) return *number != 0;
  if (const auto* number = value.get<double>()) return *number != 0;
  if (const auto* text = value.get<std::string>()) return !text->empty();
  if (value.get<Namespace>()) return true;
  if (const Dict* dict = value.dict()) return !dict->empty();
  if (const List* list = value.list()) return !list->empty();
  return !value.is_undefined() && !value.is_none();
}

double to_real(const Value& value) {
  if (const auto* flag = value.get<bool>()) return *flag ? 1 : 0;
  if (const auto* number = value.get<int64_t>()) return static_cast<double>(*number);
  if (const auto* number = value.get<double>()) return *number;
  throw Failure("a number is expected, got ", type_name(value));
}

namespace {

// Has every int64_t and every double.
long double exact(const Value& number) {
  static_assert(std::numeric_limits<long double>::digits >= 64);
  if (number.get<double>()) return *number.get<double>();
  return static_cast<long double>(to_integer(number, "a number"));
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return exact(a) == exact(b);
  if (a.data.index() != b.data.index()) return false;
  if (const auto* text = a.get<std::string>()) return *text == *b.get<std::string>();
  if (const List* list = a.list()) {
    const List& other = *b.list();
    if (list->size() != other.size()) return false;
    for (size_t i = 0; i < other.size(); ++i) {
      if (!equal((*list)[i], other[i])) return false;
    }
    return true;
  }
  if (a.get<Namespace>()) return a.dict() == b.dict();
  if (const Dict* dict = a.dict()) {
    const Dict& other = *b.dict();
    if (dict->size() != other.size()) return false;
    for (size_t i = 0; i < other.size(); ++i) {
      const auto& [key, value] = (*dict)[i];
      const Value* same = other[i].first == key ? &other[i].second : find(other, key);
      if (!same || !equal(value, *same)) return false;
    }
    return true;
  }
  if (const auto* call = a.get<std::shared_ptr<const Callable>>()) {
    return *call == *b.get<std::shared_ptr<const Callable>>();
  }
  return true;  // two undefined ones, two of None
}

bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return exact(a) < exact(b);
  const auto *left = a.get<std::string>(), *right = b.get<std::string>();
  if (!left || !right) {
    throw Failure("'<' between ", type_name(a), " and ", type_name(b));
  }
  return *left < *right;  // UTF-8 keeps the order of the characters
}

bool contains(const Value& container, const Value& item) {
  if (const auto* text = container.get<std::string>()) {
    const auto* part = item.get<std::string>();
    if (!part) throw Failure("'in <string>' requires a string, got ", type_name(item));
    return find_part(*text, *part) != text->npos;
  }
  if (const Dict* dict = container.dict()) {
    const auto* key = item.get<std::string>();
    return key && find(*dict, *key);
  }
  if (!container.list()) return !elements(container).empty();  // undefined, or refused there
  const List* list = container.list();
  return std::any_of(list->begin(), list->end(), [&](const Value& v) { return equal(v, item); });
}

namespace {

// Python's repr: the shortest digits that mean this number.
std::string real_text(double number) {
  if (!std::isfinite(number)) throw Unsupported("a number that is not finite");
  const auto digits = [number](std::chars_format format) {
    char out[400];
    return std::string(out, std::to_chars(out, out + sizeof out, number, format).ptr);
  };
  const std::string text = digits(std::chars_format::scientific);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const std::string plain = digits(std::chars_format::fixed);
  return plain.find('.') == plain.npos ? plain + ".0" : plain;
}

void dump(const Value& value, int indent, int depth, std::string& out) {
  const auto line = [&](int level) {
    if (indent >= 0) out += "\n" + std::string(static_cast<size_t>(indent * level), ' ');
  };
  const char* comma = indent >= 0 ? "," : ", ";
  checked(out);
  if (value.is_none()) {
    out += "null";
  } else if (const auto* flag = value.get<bool>()) {
    out += *flag ? "true" : "false";
  } else if (const auto* text = value.get<std::string>()) {
    out += OrderedJson(*text).dump();
  } else if (value.is_number()) {
    out += to_text(value);
  } else if (const List* list = value.list()) {
    out += "[";
    for (size_t i = 0; i < list->size(); ++i) {
      if (i > 0) out += comma;
      line(depth + 1);
      dump((*list)[i], indent, depth + 1, out);
    }
    if (!list->empty()) line(depth);
    out += "]";
  } else if (const Dict* dict = value.get<Namespace>() ? nullptr : value.dict()) {
    out += "{";
    for (size_t i = 0; i < dict->size(); ++i) {
      if (i > 0) out += comma;
      line(depth + 1);
      out += OrderedJson((*dict)[i].first).dump() + ": ";
      dump((*dict)[i].second, indent, depth + 1, out);
    }
    if (!dict->empty()) line(depth);
    out += "}";
  } else {
    throw Failure("an object of type ", type_name(value), " is not JSON serializable");
  }
}

}  // namespace

std::string to_text(const Value& value) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (const auto* flag = value.get<bool>()) return *flag ? "True" : "False";
  if (const auto* number = value.get<int64_t>()) return std::to_string(*number);
  if (const auto* number = value.get<double>()) return real_text(*number);
  if (const auto* text = value.get<std::string>()) return *text;
  throw Unsupported("the text of a ", type_name(value));
}

std::string to_json(const Value& value, int indent) {
  std::string out;
  dump(value, indent, 0, out);
  return checked(out);
}

int64_t to_integer(const Value& value, const char* what) {
  if (const auto* number = value.get<int64_t>()) return *number;
  if (const auto* flag = value.get<bool>()) return *flag ? 1 : 0;
  throw Failure(what, " must be an integer, got ", type_name(value));
}

const std::string& checked(const std::string& text) {
  if (text.size() > kMaxText) throw Unsupported("a text of more than ", kMaxText, " bytes");
  return text;
}

namespace {

bool continues(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

std::vector<std::string_view> character_views(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + 1;
    while (end < text.size() && continues(text[end])) ++end;
    out.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

std::vector<std::string> characters(const std::string& text) {
  const std::vector<std::string_view> views = character_views(text);
  return {views.begin(), views.end()};
}

int64_t count_characters(std::string_view text) {
  return text.empty() ? 0 : 1 + std::count_if(text.begin() + 1, text.end(), [](char byte) {
                              return !continues(byte);
                            });
}

// std::string::find takes time that grows with the text times the part.
size_t find_part(std::string_view text, std::string_view part, size_t at) {
  if (part.empty()) return at;
  const void* found = ::memmem(text.data() + at, text.size() - at, part.data(), part.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.npos;
}

int64_t length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const auto* text = value.get<std::string>()) {
    return count_characters(*text);
  }
  if (const List* list = value.list()) return static_cast<int64_t>(list->size());
  if (value.get<Namespace>() || !value.dict()) {
    throw Failure("an object of type ", type_name(value), " has no length");
  }
  return static_cast<int64_t>(value.dict()->size());
}

List elements(const Value& value) {
  if (value.is_undefined()) return {};
  List out;
  if (const List* list = value.list()) return *list;
  if (const auto* text = value.get<std::string>()) {
    for (const std::string_view one : character_views(*text)) out.emplace_back(std::string(one));
    return out;
  }
  if (value.get<Namespace>() || !value.dict()) {
    throw Failure("an object of type ", type_name(value), " is not iterable");
  }
  for (const auto& [key, item] : *value.dict()) out.emplace_back(key);
  return out;
}

const Value* find(const Dict& dict, const std::string& key) {
  for (const auto& [name, value] : dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

void put(Dict& dict, const std::string& key, Value value) {
  for (auto& [name, old] : dict) {
    if (name != key) continue;
    old = std::move(value);
    return;
  }
  if (dict.size() >= kMaxNames) throw Unsupported("more than ", kMaxNames, " names");
  dict.emplace_back(key, std::move(value));
}

}  // namespace mgm::jinja
