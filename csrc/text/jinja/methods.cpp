#include "text/jinja/methods.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <unordered_set>

#include "text/jinja/run.h"
#include "text/utf8.h"

namespace mgm::jinja {
namespace {

using TextMethod = std::function<Value(const std::string&, const Arguments&)>;

// The text argument at a place; null: not given, or None.
const std::string* text_at(const Arguments& arguments, size_t place, const char* name) {
  const Value* value = arguments.find(place, name);
  if (!value || value->is_none()) return nullptr;
  const auto* text = value->get<std::string>();
  if (!text) {
    if (value->list()) throw Unsupported("a list as the argument of a text's method");
    throw Failure("text is expected, got ", type_name(*value));
  }
  return text;
}

const std::string& required_text(const Arguments& arguments, size_t place, const char* name) {
  const std::string* text = text_at(arguments, place, name);
  if (!text) throw Failure("argument '", name, "' is missing");
  return *text;
}

// -1: as many as there are.
int64_t count_at(const Arguments& arguments, size_t place, const char* name) {
  const Value* value = arguments.find(place, name);
  return value && !value->is_none() ? std::max<int64_t>(-1, to_integer(*value, name)) : -1;
}

std::string strip_blanks(std::string_view text, bool left, bool right) {
  if (left) text.remove_prefix(leading_space(text));
  if (right) text.remove_suffix(trailing_space(text));
  return std::string(text);
}

TextMethod stripping(bool left, bool right) {
  return [=](const std::string& text, const Arguments& arguments) -> Value {
    const std::string* set = text_at(arguments, 0, "chars");
    if (!set) return strip_blanks(text, left, right);
    std::array<bool, 128> ascii{};
    std::unordered_set<std::string_view> others;
    for (const std::string_view one : character_views(*set)) {
      if (one.size() == 1) {
        ascii[one[0] & 0x7F] = true;
      } else {
        others.insert(one);
      }
    }
    const auto drop = [&](std::string_view one) {
      return one.size() == 1 ? ascii[one[0] & 0x7F] : others.contains(one);
    };
    const std::vector<std::string_view> all = character_views(text);
    size_t begin = 0, end = all.size();
    while (left && begin < end && drop(all[begin])) ++begin;
    while (right && end > begin && drop(all[end - 1])) --end;
    if (begin == end) return std::string();
    return std::string(all[begin].data(), all[end - 1].data() + all[end - 1].size());
  };
}

void require_ascii(const std::string& text, const char* method) {
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
  if (!ascii) throw Unsupported("'", method, "' of a text beyond ASCII");
}

std::string upper(std::string text) {
  require_ascii(text, "upper");
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

std::string lower(const std::string& text) {
  require_ascii(text, "lower");
  return to_lower(text);
}

std::string capitalize(const std::string& text) {
  return text.empty() ? text : upper(text.substr(0, 1)) + lower(text.substr(1));
}

Value split_text(const std::string& text, const Arguments& arguments) {
  const std::string* separator = text_at(arguments, 0, "sep");
  int64_t left = count_at(arguments, 1, "maxsplit");
  ListMaker out;
  if (!separator) {
    if (left >= 0) throw Unsupported("split() at white space with a limit");
    require_ascii(text, "split");
    for (size_t at = 0; at < text.size();) {
      constexpr const char* kBlanks = " \t\n\r\f\v\x1c\x1d\x1e\x1f";
      const size_t begin = text.find_first_not_of(kBlanks, at);
      if (begin == text.npos) break;
      const size_t end = std::min(text.find_first_of(kBlanks, begin), text.size());
      out.add(text.substr(begin, end - begin));
      at = end;
    }
    return out.done();
  }
  if (separator->empty()) throw Failure("empty separator");
  size_t at = 0;
  for (;;) {
    const size_t found = left == 0 ? text.npos : find_part(text, *separator, at);
    if (found == text.npos) break;
    out.add(text.substr(at, found - at));
    at = found + separator->size();
    if (left > 0) --left;
  }
  out.add(text.substr(at));
  return out.done();
}

Value replace_text(const std::string& text, const Arguments& arguments) {
  const std::string &from = required_text(arguments, 0, "old"),
                    &to = required_text(arguments, 1, "new");
  int64_t left = count_at(arguments, 2, "count");
  if (from.empty()) throw Unsupported("replace() of an empty text");
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t found = left == 0 ? text.npos : find_part(text, from, at);
    if (found == text.npos) break;
    out.append(text, at, found - at);
    out += to;
    checked(out);
    at = found + from.size();
    if (left > 0) --left;
  }
  return checked(out.append(text, at));
}

Value join_texts(const std::string& between, const Arguments& arguments) {
  const Value* list = arguments.find(0, "iterable");
  if (!list) throw Failure("join() takes a list");
  std::string out;
  const List items = elements(*list);
  for (size_t i = 0; i < items.size(); ++i) {
    const auto* text = items[i].get<std::string>();
    if (!text) throw Failure("join() of a ", type_name(items[i]));
    out += (i > 0 ? between : "") + *text;
    checked(out);
  }
  return out;
}

Value find_text(const std::string& text, const Arguments& arguments) {
  if (arguments.positional.size() > 1) throw Unsupported("find() in a part of a text");
  const size_t at = find_part(text, required_text(arguments, 0, "sub"));
  if (at == text.npos) return int64_t{-1};
  return count_characters(std::string_view(text).substr(0, at));
}

Value count_text(const std::string& text, const Arguments& arguments) {
  const std::string& part = required_text(arguments, 0, "sub");
  if (part.empty()) throw Unsupported("count() of an empty text");
  int64_t count = 0;
  for (size_t at = 0; (at = find_part(text, part, at)) != text.npos; at += part.size()) ++count;
  return count;
}

const std::map<std::string, TextMethod>& text_methods() {
  using T = const std::string&;
  using A = const Arguments&;
  static const std::map<std::string, TextMethod> kAll = {
      {"strip", stripping(true, true)},
      {"lstrip", stripping(true, false)},
      {"rstrip", stripping(false, true)},
      {"upper", [](T t, A) { return upper(t); }},
      {"lower", [](T t, A) { return lower(t); }},
      {"capitalize", [](T t, A) { return capitalize(t); }},
      {"startswith", [](T t, A a) { return t.starts_with(required_text(a, 0, "prefix")); }},
      {"endswith", [](T t, A a) { return t.ends_with(required_text(a, 0, "suffix")); }},
      {"removeprefix",
       [](T t, A a) {
         const std::string& prefix = required_text(a, 0, "prefix");
         return t.starts_with(prefix) ? t.substr(prefix.size()) : t;
       }},
      {"removesuffix",
       [](T t, A a) {
         const std::string& suffix = required_text(a, 0, "suffix");
         return t.ends_with(suffix) ? t.substr(0, t.size() - suffix.size()) : t;
       }},
      {"split", split_text},
      {"replace", replace_text},
      {"join", join_texts},
      {"find", find_text},
      {"count", count_text},
  };
  return kAll;
}

Value dict_method(const Dict& dict, const std::string& name, const Arguments& arguments) {
  if (name == "get") {
    const auto* key =
        arguments.positional.empty() ? nullptr : arguments.positional[0].get<std::string>();
    if (!key) throw Failure("get() takes a key");
    const Value* found = find(dict, *key);
    const Value* other = arguments.find(1, "default");
    return found ? *found : other ? *other : Value(None{});
  }
  ListMaker out;
  for (const auto& [key, value] : dict) {
    if (name == "items") out.add(Value::list({key, value}));
    if (name == "keys") out.add(key);
    if (name == "values") out.add(value);
  }
  return out.done();
}

bool one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

bool has_method(const Value& value, const std::string& name) {
  if (value.get<std::string>()) {
    return one_of(
        name,
        {"capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
         "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
         "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
         "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
         "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
         "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
         "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
         "swapcase",     "title",       "translate", "upper",      "zfill"});
  }
  if (value.list()) {
    return one_of(name, {"append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear",
                         "copy", "count", "index"});
  }
  return value.dict() && !value.get<Namespace>() &&
         one_of(name, {"items", "keys", "values", "get", "pop", "popitem", "update", "copy",
                       "setdefault", "clear", "fromkeys"});
}

Value call_method(const Value& value, const std::string& name, const Arguments& arguments) {
  if (const auto* text = value.get<std::string>()) {
    const auto it = text_methods().find(name);
    if (it == text_methods().end()) throw Unsupported("the method '", name, "' of a text");
    return it->second(*text, arguments);
  }
  const Dict* dict = value.dict();
  if (dict && one_of(name, {"items", "keys", "values", "get"})) {
    return dict_method(*dict, name, arguments);
  }
  throw Unsupported("the method '", name, "' of a ", type_name(value));
}

}  // namespace mgm::jinja
