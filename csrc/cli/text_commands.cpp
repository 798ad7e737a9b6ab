// mgm tokenize, mgm render: what a tokenizer and a template make of text.
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "text/conversation.h"
#include "text/tokenizer.h"

namespace mgm::cli {
namespace {

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

void tokenize(const std::string& path, bool decode) {
  const auto tokenizer = load_tokenizer(path);
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (decode) {
      std::vector<int32_t> ids;
      for (const std::string& word : split(line, ' ')) {
        if (word.empty()) continue;
        size_t used = 0;
        int id = 0;
        try {
          id = std::stoi(word, &used);
        } catch (const std::exception&) {
          used = 0;
        }
        if (used != word.size()) throw DataError("line ", number, ": '", word, "' is no token id");
        ids.push_back(id);
      }
      std::cout << tokenizer->decode(ids, /*skip_special=*/false) << "\n";
    } else {
      const char* separator = "";
      for (const int32_t id : tokenizer->encode(line)) {
        std::cout << separator << id;
        separator = " ";
      }
      std::cout << "\n";
    }
  }
  if (tokenizer->replaced_parts() > 0) {
    log::warn(cat("invalid UTF-8: ", tokenizer->replaced_parts(), " parts became U+FFFD"));
  }
}

std::vector<Turn> parse_turns(const Json& json, const std::string& source) {
  const bool record = json.is_object() && json.contains("conversations");
  const Json& list = record ? json.at("conversations") : json;
  if (!list.is_array()) {
    throw DataError(source, ": expected a LLaVA record or its conversations array, got ",
                    record             ? cat("'conversations' that is ", list.type_name())
                    : json.is_object() ? "an object without 'conversations'"
                                       : std::string(json.type_name()));
  }
  std::vector<Turn> turns;
  for (const Json& turn : list) {
    const auto text = [&](const char* key) {
      const std::string where = cat(source, ": turn ", turns.size() + 1);
      if (!turn.is_object()) throw DataError(where, ": expected an object, got ", turn.type_name());
      if (!turn.contains(key)) throw DataError(where, ": '", key, "' is missing");
      if (!turn.at(key).is_string()) {
        throw DataError(where, ": '", key, "' must be a text, got ", turn.at(key).type_name());
      }
      return turn.at(key).get<std::string>();
    };
    turns.push_back({text("from"), text("value")});
  }
  return turns;
}

// Supervised text between [[ and ]].
std::string marked(const Rendered& rendered) {
  std::string out;
  int64_t at = 0;
  for (const Span& span : rendered.supervised) {
    out += rendered.text.substr(size_t(at), size_t(span.begin - at)) + "[[";
    out += rendered.text.substr(size_t(span.begin), size_t(span.end - span.begin)) + "]]";
    at = span.end;
  }
  return out + rendered.text.substr(size_t(at));
}

struct RenderOptions {
  std::string name, tokenizer;
  bool mark = false, collapse = false;
};

void render(const RenderOptions& options) {
  const std::string source = "standard input";
  const ConversationTemplate conversation = template_option(options.name);
  const std::vector<Turn> turns = parse_turns(parse_json(read_stdin(), source), source);
  const MarkerPolicy markers = options.collapse ? MarkerPolicy::kCollapse : MarkerPolicy::kError;
  const Rendered rendered = render_conversation(conversation, turns, markers, source);
  if (options.mark) {
    std::cout << marked(rendered) << "\n";
  } else if (options.tokenizer.empty()) {
    std::cout << rendered.text;
  } else {
    const auto tokenizer = load_tokenizer(options.tokenizer);
    const Encoded encoded = encode_with_images(*tokenizer, rendered.text, rendered.supervised);
    const OrderedJson out = {{"text", rendered.text},
                             {"ids", encoded.ids},
                             {"labels", encoded.labels},
                             {"images", encoded.images},
                             {"collapsed_markers", rendered.collapsed_markers},
                             {"straddling_tokens", encoded.straddling}};
    std::cout << out.dump() << "\n";
  }
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenize", "Token ids of text, or text of ids");
  command->footer(
      "One line of ids per line of text.\n\nExample:\n"
      "  echo 'What is in the picture?' | mgm tokenize data/embedded/tokenizer");
  auto path = std::make_shared<std::string>();
  auto decode = std::make_shared<bool>(false);
  command->add_option("MODEL", *path, "tokenizer or GGUF file, or a directory with one")
      ->required();
  command->add_flag("--decode", *decode, "read ids, write text");
  command->callback([=] { tokenize(*path, *decode); });
}

void add_render(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "render", "The prompt text, ids and labels a template makes of a conversation");
  command->footer(
      "Reads a LLaVA record, or its conversations array, from standard input. Without a last "
      "answer the text is a prompt.\nTemplates: " +
      join(template_names(), ", ") +
      ", or FILE.yaml:NAME.\n\nExample:\n"
      "  echo '[{\"from\":\"human\",\"value\":\"<image>\\nWhat is it?\"}]' | mgm render --template "
      "v1");
  auto options = std::make_shared<RenderOptions>();
  command->add_option("--template", options->name, "name of the template")->required();
  command->add_option("--tokenizer", options->tokenizer, "also print ids and labels, as JSON");
  command->add_flag("--mark", options->mark, "print the text with [[supervised parts]] marked");
  command->add_flag("--collapse-markers", options->collapse,
                    "several markers in a message count as one");
  command->callback([=] { render(*options); });
}

}  // namespace mgm::cli
