#include "text/pre_tokenizer.h"

#include <algorithm>

#include "text/normalizer.h"

namespace mgm {
namespace {

// ByteLevel's own pattern (GPT-2's).
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior read_behavior(const Component& c) {
  const std::string name = c.text("behavior");
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  c.fail("behavior '", name, "' is not supported; supported: Removed, Isolated, ",
         "MergedWithPrevious, MergedWithNext, Contiguous");
}

struct Range {
  size_t begin, end;
  bool match;
};

// The delimiter behaviours of NormalizedString::split.
void merge_ranges(std::vector<Range>& ranges, Behavior behavior) {
  std::vector<Range> out;
  bool before = false;
  switch (behavior) {
    case Behavior::kIsolated:
      return;
    case Behavior::kRemoved:
      std::erase_if(ranges, [](const Range& range) { return range.match; });
      return;
    case Behavior::kContiguous:
      for (const Range& range : ranges) {
        if (!out.empty() && out.back().match == range.match) {
          out.back().end = range.end;
        } else {
          out.push_back(range);
        }
      }
      break;
    case Behavior::kMergedWithPrevious:
      for (const Range& range : ranges) {
        if (range.match && !before && !out.empty()) {
          out.back().end = range.end;
        } else {
          out.push_back(range);
        }
        before = range.match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
        if (range->match && !before && !out.empty()) {
          out.back().begin = range->begin;
        } else {
          out.push_back(*range);
        }
        before = range->match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  ranges = std::move(out);
}

void split(Pieces& pieces, const Regex& pattern, Behavior behavior, bool invert) {
  std::vector<Piece> out;
  out.reserve(pieces.list.size() + 16);
  std::vector<Range> ranges;
  for (const Piece& piece : pieces.list) {
    const std::string_view text = piece.view();
    const auto emit = [&](size_t begin, size_t end) {
      if (begin < end) out.push_back({piece.text, piece.begin + begin, piece.begin + end});
    };
    if (behavior == Behavior::kIsolated) {  // all that byte-level models use, so it is quick
      size_t done = 0;
      pattern.for_each(text, [&](size_t begin, size_t end) {
        emit(done, begin);
        emit(begin, end);
        done = end;
      });
      emit(done, text.size());
      continue;
    }
    ranges.clear();
    size_t done = 0;
    pattern.for_each(text, [&](size_t begin, size_t end) {
      if (done < begin) ranges.push_back({done, begin, invert});
      ranges.push_back({begin, end, !invert});
      done = end;
    });
    if (done < text.size()) ranges.push_back({done, text.size(), invert});
    merge_ranges(ranges, behavior);
    for (const Range& range : ranges) emit(range.begin, range.end);
  }
  pieces.list = std::move(out);
}

void prefix_piece(Pieces& pieces, Piece& piece, const std::string& prefix) {
  pieces.made.push_back(with_prefix(*piece.text, piece.begin, piece.end, prefix));
  piece = {&pieces.made.back(), 0, pieces.made.back().text().size()};
}

enum class Scheme { kAlways, kFirst, kNever };

Scheme read_scheme(const Component& c) {
  if (c.has("add_prefix_space") && !c.flag("add_prefix_space")) return Scheme::kNever;
  const std::string name = c.text_or("prepend_scheme", "always");
  if (name == "always") return Scheme::kAlways;
  if (name == "first") return Scheme::kFirst;
  if (name == "never") return Scheme::kNever;
  c.fail("prepend_scheme '", name, "' is not supported; supported: always, first, never");
}

void replace_blanks(Pieces& pieces, Piece& piece, const std::string& mark) {
  const std::string_view text = piece.view();
  if (text.find(' ') == text.npos) return;
  TextRewriter out(*piece.text);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ') {
      out.put(mark, piece.begin + i, piece.begin + i + 1);
    } else {
      out.keep(piece.begin + i, piece.begin + i + 1);
    }
  }
  pieces.made.push_back(out.finish());
  piece = {&pieces.made.back(), 0, pieces.made.back().text().size()};
}

void add_metaspace(const Component& c, PreTokenizer& out) {
  const std::string mark = c.text("replacement");
  const Scheme scheme = read_scheme(c);
  out.steps.push_back([mark, scheme](Pieces& pieces) {
    for (Piece& piece : pieces.list) {
      replace_blanks(pieces, piece, mark);
      const bool here = scheme == Scheme::kAlways ||
                        (scheme == Scheme::kFirst && piece.text->original_begin(piece.begin) == 0);
      if (here && !piece.view().starts_with(mark)) prefix_piece(pieces, piece, mark);
    }
  });
  if (c.flag_or("split", true)) {
    out.steps.push_back([pattern = Regex::literal(mark, c.where())](Pieces& pieces) {
      split(pieces, pattern, Behavior::kMergedWithNext, false);
    });
  }
}

void add_split(PreTokenizer& out, const Regex& pattern, Behavior behavior, bool invert = false) {
  out.steps.push_back([=](Pieces& pieces) { split(pieces, pattern, behavior, invert); });
}

void add_byte_level(const Component& c, PreTokenizer& out) {
  if (c.flag_or("add_prefix_space", true)) {
    out.steps.push_back([](Pieces& pieces) {
      for (Piece& piece : pieces.list) {
        if (!piece.view().starts_with(' ')) prefix_piece(pieces, piece, " ");
      }
    });
  }
  if (c.flag_or("use_regex", true)) {
    add_split(out, Regex(kGpt2Pattern, Regex::Dialect::kOniguruma, c.where()), Behavior::kIsolated);
  }
  out.byte_level = true;
}

void read_into(const Component& c, PreTokenizer& out) {
  const std::string type = c.type();
  const auto pattern = [&](const char* text) {
    return Regex(text, Regex::Dialect::kRust, c.where());
  };
  if (type == "Sequence") {
    for (const Component& item : c.items("pretokenizers")) read_into(item, out);
    return;
  }
  if (out.byte_level) c.fail("'", type, "' after ByteLevel is not supported");
  if (type == "ByteLevel") {
    add_byte_level(c, out);
  } else if (type == "Split") {
    add_split(out, read_pattern(c), read_behavior(c), c.flag_or("invert", false));
  } else if (type == "Digits") {
    add_split(out, pattern(R"(\p{N})"),
              c.flag_or("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous);
  } else if (type == "Metaspace") {
    add_metaspace(c, out);
  } else if (type == "Whitespace") {
    add_split(out, pattern(R"(\w+|[^\w\s]+)"), Behavior::kRemoved, true);
  } else if (type == "WhitespaceSplit") {
    add_split(out, pattern(R"(\s)"), Behavior::kRemoved);
  } else if (type == "Punctuation") {
    add_split(out, pattern(R"([\p{P}!-/:-@\[-`{-~])"),
              c.has("behavior") ? read_behavior(c) : Behavior::kIsolated);
  } else {
    c.unsupported(
        "Split, ByteLevel, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation, Sequence");
  }
}

}  // namespace

PreTokenizer read_pre_tokenizer(const Component& component) {
  PreTokenizer out;
  read_into(component, out);
  return out;
}

PreTokenizer isolating_pre_tokenizer(const Regex& pattern) {
  PreTokenizer out;
  add_split(out, pattern, Behavior::kIsolated);
  return out;
}

}  // namespace mgm
