#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include <algorithm>

#include "base/error.h"

namespace mgm {
namespace {

// Oniguruma's and Rust's \s is the property White_Space; PCRE2 would add U+180E.
constexpr std::string_view kSpaces = R"(\t-\r\x{85}\p{Z})";
constexpr std::string_view kOnigurumaWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
// Outside a class Oniguruma looks the first 256 characters up in a table of its own.
constexpr std::string_view kOnigurumaLatin1Word = R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";
constexpr std::string_view kRustWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D})";

// Oniguruma's sets; PCRE2's of the same names are others.
constexpr std::pair<std::string_view, std::string_view> kPosixClasses[] = {
    {"alpha", R"(\p{Alphabetic})"},
    {"alnum", R"(\p{Alphabetic}\p{Nd})"},
    {"digit", R"(\p{Nd})"},
    {"punct", R"(\p{P}\p{S})"},
    {"lower", R"(\p{Lowercase})"},
    {"upper", R"(\p{Uppercase})"},
    {"space", kSpaces},
    {"blank", R"(\t\p{Zs})"},
    {"word", kOnigurumaWord}};

// Whether PCRE2 knows a script of this name.
bool is_script(std::string_view name) {
  const std::string pattern = cat("\\p{sc:", name, "}");
  int error = 0;
  size_t at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF, &error, &at, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

// The pattern in PCRE2's spelling.
class Translator {
 public:
  Translator(const std::string& pattern, Regex::Dialect dialect, const std::string& where)
      : in_(pattern), dialect_(dialect), where_(where) {}

  std::string run() {
    for (at_ = 0; at_ < in_.size(); ++at_) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        character_in_class(c);
      } else if (c == '[') {
        out_ += c;
        in_class_ = true;
        class_start_ = out_.size();
        if (at_ + 1 < in_.size() && in_[at_ + 1] == '^') out_ += in_[++at_], ++class_start_;
      } else {
        const bool interval_end = c == '}' && interval_;
        if (dialect_ == Regex::Dialect::kOniguruma && interval_end && at_ + 1 < in_.size() &&
            in_[at_ + 1] == '+') {
          refuse("'}+', which repeats an interval here and is possessive elsewhere");
        }
        interval_ = c == '{' || (interval_ && c != '}');
        out_ += c;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw DataError(where_, ": the pattern '", in_, "' uses ", what, "; that is not supported");
  }

  void character_in_class(char c) {
    if (c == '&' && at_ + 1 < in_.size() && in_[at_ + 1] == '&') refuse("'&&' in a class");
    if (c == '[' && (at_ + 1 >= in_.size() || in_[at_ + 1] != ':')) refuse("a class in a class");
    if (c == '[') {  // [:name:]
      const size_t end = in_.find(":]", at_);
      if (end == in_.npos) refuse("an unclosed '[:'");
      const std::string name = in_.substr(at_ + 2, end - at_ - 2);
      const auto* known = std::find_if(std::begin(kPosixClasses), std::end(kPosixClasses),
                                       [&](const auto& entry) { return entry.first == name; });
      if (dialect_ == Regex::Dialect::kRust || known == std::end(kPosixClasses)) {
        refuse(cat("'[:", name, ":]'"));
      }
      out_ += known->second;
      at_ = end + 1;
      return;
    }
    if (c == ']' && out_.size() > class_start_) in_class_ = false;
    out_ += c;
  }

  void escape() {
    if (at_ + 1 >= in_.size()) refuse("a backslash at its end");
    const char c = in_[++at_];
    const bool onig = dialect_ == Regex::Dialect::kOniguruma;
    const std::string word =
        onig ? cat(kOnigurumaWord, in_class_ ? "" : kOnigurumaLatin1Word) : std::string(kRustWord);
    const std::string set = c == 's' || c == 'S' ? std::string(kSpaces) : word;
    switch (c) {
      case 's':
      case 'w':
        out_ += in_class_ ? set : cat("[", set, "]");
        return;
      case 'S':
      case 'W':
        if (in_class_) refuse(cat("'\\", c, "' in a class"));
        out_ += cat("[^", set, "]");
        return;
      case 'v':  // PCRE2's is every kind of vertical space
        out_ += "\\x0B";
        return;
      case 'b':
      case 'B':
      case 'h':
      case 'H':
      case 'R':
      case 'X':
      case 'G':
      case 'K':
        refuse(cat("'\\", c, "'"));
      default:
        out_ += '\\';
        out_ += c;
        if ((c == 'p' || c == 'P' || c == 'x') && at_ + 1 < in_.size() && in_[at_ + 1] == '{') {
          const size_t end = in_.find('}', at_);
          if (end == in_.npos) refuse("an unclosed brace");
          std::string name = in_.substr(at_ + 2, end - at_ - 2);
          const bool negated = name.starts_with('^');
          if (negated) name.erase(0, 1);
          // The script itself: PCRE2's \p{Han} also takes what is used with it, as U+3002.
          const bool script = c != 'x' && is_script(name);
          out_ += cat("{", negated ? "^" : "", script ? "sc:" : "", name, "}");
          at_ = end;
        }
    }
  }

  const std::string& in_;
  Regex::Dialect dialect_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0, class_start_ = 0;
  bool in_class_ = false, interval_ = false;
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string where;
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, Dialect dialect, const std::string& where)
    : code_(compile(Translator(pattern, dialect, where).run(), dialect, false, where)) {}

Regex Regex::literal(const std::string& text, const std::string& where) {
  return Regex(compile(text, Dialect::kRust, true, where));
}

std::shared_ptr<const Regex::Code> Regex::compile(const std::string& pattern, Dialect dialect,
                                                  bool literal, const std::string& where) {
  auto made = std::make_shared<Code>();
  made->where = where;
  uint32_t options = PCRE2_UTF;
  // ^ and $ match at every line in Oniguruma, at the ends of the text in Rust.
  options |= literal ? PCRE2_LITERAL
                     : PCRE2_UCP | (dialect == Dialect::kOniguruma ? PCRE2_MULTILINE
                                                                   : PCRE2_DOLLAR_ENDONLY);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  made->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                             &error, &offset, context.get());
  if (!made->code) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    throw DataError(where, ": cannot compile the regular expression '", pattern, "': at ", offset,
                    ": ", reinterpret_cast<const char*>(message));
  }
  made->jit = pcre2_jit_compile(made->code, PCRE2_JIT_COMPLETE) == 0;
  return made;
}

bool Regex::search(std::string_view text, size_t from, Match& match) const {
  // Captures are not asked for, so one pair of offsets serves every pattern.
  static thread_local const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>
      data(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data() ? text.data() : "");
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit) {
    result = pcre2_jit_match(code_->code, subject, text.size(), from, 0, data.get(), nullptr);
  }
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter's stack is the heap
    result = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         data.get(), nullptr);
  }
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(result, message, sizeof(message));
    throw DataError(code_->where, ": matching its regular expression failed on a text of ",
                    text.size(), " bytes: ", reinterpret_cast<const char*>(message));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
  match = {range[0], range[1]};
  return true;
}

size_t Regex::next_character(std::string_view text, size_t at) {
  ++at;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  return at;
}

}  // namespace mgm
