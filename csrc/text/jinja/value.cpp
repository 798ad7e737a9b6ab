#include "text/jinja/value.h"

#include <cmath>

namespace mgm::jinja {

const Value* Arguments::find(size_t place, const std::string& name) const {
  if (place < positional.size()) return &positional[place];
  return jinja::find(named, name);
}

Value Value::list(List items) { return {std::make_shared<const List>(std::move(items))}; }
Value Value::dict(Dict items) { return {std::make_shared<const Dict>(std::move(items))}; }
Value Value::undefined(std::string name) { return {Undefined{std::move(name)}}; }

const List* Value::list() const {
  const auto* shared = get<std::shared_ptr<const List>>();
  return shared ? shared->get() : nullptr;
}

const Dict* Value::dict() const {
  if (const auto* space = get<Namespace>()) return space->values.get();
  const auto* shared = get<std::shared_ptr<const Dict>>();
  return shared ? shared->get() : nullptr;
}

Value from_json(const OrderedJson& json) {
  if (json.is_null()) return None{};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    List out;
    for (const OrderedJson& item : json) out.push_back(from_json(item));
    return Value::list(std::move(out));
  }
  Dict out;
  for (const auto& [key, item] : json.items()) out.emplace_back(key, from_json(item));
  return Value::dict(std::move(out));
}

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

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return to_real(a) == to_real(b);
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
    if (dict->size() != b.dict()->size()) return false;
    for (const auto& [key, value] : *dict) {
      const Value* other = find(*b.dict(), key);
      if (!other || !equal(value, *other)) return false;
    }
    return true;
  }
  if (const auto* call = a.get<std::shared_ptr<const Callable>>()) {
    return *call == *b.get<std::shared_ptr<const Callable>>();
  }
  return true;  // two undefined ones, two of None
}

bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return to_real(a) < to_real(b);
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
    return text->find(*part) != text->npos;
  }
  if (const Dict* dict = container.dict()) {
    const auto* key = item.get<std::string>();
    return key && find(*dict, *key);
  }
  for (const Value& one : elements(container)) {
    if (equal(one, item)) return true;
  }
  return false;
}

namespace {

std::string real_text(double number) {
  if (!std::isfinite(number)) throw Unsupported("a number that is not finite");
  for (int digits = 1; digits < 17; ++digits) {
    const std::string text = strf("%.*g", digits, number);
    if (std::stod(text) != number) continue;
    if (text.find('e') != text.npos) throw Unsupported("a very large or small number in the text");
    return text.find('.') == text.npos ? text + ".0" : text;
  }
  return strf("%.17g", number);
}

void dump(const Value& value, int indent, int depth, std::string& out) {
  const auto line = [&](int level) {
    if (indent >= 0) out += "\n" + std::string(static_cast<size_t>(indent * level), ' ');
  };
  const char* comma = indent >= 0 ? "," : ", ";
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
  return out;
}

int64_t to_integer(const Value& value, const char* what) {
  if (const auto* number = value.get<int64_t>()) return *number;
  if (const auto* flag = value.get<bool>()) return *flag ? 1 : 0;
  throw Failure(what, " must be an integer, got ", type_name(value));
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> out;
  for (const char byte : text) {
    if ((static_cast<uint8_t>(byte) & 0xC0) != 0x80 || out.empty()) out.emplace_back();
    out.back() += byte;
  }
  return out;
}

int64_t length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const auto* text = value.get<std::string>()) {
    return static_cast<int64_t>(characters(*text).size());
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
    for (std::string& one : characters(*text)) out.emplace_back(std::move(one));
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
  dict.emplace_back(key, std::move(value));
}

}  // namespace mgm::jinja
