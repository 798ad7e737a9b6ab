#include "text/token_decoder.h"

#include <optional>

#include "base/strings.h"
#include "text/byte_alphabet.h"
#include "text/normalizer.h"
#include "text/utf8.h"

namespace mgm {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

void fuse(std::vector<std::string>& tokens) { tokens = {join(tokens, "")}; }

void decode_byte_level(std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    // A token with a character that is no byte's is text of its own, as special tokens are.
    const std::optional<std::string> spelled = read_spelled_bytes(token);
    bytes += spelled ? *spelled : token;
  }
  tokens = {valid_utf8(bytes)};
}

// <0xNN>, as Rust's u8::from_str_radix reads it.
std::optional<char> fallback_byte(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const std::string digits = token[3] == '+' ? token.substr(4, 1) : token.substr(3, 2);
  if (digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos) return std::nullopt;
  return static_cast<char>(std::stoi(digits, nullptr, 16));
}

void decode_byte_fallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (valid_utf8(bytes) == bytes) {
      if (!bytes.empty()) out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), kReplacement);
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const std::optional<char> byte = fallback_byte(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  tokens = std::move(out);
}

void replace_in_tokens(std::vector<std::string>& tokens, const Regex& pattern,
                       const std::string& content) {
  for (std::string& token : tokens) {
    std::string out;
    size_t done = 0;
    pattern.for_each(token, [&](size_t begin, size_t end) {
      out += token.substr(done, begin - done);
      out += content;
      done = end;
    });
    if (done == 0 && out.empty()) continue;
    token = out + token.substr(done);
  }
}

void strip_tokens(std::vector<std::string>& tokens, const std::string& content, int32_t start,
                  int32_t stop) {
  for (std::string& token : tokens) {
    size_t begin = 0, end = token.size();
    for (int32_t i = 0; i < start && begin < end; ++i) {
      if (token.compare(begin, content.size(), content) != 0) break;
      begin += content.size();
    }
    for (int32_t i = 0; i < stop && end >= begin + content.size(); ++i) {
      if (token.compare(end - content.size(), content.size(), content) != 0) break;
      end -= content.size();
    }
    token = token.substr(begin, end - begin);
  }
}

void decode_metaspace(std::vector<std::string>& tokens, const std::string& mark, bool prefixed) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = replace_all(tokens[i], mark, i == 0 && prefixed ? "" : " ");
  }
}

void read_into(const Component& c, TokenDecoder& out) {
  const std::string type = c.type();
  if (type == "Sequence") {
    for (const Component& item : c.items("decoders")) read_into(item, out);
  } else if (type == "ByteLevel") {
    out.steps.push_back(decode_byte_level);
  } else if (type == "ByteFallback") {
    out.steps.push_back(decode_byte_fallback);
    out.byte_fallback = true;
  } else if (type == "Fuse") {
    out.steps.push_back(fuse);
  } else if (type == "Replace") {
    out.steps.push_back([pattern = read_pattern(c), content = c.text("content")](auto& tokens) {
      replace_in_tokens(tokens, pattern, content);
    });
  } else if (type == "Strip") {
    const std::string content = c.text("content");
    if (content.empty()) c.fail("'content' is empty");
    out.steps.push_back([content, start = c.number("start"), stop = c.number("stop")](
                            auto& tokens) { strip_tokens(tokens, content, start, stop); });
  } else if (type == "Metaspace") {
    const bool bare = c.has("add_prefix_space") && !c.flag("add_prefix_space");
    const bool prefixed = !bare && c.text_or("prepend_scheme", "always") != "never";
    out.steps.push_back([mark = c.text("replacement"), prefixed](auto& tokens) {
      decode_metaspace(tokens, mark, prefixed);
    });
  } else {
    c.unsupported("ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, Sequence");
  }
}

}  // namespace

TokenDecoder read_token_decoder(const Component& component) {
  TokenDecoder out;
  out.is_there = true;  // also an empty Sequence
  read_into(component, out);
  return out;
}

TokenDecoder byte_level_decoder() { return {{decode_byte_level}, false, true}; }

bool is_fallback_byte(const std::string& token) { return fallback_byte(token).has_value(); }

std::string decode_tokens(const TokenDecoder& decoder, std::vector<std::string> tokens) {
  if (!decoder.is_there) return join(tokens, " ");  // as Hugging Face
  for (const auto& step : decoder.steps) step(tokens);
  return join(tokens, "");
}

}  // namespace mgm
