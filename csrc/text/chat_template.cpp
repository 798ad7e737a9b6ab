#include "text/chat_template.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/json.h"
#include "base/strings.h"
#include "config/node.h"
#include "formats/gguf.h"
#include "text/gguf_vocabulary.h"
#include "text/jinja/template.h"
#include "text/utf8.h"

namespace mgm {
namespace {

std::string text_of(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

// A list of {"name": ..., "template": ...}, of which "default" counts.
ChatTemplate of_list(const Json& list, const std::string& source) {
  std::vector<std::string> names;
  for (const Json& item : list) {
    if (!item.is_object() || text_of(item, "template").empty()) {
      return {source, "",
              "an item of the list in 'chat_template' is not {\"name\": ..., \"template\": text}"};
    }
    names.push_back(text_of(item, "name"));
  }
  const auto at = std::find(names.begin(), names.end(), "default");
  if (at == names.end()) {
    return {source, "",
            cat("'chat_template' is a list without a template named 'default'; it has ",
                names.empty() ? "none" : cat("'", shown(join(names, ", ")), "'"))};
  }
  return {cat(source, " ('default' of '", shown(join(names, ", ")), "')"),
          text_of(list[static_cast<size_t>(at - names.begin())], "template")};
}

// The value of "chat_template".
std::optional<ChatTemplate> of_json(const fs::path& file) {
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return std::nullopt;
  const Json json = read_json(file);
  if (!json.is_object() || !json.contains("chat_template")) return std::nullopt;
  const Json& value = json.at("chat_template");
  const std::string source = file.filename().string();
  if (value.is_null()) return ChatTemplate{source, "", "'chat_template' is null", /*none=*/true};
  if (value.is_array()) return of_list(value, source);
  if (!value.is_string()) {
    return ChatTemplate{source, "",
                        cat("'chat_template' is ", shown(value.dump()),
                            ", expected text or a list of named templates")};
  }
  std::string text = value.get<std::string>();
  if (text.empty()) return ChatTemplate{source, "", "'chat_template' is empty", /*none=*/true};
  return ChatTemplate{source, std::move(text)};
}

std::optional<ChatTemplate> of_gguf(const fs::path& path) {
  const MappedFile mapped(path);
  const GgufFile file =
      parse_gguf({reinterpret_cast<const char*>(mapped.data()), mapped.size()}, path.string());
  const auto it = file.metadata.find("tokenizer.chat_template");
  if (it == file.metadata.end()) return std::nullopt;
  const std::string source = path.filename().string();
  if (!it->second.string()) return ChatTemplate{source, "", "'tokenizer.chat_template' is no text"};
  return ChatTemplate{source, std::string(*it->second.string())};
}

std::optional<ChatTemplate> of_directory(const fs::path& dir) {
  std::error_code ignored;
  const fs::path jinja = dir / "chat_template.jinja";
  if (fs::exists(jinja, ignored)) return ChatTemplate{"chat_template.jinja", read_file(jinja)};
  std::optional<ChatTemplate> none;  // what is told if no file has one
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    std::optional<ChatTemplate> found = of_json(dir / name);
    if (found && !found->none) return found;
    if (found) none = std::move(found);
  }
  std::vector<fs::path> ggufs;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    if (entry.path().extension() == ".gguf") ggufs.push_back(entry.path());
  }
  if (ggufs.size() != 1) return none;
  auto found = of_gguf(ggufs[0]);
  return found ? found : none;
}

struct Case {
  const char* name;
  std::vector<Turn> turns;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kAll = {
      {"a question", {{"human", "How are you?"}}},
      {"a question and its answer", {{"human", "How are you?"}, {"gpt", "I am well."}}},
      {"a second question",
       {{"human", "How are you?"}, {"gpt", "I am well."}, {"human", "What is in it?"}}},
  };
  return kAll;
}

std::string render_theirs(const ChatTemplate& theirs, const std::vector<Turn>& turns,
                          const Tokenizer& tokenizer) {
  OrderedJson messages = OrderedJson::array();
  for (const Turn& turn : turns) {
    messages.push_back(
        {{"role", turn.from == "human" ? "user" : "assistant"}, {"content", turn.value}});
  }
  OrderedJson names = {{"messages", messages},
                       {"tools", nullptr},
                       {"documents", nullptr},
                       {"add_generation_prompt", turns.size() % 2 == 1}};
  for (const auto& [name, id] : {std::pair{"bos_token", tokenizer.bos_id()},
                                 {"eos_token", tokenizer.eos_id()},
                                 {"pad_token", tokenizer.pad_id()}}) {
    if (id >= 0) names[name] = tokenizer.piece(id);
  }
  return jinja::render(theirs.text, names);
}

std::string quoted(const std::vector<std::string>& text, size_t at) {
  constexpr size_t kShown = 32;
  if (at >= text.size()) return "nothing more";
  const size_t end = std::min(text.size(), at + kShown);
  const std::string part = join(
      {text.begin() + static_cast<ptrdiff_t>(at), text.begin() + static_cast<ptrdiff_t>(end)}, "");
  return OrderedJson(part).dump() + (end < text.size() ? "..." : "");
}

std::string difference(const std::string& theirs, const std::string& ours) {
  const std::vector<std::string> a = jinja::characters(valid_utf8(theirs)),
                                 b = jinja::characters(valid_utf8(ours));
  size_t at = 0;
  while (at < a.size() && at < b.size() && a[at] == b[at]) ++at;
  return cat("at character ", at, " it has ", quoted(a, at), ", the format ", quoted(b, at));
}

}  // namespace

std::optional<ChatTemplate> find_chat_template(const fs::path& model) {
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return of_directory(model);
  if (model.extension() == ".gguf") return of_gguf(model);
  const fs::path folder = model.parent_path();
  return of_directory(folder.empty() ? fs::path(".") : folder);
}

TemplateComparison compare_chat_template(const ChatTemplate& theirs,
                                         const ConversationTemplate& ours,
                                         const Tokenizer& tokenizer) {
  using Outcome = TemplateComparison::Outcome;
  if (ours.captions) return {Outcome::kNotCompared, "the format is for captions, not for chat"};
  if (!theirs.unusable.empty()) return {Outcome::kNotCompared, theirs.unusable};
  const std::string bos = tokenizer.adds_bos() ? tokenizer.piece(tokenizer.bos_id()) : "";
  for (const Case& one : cases()) {
    const std::string text =
        bos + render_conversation(ours, one.turns, MarkerPolicy::kError, ours.name).text;
    std::string other;
    try {
      other = render_theirs(theirs, one.turns, tokenizer);
    } catch (const jinja::Unsupported& e) {
      return {Outcome::kNotCompared, cat("it uses ", e.what())};
    } catch (const jinja::Failure& e) {
      return {Outcome::kNotCompared, cat(one.name, ": ", e.what())};
    }
    if (other != text) return {Outcome::kDiffers, cat(one.name, ": ", difference(other, text))};
  }
  return {};
}

namespace {

// Tokens that a format ends answers with.
std::vector<std::string> end_tokens(const ConversationTemplate& conversation) {
  std::vector<std::string> out = conversation.stop;
  const std::string& end = conversation.assistant_end;
  size_t open = std::string::npos;  // of a token "<...>", which holds no white space
  for (size_t i = 0; i < end.size(); ++i) {
    if (end[i] == '<') open = i;
    if (std::isspace(static_cast<unsigned char>(end[i]))) open = std::string::npos;
    if (end[i] != '>' || open == std::string::npos) continue;
    const std::string token = end.substr(open, i + 1 - open);
    if (token.size() > 2 && std::find(out.begin(), out.end(), token) == out.end())
      out.push_back(token);
    open = std::string::npos;
  }
  return out;
}

std::string warning_of(const fs::path& model, const ConversationTemplate& ours,
                       const Tokenizer& tokenizer) {
  std::optional<ChatTemplate> theirs;
  try {
    theirs = find_chat_template(model);
  } catch (const Error& e) {
    return cat("a chat template was not compared: ", e.what());
  }
  if (!theirs || theirs->none) return "";
  const TemplateComparison result = compare_chat_template(*theirs, ours, tokenizer);
  if (result.outcome == TemplateComparison::Outcome::kSame) return "";
  const bool differs = result.outcome == TemplateComparison::Outcome::kDiffers;
  return cat(model.string(), ": its chat template (", theirs->source, ") ",
             differs ? "differs from" : "was not compared with", " the format '", ours.name,
             "': ", result.what);
}

}  // namespace

std::string chat_template_warning(const std::vector<fs::path>& places,
                                  const ConversationTemplate& ours, const Tokenizer& tokenizer) {
  if (ours.captions) return "";
  for (const fs::path& place : places) {
    const std::string warning = place.empty() ? "" : warning_of(place, ours, tokenizer);
    if (!warning.empty()) return warning;
  }
  return "";
}

std::vector<std::string> missing_end_tokens(const ConversationTemplate& ours,
                                            const Tokenizer& tokenizer) {
  std::vector<std::string> out;
  for (const std::string& token : end_tokens(ours)) {
    if (tokenizer.token_id(token) < 0) out.push_back(token);
  }
  return out;
}

std::string endless_answers_warning(const ConversationTemplate& ours, const Tokenizer& tokenizer) {
  if (ours.captions) return "";
  std::vector<std::string> stops = ours.stop;
  if (tokenizer.eos_id() >= 0) stops.push_back(tokenizer.piece(tokenizer.eos_id()));
  for (const std::string& token : stops) {
    if (ours.assistant_end.find(token) != std::string::npos) return "";
  }
  return cat("the format '", ours.name, "' ends answers with ", Json(ours.assistant_end).dump(),
             ", in which no token ends generation (the tokenizer's EOS, the format's stop: ",
             stops.empty() ? "none" : join(stops, ", "), "): a model that learns it writes on");
}

}  // namespace mgm
