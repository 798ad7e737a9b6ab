// Any bytes as a chat template over a short conversation: rendered, or a DataError, soon and in
// little memory (a template comes with a model that anyone may have written).
//
// sources: csrc/text/jinja/*.cpp csrc/text/utf8.cpp
#include <cstdint>

#include "base/error.h"
#include "text/jinja/template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mgm::OrderedJson names = mgm::OrderedJson::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."},
                 {"role": "user", "content": "What is it?\n"},
                 {"role": "assistant", "content": "An apple.", "tool_calls": [{"x": 1.5, "y": null}]}],
    "tools": null, "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 3})");
  try {
    mgm::jinja::render({reinterpret_cast<const char*>(data), size}, names);
  } catch (const mgm::DataError&) {
  }
  return 0;
}
