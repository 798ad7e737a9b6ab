#include "text/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "text/jinja/value.h"

namespace mgm::jinja {
namespace {

bool blank(char c) { return std::string_view(" \t\n\r\f\v").find(c) != std::string_view::npos; }
bool name_start(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80) != 0;
}
bool name_part(char c) { return name_start(c) || std::isdigit(static_cast<unsigned char>(c)); }

void append_utf8(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text();
    add(Token::Kind::kEnd, "");
    return std::move(out_);
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    throw Failure("line ", line_, ": ", args...);
  }

  void add(Token::Kind kind, std::string text) { out_.push_back({kind, std::move(text), line_}); }
  bool next_is(std::string_view text) const { return source_.compare(at_, text.size(), text) == 0; }
  void advance(size_t count) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                    source_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
    line_starting_ = count > 0 && source_[at_ - 1] == '\n';
  }
  void skip_blanks() {
    size_t count = 0;
    while (at_ + count < source_.size() && blank(source_[at_ + count])) ++count;
    if (count > 0) advance(count);
  }

  // Text up to the next tag, and the tag.
  void read_text() {
    size_t begin = at_;
    while (begin < source_.size()) {
      begin = source_.find('{', begin);
      if (begin == source_.npos || begin + 1 == source_.size()) begin = source_.size();
      if (begin == source_.size()) break;
      if (std::string_view("{%#").find(source_[begin + 1]) != std::string_view::npos) break;
      ++begin;
    }
    std::string text = source_.substr(at_, begin - at_);
    if (begin == source_.size()) {
      add(Token::Kind::kText, text);
      advance(begin - at_);
      return;
    }
    const char kind = source_[begin + 1];
    const char sign = begin + 2 < source_.size() ? source_[begin + 2] : '\0';
    if (sign == '-') {
      while (!text.empty() && blank(text.back())) text.pop_back();
    } else if (sign != '+' && kind != '{') {
      const size_t line = text.rfind('\n') + 1;  // 0 where there is none
      const bool starts = line > 0 || line_starting_;
      if (starts && std::all_of(text.begin() + static_cast<ptrdiff_t>(line), text.end(), blank)) {
        text.resize(line);
      }
    }
    if (!text.empty()) add(Token::Kind::kText, text);
    advance(begin - at_);
    advance(sign == '-' || sign == '+' ? 3 : 2);
    if (kind == '#') {
      read_comment();
    } else if (kind == '{') {
      add(Token::Kind::kVariableBegin, "{{");
      read_expression("}}", Token::Kind::kVariableEnd);
    } else if (!read_raw()) {
      add(Token::Kind::kBlockBegin, "{%");
      read_expression("%}", Token::Kind::kBlockEnd);
    }
  }

  // Behind the end of a tag: "-" takes all white space, the end of a block one newline.
  void after_tag(char sign, bool block) {
    if (sign == '-') {
      skip_blanks();
    } else if (block && sign != '+' && next_is("\n")) {
      advance(1);
    }
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) fail("a comment does not end");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    after_tag(sign, true);
  }

  // {% raw %} ... {% endraw %}; false: it is another block.
  bool read_raw() {
    size_t at = at_;
    const auto skip = [&] {
      while (at < source_.size() && blank(source_[at])) ++at;
    };
    skip();
    if (source_.compare(at, 3, "raw") != 0) return false;
    at += 3;
    skip();
    if (source_.compare(at, 2, "%}") != 0 && source_.compare(at, 3, "-%}") != 0) return false;
    throw Unsupported("{% raw %}");
  }

  void read_expression(std::string_view end, Token::Kind end_kind) {
    std::string open;  // brackets
    for (;;) {
      skip_blanks();
      if (at_ >= source_.size()) fail("a tag does not end with ", end);
      if (open.empty()) {
        const bool signed_end = (source_[at_] == '-' || (source_[at_] == '+' && end == "%}")) &&
                                source_.compare(at_ + 1, end.size(), end) == 0;
        if (signed_end || next_is(end)) {
          const char sign = signed_end ? source_[at_] : '\0';
          add(end_kind, std::string(end));
          advance(end.size() + (signed_end ? 1 : 0));
          after_tag(sign, end == "%}");
          return;
        }
      }
      read_token(open);
    }
  }

  void read_token(std::string& open) {
    const char c = source_[at_];
    if (name_start(c)) {
      size_t count = 1;
      while (at_ + count < source_.size() && name_part(source_[at_ + count])) ++count;
      add(Token::Kind::kName, source_.substr(at_, count));
      advance(count);
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      read_number();
    } else if (c == '"' || c == '\'') {
      read_string(c);
    } else {
      read_operator(open);
    }
  }

  void read_number() {
    size_t count = 0;
    const auto digits = [&] {
      const size_t begin = count;
      while (at_ + count < source_.size() &&
             (std::isdigit(static_cast<unsigned char>(source_[at_ + count])) ||
              (source_[at_ + count] == '_' && count > begin))) {
        ++count;
      }
      return count > begin;
    };
    digits();
    bool real = false;
    if (at_ + count + 1 < source_.size() && source_[at_ + count] == '.' &&
        std::isdigit(static_cast<unsigned char>(source_[at_ + count + 1]))) {
      ++count;
      real = digits();
    }
    if (at_ + count < source_.size() && name_start(source_[at_ + count])) {
      throw Unsupported("the number ", source_.substr(at_, count + 1), "...");
    }
    std::string text = source_.substr(at_, count);
    std::erase(text, '_');
    if (text.size() > 18) throw Unsupported("the number ", text);
    add(real ? Token::Kind::kReal : Token::Kind::kInteger, text);
    advance(count);
  }

  uint32_t hex(size_t at, size_t digits) const {
    const std::string text = source_.substr(std::min(at, source_.size()), digits);
    if (text.size() != digits ||
        text.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      fail("an escape that is no number");
    }
    return static_cast<uint32_t>(std::stoul(text, nullptr, 16));
  }

  void read_string(char quote) {
    std::string text;
    size_t at = at_ + 1;
    for (; at < source_.size() && source_[at] != quote; ++at) {
      if (source_[at] != '\\') {
        text += source_[at];
        continue;
      }
      if (++at >= source_.size()) break;
      const char c = source_[at];
      constexpr std::string_view kNames = "ntr\\'\"abfv", kMeant = "\n\t\r\\'\"\a\b\f\v";
      const size_t known = kNames.find(c);
      if (known != kNames.npos) {
        text += kMeant[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        const uint32_t code = hex(at + 1, digits);
        if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
          throw Unsupported("an escape beyond Unicode");
        }
        append_utf8(code, text);
        at += digits;
      } else if (c == 'N' || std::isdigit(static_cast<unsigned char>(c))) {
        throw Unsupported("the escape \\", c);
      } else if (c != '\n') {
        text += '\\';  // Python keeps what it does not know
        text += c;
      }
    }
    if (at >= source_.size()) fail("a string does not end");
    add(Token::Kind::kString, text);
    advance(at + 1 - at_);
  }

  void read_operator(std::string& open) {
    for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!next_is(two)) continue;
      add(Token::Kind::kOperator, std::string(two));
      advance(2);
      return;
    }
    const char c = source_[at_];
    if (std::string_view("+-*/%~<>=.,:|()[]{}").find(c) == std::string_view::npos) {
      fail("unexpected '", c, "'");
    }
    constexpr std::string_view kOpen = "([{", kClose = ")]}";
    if (kOpen.find(c) != kOpen.npos) open += c;
    const size_t close = kClose.find(c);
    if (close != kClose.npos) {
      if (open.empty() || open.back() != kOpen[close]) fail("unexpected '", c, "'");
      open.pop_back();
    }
    add(Token::Kind::kOperator, std::string(1, c));
    advance(1);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> out_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {  // every kind of newline is one
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return Lexer(std::move(text)).run();
}

}  // namespace mgm::jinja
