// Any bytes as a tokenizer file and a text: a DataError, or ids whose spans lie in the text in
// order and which can be decoded. First byte: the kind of file; up to the first zero byte: the
// file; what follows: the text. A sentencepiece model has zero bytes in it, so that four bytes in
// front say its length.
//
// sources: csrc/text/[abrtu]*.cpp csrc/text/com*.cpp csrc/text/normalizer.cpp
//
// sources: csrc/text/pre_tokenizer.cpp csrc/text/sentencepiece_tokenizer.cpp csrc/text/gguf_*.cpp
//
// sources: csrc/formats/gguf*.cpp csrc/formats/dtype.cpp
//
// flags: -lpcre2-8 -lutf8proc -lsentencepiece
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "text/tokenizer_kinds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  static const std::string folder = [] {
    char name[] = "/dev/shm/tokenizer_fuzz_XXXXXX";
    mgm::log::set_quiet(true);
    return std::string(::mkdtemp(name));
  }();
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1), text = "some text";
  const int kind = data[0] % 4;
  if (kind == 3) {
    uint32_t length = 0;  // little-endian, as the machine is
    if (rest.size() < sizeof length) return 0;
    std::memcpy(&length, rest.data(), sizeof length);
    rest.remove_prefix(sizeof length);
    text = rest.substr(std::min<size_t>(length, rest.size()));
    rest = rest.substr(0, length);
  } else if (const size_t cut = rest.find('\0'); cut != rest.npos) {
    text = rest.substr(cut + 1);
    rest = rest.substr(0, cut);
  }
  const std::string file = folder + "/file";
  std::ofstream(file, std::ios::binary) << rest;
  try {
    const auto tokenizer = kind == 0   ? mgm::load_tokenizer_json(file)
                           : kind == 1 ? mgm::load_tekken(file)
                           : kind == 2 ? mgm::load_tiktoken(file)
                                       : mgm::load_sentencepiece(file);
    std::vector<int32_t> ids;
    int64_t at = 0;
    const auto spans = tokenizer->encode_spans(text);
    // U+FFFD has three bytes and stands for one at least.
    const auto size = static_cast<int64_t>(text.size()) + 2 * tokenizer->replaced_parts();
    for (const mgm::TokenSpan& token : spans) {
      if (token.begin < at || token.end < token.begin) std::abort();
      if (token.end > size) std::abort();
      at = token.begin;
      ids.push_back(token.id);
    }
    tokenizer->decode(ids, false);
  } catch (const mgm::DataError&) {
  }
  return 0;
}
