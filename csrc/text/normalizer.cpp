#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace mgm {
namespace {

struct Form {
  utf8proc_option_t options;
  bool compatible;       // NFKC, NFKD: also what only looks different
  uint8_t first_change;  // UTF-8 lead bytes below this one never change
};

// The first character of `text`, and its bytes.
std::pair<utf8proc_int32_t, size_t> first_of(std::string_view text) {
  utf8proc_int32_t c = 0;
  const auto length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                       static_cast<utf8proc_ssize_t>(text.size()), &c);
  return {c, static_cast<size_t>(std::max<utf8proc_ssize_t>(length, 1))};
}

// Runs of combining marks in their canonical order, which changes no normal form. utf8proc brings
// them there by exchanging neighbours, in time that grows with the square of a run.
std::string with_marks_in_order(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::vector<std::pair<int, std::string_view>> marks;  // class, character
  const auto flush = [&] {
    std::stable_sort(marks.begin(), marks.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [order, mark] : marks) out += mark;
    marks.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const auto [c, length] = first_of(text.substr(at));
    const int order = utf8proc_get_property(c)->combining_class;
    if (order == 0) {
      flush();
      out += text.substr(at, length);
    } else {
      marks.emplace_back(order, text.substr(at, length));
    }
    at += length;
  }
  flush();
  return out;
}

std::string utf8proc(std::string_view given, utf8proc_option_t options, const std::string& where) {
  const std::string text = with_marks_in_order(given);
  utf8proc_uint8_t* mapped = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (length < 0) throw DataError(where, ": normalization failed: ", utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(mapped), static_cast<size_t>(length)};
}

// Whether nothing joins this character to the one before it. Every character that composes with an
// earlier one is a mark or a Hangul jamo, or becomes one first (U+FF9E).
bool starts_part(utf8proc_int32_t c, bool compatible) {
  if (c < 0x80) return true;
  if (compatible) {
    utf8proc_int32_t becomes[64];
    int last_boundclass = 0;
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
    if (utf8proc_decompose_char(c, becomes, 64, options, &last_boundclass) > 0) c = becomes[0];
  }
  if (c >= 0x1100 && c <= 0x11FF) return false;
  const utf8proc_property_t* property = utf8proc_get_property(c);
  return property->combining_class == 0 && property->category != UTF8PROC_CATEGORY_MN &&
         property->category != UTF8PROC_CATEGORY_MC && property->category != UTF8PROC_CATEGORY_ME;
}

void apply_form(AlignedText& text, const Form& form, const std::string& where) {
  const std::string_view in = text.text();
  if (std::none_of(in.begin(), in.end(),
                   [&](char c) { return static_cast<uint8_t>(c) >= form.first_change; })) {
    return;
  }
  if (utf8proc(in, form.options, where) == in) return;
  TextRewriter out(text);
  size_t begin = 0;
  const auto finish_part = [&](size_t end) {
    const std::string part = utf8proc(in.substr(begin, end - begin), form.options, where);
    if (part == in.substr(begin, end - begin)) {
      out.keep(begin, end);
    } else {
      out.put(part, begin, end);
    }
    begin = end;
  };
  for (size_t at = 0; at < in.size();) {
    const auto [c, length] = first_of(in.substr(at));
    if (at > begin && starts_part(c, form.compatible)) finish_part(at);
    at += length;
  }
  finish_part(in.size());
  text = out.finish();
}

void replace(AlignedText& text, const Regex& pattern, const std::string& content) {
  const std::string_view in = text.text();
  Match match;
  if (!pattern.search(in, 0, match)) return;
  TextRewriter out(text);
  size_t done = 0;
  pattern.for_each(in, [&](size_t begin, size_t end) {
    out.keep(done, begin);
    out.put(content, begin, end);
    done = end;
  });
  out.keep(done, in.size());
  text = out.finish();
}

void strip(AlignedText& text, const Regex& blanks_before, const Regex& blanks_after, bool left,
           bool right) {
  const std::string_view in = text.text();
  size_t begin = 0, end = in.size();
  Match match;
  if (left && blanks_before.search(in, 0, match)) begin = match.end;
  if (right && blanks_after.search(in, begin, match)) end = match.begin;
  if (begin == 0 && end == in.size()) return;
  TextRewriter out(text);
  out.keep(begin, end);
  text = out.finish();
}

void read_into(const Component& c, Normalizer& out) {
  const std::string type = c.type(), where = c.where();
  const auto form = [&](int options, bool compatible, uint8_t first_change) {
    const Form made{static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options), compatible,
                    first_change};
    out.push_back([made, where](AlignedText& text) { apply_form(text, made, where); });
  };
  if (type == "Sequence") {
    for (const Component& item : c.items("normalizers")) read_into(item, out);
  } else if (type == "NFC") {
    form(UTF8PROC_COMPOSE, false, 0xCC);  // U+0300 is the first that can change
  } else if (type == "NFD") {
    form(UTF8PROC_DECOMPOSE, false, 0x80);
  } else if (type == "NFKC") {
    form(UTF8PROC_COMPOSE | UTF8PROC_COMPAT, true, 0x80);
  } else if (type == "NFKD") {
    form(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, true, 0x80);
  } else if (type == "Prepend") {
    out.push_back([prefix = c.text("prepend")](AlignedText& text) {
      if (!text.text().empty()) text = with_prefix(text, 0, text.text().size(), prefix);
    });
  } else if (type == "Replace") {
    out.push_back([pattern = read_pattern(c), content = c.text("content")](AlignedText& text) {
      replace(text, pattern, content);
    });
  } else if (type == "Strip") {
    const Regex before(R"(\A\s+)", Regex::Dialect::kRust, where);
    const Regex after(R"(\s+\z)", Regex::Dialect::kRust, where);
    out.push_back([before, after, left = c.flag_or("strip_left", true),
                   right = c.flag_or("strip_right", true)](AlignedText& text) {
      strip(text, before, after, left, right);
    });
  } else {
    c.unsupported("NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, Sequence");
  }
}

}  // namespace

Regex read_pattern(const Component& component) {
  const Component pattern = component.at("pattern");
  if (pattern.has("String")) {
    if (pattern.text("String").empty()) pattern.fail("an empty text is not supported");
    return Regex::literal(pattern.text("String"), pattern.where());
  }
  if (pattern.has("Regex")) {
    return Regex(pattern.text("Regex"), Regex::Dialect::kOniguruma, pattern.where());
  }
  pattern.fail("expected {\"String\": ...} or {\"Regex\": ...}");
}

Normalizer read_normalizer(const Component& component) {
  Normalizer out;
  read_into(component, out);
  return out;
}

void normalize(const Normalizer& normalizer, AlignedText& text) {
  for (const auto& step : normalizer) step(text);
}

}  // namespace mgm
