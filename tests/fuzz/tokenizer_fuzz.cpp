// Any bytes as a tokenizer file and a text: a DataError, or ids whose spans lie in the text in
// order and which can be decoded. First byte: the kind of file; up to the first zero byte: the
// file; what follows: the text.
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
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t cut = rest.find('\0');
  const std::string_view text = cut == rest.npos ? "some text" : rest.substr(cut + 1);
  const std::string file = folder + "/file";
  std::ofstream(file, std::ios::binary) << rest.substr(0, cut);
  try {
    const auto tokenizer = data[0] % 3 == 0   ? mgm::load_tokenizer_json(file)
                           : data[0] % 3 == 1 ? mgm::load_tekken(file)
                                              : mgm::load_tiktoken(file);
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
