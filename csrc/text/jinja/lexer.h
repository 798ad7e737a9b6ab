// A Jinja template cut into tokens, with white space treated as Hugging Face's environment does
// (trim_blocks, lstrip_blocks, one newline at the end dropped). Follows jinja2/lexer.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mgm::jinja {

struct Token {
  enum class Kind {
    kText,           // of the template itself
    kVariableBegin,  // {{
    kVariableEnd,    // }}
    kBlockBegin,     // {%
    kBlockEnd,       // %}
    kName,
    kString,  // without quotes, escapes carried out
    kInteger,
    kReal,
    kOperator,
    kEnd,  // of the template
  };
  Kind kind;
  std::string text;
  int line = 0;
};

// Throws Failure on what jinja2 would not read either.
std::vector<Token> tokenize(std::string_view source);

}  // namespace mgm::jinja
