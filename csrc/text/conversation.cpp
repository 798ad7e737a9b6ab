#include "text/conversation.h"

#include <algorithm>
#include <optional>

#include "base/embedded.h"
#include "base/error.h"
#include "base/fs.h"
#include "base/json.h"
#include "config/yaml_load.h"
#include "text/utf8.h"

namespace mgm {
namespace {

constexpr int32_t kImageId = -200;  // kImageTokenIndex of types/batch.h
constexpr int32_t kIgnore = -100;   // kIgnoreIndex
constexpr const char* kTable = "templates/conversations.yaml";

ConfigNode parse_table(std::string_view text, const std::string& source) {
  std::vector<ConfigIssue> issues;
  std::optional<ConfigNode> table = parse_yaml(text, source, issues);
  if (!issues.empty() || !table) throw_issues(std::move(issues));
  return std::move(*table);
}

ConfigNode builtin_table() {
  for (const EmbeddedFile& file : embedded_files()) {
    if (file.name == kTable) return parse_table(file.text, kTable);
  }
  throw InternalError("the built-in template table is missing");
}

const ConfigNode& text_node(const ConfigNode& row, const std::string& name,
                            const std::string& key) {
  const ConfigNode* node = row.find(key);
  if (!node || node->kind != ConfigNode::Kind::kScalar) {
    throw ConfigError((node ? node->where : row.where).text(), ": template ", name, ": '", key,
                      node ? "' must be text" : "' is missing");
  }
  return *node;
}

std::vector<std::string> text_list(const ConfigNode& row, const std::string& key) {
  std::vector<std::string> out;
  const ConfigNode* node = row.find(key);
  if (!node) return out;
  if (node->kind != ConfigNode::Kind::kSequence) {
    throw ConfigError(node->where.text(), ": ", key, ": expected a list, got ", node->kind_name());
  }
  for (const ConfigNode& item : node->sequence) {
    if (item.kind != ConfigNode::Kind::kScalar) {
      throw ConfigError(item.where.text(), ": ", key, ": expected text, got ", item.kind_name());
    }
    out.push_back(item.scalar);
  }
  return out;
}

ConversationTemplate read_row(const std::string& name, const ConfigNode& row) {
  static const std::vector<std::string> known = {
      "aliases",  "begin",           "first_user_begin", "user_begin",    "user_end",
      "captions", "assistant_begin", "assistant_prompt", "assistant_end", "stop"};
  for (const ConfigNode::Entry& entry : row.map) {
    if (std::find(known.begin(), known.end(), entry.key) == known.end()) {
      throw ConfigError(entry.where.text(), ": template ", name, ": unknown key '", entry.key,
                        "'; known: ", join(known, ", "));
    }
  }
  const auto text = [&](const char* key) { return text_node(row, name, key).scalar; };
  const auto text_or = [&](const char* key, const std::string& other) {
    return row.find(key) ? text(key) : other;
  };
  ConversationTemplate t;
  t.name = name;
  t.begin = text_or("begin", "");
  t.user_begin = text("user_begin");
  t.first_user_begin = text_or("first_user_begin", t.user_begin);
  t.user_end = text("user_end");
  t.assistant_begin = text("assistant_begin");
  t.assistant_prompt = text_or("assistant_prompt", t.assistant_begin);
  t.assistant_end = text("assistant_end");
  const std::string captions = text_or("captions", "false");
  if (captions != "true" && captions != "false") {
    throw ConfigError(row.find("captions")->where.text(), ": template ", name, ": captions is '",
                      captions, "'; true or false");
  }
  t.captions = captions == "true";
  t.stop = text_list(row, "stop");
  return t;
}

const ConfigNode::Entry* find_row(const ConfigNode& table, const std::string& name) {
  for (const ConfigNode::Entry& row : table.map) {
    const std::vector<std::string> aliases = text_list(row.value, "aliases");
    if (row.key == name || std::find(aliases.begin(), aliases.end(), name) != aliases.end())
      return &row;
  }
  return nullptr;
}

std::vector<std::string> names_of(const ConfigNode& table) {
  std::vector<std::string> names;
  for (const ConfigNode::Entry& row : table.map) {
    names.push_back(row.key);
    for (std::string& alias : text_list(row.value, "aliases")) names.push_back(std::move(alias));
  }
  return names;
}

int64_t count_markers(std::string_view text) {
  int64_t count = 0;
  for (size_t at = text.find(kImageMarker); at != text.npos; at = text.find(kImageMarker, at + 1))
    ++count;
  return count;
}

// A message with markers gets them at its front, each on a line of its own (LLaVA
// preprocess_multimodal).
std::string markers_first(const std::string& message, int64_t markers) {
  const std::string rest = strip(replace_all(message, std::string(kImageMarker), ""));
  std::string out;
  for (int64_t i = 0; i < markers; ++i) out += std::string(kImageMarker) + "\n";
  return strip(out + rest);
}

void check_turns(const std::vector<Turn>& turns, const std::string& where) {
  if (turns.empty()) throw DataError(where, ": the conversation is empty");
  for (size_t i = 0; i < turns.size(); ++i) {
    const char* expected = i % 2 == 0 ? "human" : "gpt";
    if (turns[i].from == expected) continue;
    if (i == 0) {
      throw DataError(where, ": the conversation begins with '", turns[i].from,
                      "'; it must begin with a human turn");
    }
    throw DataError(where, ": turn ", i + 1, " is from '", turns[i].from, "', expected '", expected,
                    "': human and gpt take turns");
  }
}

}  // namespace

std::vector<std::string> template_names() { return names_of(builtin_table()); }

std::string template_text(const ConversationTemplate& t) {
  const OrderedJson row = {{"begin", t.begin},
                           {"first_user_begin", t.first_user_begin},
                           {"user_begin", t.user_begin},
                           {"user_end", t.user_end},
                           {"assistant_begin", t.assistant_begin},
                           {"assistant_prompt", t.assistant_prompt},
                           {"assistant_end", t.assistant_end},
                           {"captions", t.captions},
                           {"stop", t.stop}};
  return OrderedJson{{t.name, row}}.dump(-1, ' ', /*ensure_ascii=*/false,
                                         OrderedJson::error_handler_t::replace);
}

ConversationTemplate load_template(const std::string& name) {
  if (name.starts_with("{")) {  // template_text
    const ConfigNode table = parse_table(name, "template");
    if (table.kind != ConfigNode::Kind::kMap || table.map.size() != 1) {
      throw ConfigError("template: expected one row {NAME: {...}}, got ", shown(name));
    }
    return read_row(table.map[0].key, table.map[0].value);
  }
  const size_t colon = name.rfind(".yaml:");
  ConfigNode table;
  std::string row_name = name;
  if (colon != name.npos) {
    const std::string path = name.substr(0, colon + 5);
    try {
      table = parse_table(read_file(path), path);
    } catch (const DataError& e) {
      throw ConfigError(e.what());
    }
    row_name = name.substr(colon + 6);
  } else {
    table = builtin_table();
  }
  if (const ConfigNode::Entry* row = find_row(table, row_name))
    return read_row(row->key, row->value);
  const std::vector<std::string> names = names_of(table);
  const std::string near = closest(row_name, names);
  const std::string file = colon == name.npos ? "" : " in " + name.substr(0, colon + 5);
  throw ConfigError("no template '", row_name, "'", file,
                    near.empty() ? "." : cat("; did you mean '", near, "'?"),
                    " Known: ", join(names, ", "), "; or FILE.yaml:NAME");
}

Rendered render_conversation(const ConversationTemplate& t, const std::vector<Turn>& turns,
                             MarkerPolicy markers, const std::string& where) {
  check_turns(turns, where);
  const bool open = turns.size() % 2 == 1 || strip(turns.back().value).empty();
  const size_t answers = (turns.size() + (turns.size() % 2)) / 2 - (open ? 1 : 0);
  if (t.captions && (turns.size() > 2 || count_markers(turns[0].value) == 0)) {
    throw DataError(where, ": template ", t.name, " takes one question with an ", kImageMarker,
                    " and one caption; got ", turns.size(), " turns and ",
                    count_markers(turns[0].value), " markers in the first");
  }
  Rendered out;
  out.text = t.begin;
  for (size_t i = 0; i < turns.size(); ++i) {
    int64_t count = count_markers(turns[i].value);
    if (count > 1 && markers == MarkerPolicy::kCollapse) {
      out.collapsed_markers += count - 1;
      count = 1;
    }
    out.images += count;
    std::string message = count > 0 ? markers_first(turns[i].value, count) : turns[i].value;
    if (i % 2 == 0) {
      if (t.captions)
        message = replace_all(markers_first(std::string(kImageMarker), count), "\n", "");
      out.text += (i == 0 ? t.first_user_begin : t.user_begin) + message + t.user_end;
    } else if (i / 2 < answers) {
      if (strip(turns[i].value).empty())
        throw DataError(where, ": turn ", i + 1, " of gpt is empty");
      // What assistant_begin adds to assistant_prompt (a blank) is for the model to write: it is a
      // token of its own where no piece joins it to the answer's first character, as before digits.
      const bool adds = t.assistant_begin.rfind(t.assistant_prompt, 0) == 0;
      const size_t given = adds ? t.assistant_prompt.size() : t.assistant_begin.size();
      const auto begin = static_cast<int64_t>(out.text.size() + given);
      out.text += t.assistant_begin;
      out.text += message + t.assistant_end;
      out.supervised.push_back({begin, static_cast<int64_t>(out.text.size())});
    }
  }
  if (open) out.text += t.assistant_prompt;
  return out;
}

Encoded encode_with_images(const Tokenizer& tokenizer, const std::string& text,
                           const std::vector<Span>& supervised) {
  Encoded out;
  const auto is_supervised = [&](int64_t begin, int64_t end) {
    for (const Span& span : supervised) {
      if (begin < span.begin && span.begin < end) {
        ++out.straddling;
        return false;
      }
      // A token of no width (a byte piece) belongs where it stands.
      if (begin < span.end && (end > span.begin || (begin == end && begin == span.begin)))
        return true;
    }
    return false;
  };
  const auto size = static_cast<int64_t>(text.size());
  bool first = true;
  for (int64_t at = 0; at <= size;) {
    const size_t found = text.find(kImageMarker, static_cast<size_t>(at));
    const int64_t end = found == text.npos ? size : static_cast<int64_t>(found);
    const std::vector<TokenSpan> tokens =
        tokenizer.encode_spans(std::string_view(text).substr(size_t(at), size_t(end - at)));
    for (size_t i = 0; i < tokens.size(); ++i) {
      const TokenSpan& token = tokens[i];
      const bool is_bos = i == 0 && tokenizer.adds_bos() && token.id == tokenizer.bos_id() &&
                          token.begin == token.end;
      if (is_bos && !first) continue;  // every piece is tokenised whole; one BOS stays
      // add_eos_token would end the text before every picture, and a prompt before its answer.
      const bool added_eos = i + 1 == tokens.size() && !is_bos && token.id == tokenizer.eos_id() &&
                             token.begin == token.end && token.begin == end - at;
      if (added_eos) continue;
      out.ids.push_back(token.id);
      const bool target = !is_bos && is_supervised(token.begin + at, token.end + at);
      out.labels.push_back(target ? token.id : kIgnore);
    }
    first = false;
    if (found == text.npos) break;
    out.ids.push_back(kImageId);
    out.labels.push_back(kIgnore);
    ++out.images;
    at = end + static_cast<int64_t>(kImageMarker.size());
  }
  return out;
}

ConversationEncoder::ConversationEncoder(ConversationTemplate conversation,
                                         const Tokenizer& tokenizer, MarkerPolicy markers)
    : template_(std::move(conversation)), tokenizer_(tokenizer), markers_(markers) {}

namespace {

void check_images(const Rendered& rendered, int64_t num_images, const std::string& where) {
  if (rendered.images != num_images) {
    throw DataError(where, ": ", rendered.images, " ", kImageMarker, " marker",
                    rendered.images == 1 ? "" : "s", " in the text, ", num_images, " image",
                    num_images == 1 ? "" : "s", " in the record");
  }
}

}  // namespace

Encoded ConversationEncoder::tokenize(const Rendered& rendered) const {
  Encoded out = encode_with_images(tokenizer_, rendered.text, rendered.supervised);
  out.collapsed_markers = rendered.collapsed_markers;
  return out;
}

Encoded ConversationEncoder::encode_training(const std::vector<Turn>& turns, int64_t num_images,
                                             const std::string& where) const {
  for (size_t i = 1; i < turns.size(); i += 2) {
    if (turns[i].from == "gpt" && strip(turns[i].value).empty()) {
      throw DataError(where, ": turn ", i + 1, " of gpt is empty: nothing to learn from it");
    }
  }
  const Rendered rendered = render_conversation(template_, turns, markers_, where);
  if (turns.size() % 2 == 1) {
    throw DataError(where, ": the conversation ends with a human turn; an answer is missing");
  }
  check_images(rendered, num_images, where);
  Encoded out = tokenize(rendered);
  if (std::all_of(out.labels.begin(), out.labels.end(), [](int32_t l) { return l == kIgnore; })) {
    throw DataError(where, ": no supervised token");
  }
  return out;
}

Encoded ConversationEncoder::encode_prompt(const std::vector<Turn>& turns, int64_t num_images,
                                           const std::string& where) const {
  const Rendered rendered = render_conversation(template_, turns, markers_, where);
  MGM_CHECK(turns.size() % 2 == 1 || strip(turns.back().value).empty(),
            "a prompt ends with a question");
  check_images(rendered, num_images, where);
  return tokenize(rendered);
}

std::vector<int32_t> ConversationEncoder::stop_ids() const {
  std::vector<int32_t> ids;
  if (tokenizer_.eos_id() >= 0) ids.push_back(tokenizer_.eos_id());
  for (const std::string& token : template_.stop) {
    const int32_t id = tokenizer_.token_id(token);
    if (id >= 0) ids.push_back(id);
  }
  return ids;
}

}  // namespace mgm
