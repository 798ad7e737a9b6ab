// Drives csrc/text for tests/parity/test_text_parity.py.
//   text_probe TOKENIZER     reads one JSON object a line from stdin, answers with one a line
//     {"encode": TEXT}                       {"ids": [...], "spans": [[begin, end], ...]}
//     {"decode": [ids], "skip": bool}        {"text": ..., "streamed": ...}; with "whole": true the
//                                            text alone
//     {"template": NAME, "turns": [[from, value], ...], "images": N, "prompt": bool, "collapse":
//     bool}
//                                            {"text": ..., "ids": [...], "labels": [...]}
//     {"jinja": TEMPLATE, "names": {...}}    {"text": ...}, or {"unsupported": what}
//   anything that is refused                 {"error": exit code, "message": ...}
#include <iostream>

#include "base/error.h"
#include "base/json.h"
#include "text/conversation.h"
#include "text/jinja/template.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

OrderedJson encode(const Tokenizer& tokenizer, const Json& request) {
  OrderedJson out = {{"ids", OrderedJson::array()}, {"spans", OrderedJson::array()}};
  for (const TokenSpan& token : tokenizer.encode_spans(request.at("encode").get<std::string>())) {
    out["ids"].push_back(token.id);
    out["spans"].push_back({token.begin, token.end});
  }
  return out;
}

OrderedJson decode(const Tokenizer& tokenizer, const Json& request) {
  const auto ids = request.at("decode").get<std::vector<int32_t>>();
  const std::string text = tokenizer.decode(ids, request.at("skip").get<bool>());
  if (request.value("whole", false)) return {{"text", text}};
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  return {{"text", text}, {"streamed", streamed}};
}

OrderedJson converse(const Tokenizer& tokenizer, const Json& request) {
  const auto name = request.at("template").get<std::string>();
  const MarkerPolicy markers =
      request.value("collapse", false) ? MarkerPolicy::kCollapse : MarkerPolicy::kError;
  std::vector<Turn> turns;
  for (const Json& turn : request.at("turns")) {
    turns.push_back({turn.at(0).get<std::string>(), turn.at(1).get<std::string>()});
  }
  const auto images = request.at("images").get<int64_t>();
  const ConversationTemplate conversation = load_template(name);
  const ConversationEncoder encoder(conversation, tokenizer, markers);
  const Encoded encoded = request.value("prompt", false)
                              ? encoder.encode_prompt(turns, images, "test")
                              : encoder.encode_training(turns, images, "test");
  return {{"text", render_conversation(conversation, turns, markers, "test").text},
          {"ids", encoded.ids},
          {"labels", encoded.labels}};
}

OrderedJson render(const OrderedJson& request) {
  try {
    return {{"text", jinja::render(request.at("jinja").get<std::string>(), request.at("names"))}};
  } catch (const jinja::Unsupported& e) {
    return {{"unsupported", e.what()}};
  }
}

OrderedJson answer(const Tokenizer& tokenizer, const std::string& line) {
  const Json request = parse_json(line, "stdin");
  try {
    if (request.contains("encode")) return encode(tokenizer, request);
    if (request.contains("decode")) return decode(tokenizer, request);
    if (request.contains("jinja")) return render(OrderedJson::parse(line));
    return converse(tokenizer, request);
  } catch (const Error& e) {
    return {{"error", static_cast<int>(e.code())}, {"message", e.what()}};
  }
}

int serve(const std::string& path) {
  const auto tokenizer = load_tokenizer(path);
  std::string line;
  while (std::getline(std::cin, line)) {
    const OrderedJson out = answer(*tokenizer, line);
    std::cout << out.dump(-1, ' ', true, OrderedJson::error_handler_t::strict) << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace mgm

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "text_probe TOKENIZER\n";
    return 2;
  }
  try {
    return mgm::serve(argv[1]);
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
