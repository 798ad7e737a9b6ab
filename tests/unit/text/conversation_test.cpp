#include "text/conversation.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/fs.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

constexpr int32_t kImageId = -200, kIgnore = -100;
constexpr const char* kWhere = "a.json: record 3";

const Tokenizer& tokenizer() {
  static const auto loaded = load_tokenizer(MGM_SOURCE_DIR "/data/embedded/tokenizer");
  return *loaded;
}

template <class E, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

std::vector<Turn> turns(const std::vector<std::string>& values) {
  std::vector<Turn> out;
  for (size_t i = 0; i < values.size(); ++i)
    out.push_back({i % 2 == 0 ? "human" : "gpt", values[i]});
  return out;
}

Encoded train(const std::vector<Turn>& conversation, int64_t images, const char* name = "v1",
              MarkerPolicy markers = MarkerPolicy::kError) {
  return ConversationEncoder(load_template(name), tokenizer(), markers)
      .encode_training(conversation, images, kWhere);
}

std::string error(const std::vector<Turn>& conversation, int64_t images, const char* name = "v1") {
  return message_of<DataError>([&] { train(conversation, images, name); });
}

std::string supervised_text(const Encoded& encoded) {
  std::vector<int32_t> ids;
  for (const int32_t label : encoded.labels) {
    if (label != kIgnore) ids.push_back(label);
  }
  return tokenizer().decode(ids, /*skip_special=*/false);
}

TEST(Conversations, EveryTemplateSupervisesAnswersAndTheirEnds) {
  for (const std::string& name : template_names()) {
    const ConversationTemplate t = load_template(name);
    if (t.captions) continue;
    const Rendered rendered =
        render_conversation(t, turns({"<image>\nQ1", "A1", "Q2", "A2"}), MarkerPolicy::kError, "");
    ASSERT_EQ(rendered.supervised.size(), 2u) << name;
    EXPECT_EQ(rendered.images, 1);
    const std::string prompt =
        render_conversation(t, turns({"<image>\nQ1"}), MarkerPolicy::kError, "").text;
    EXPECT_EQ(rendered.text.rfind(prompt, 0), 0u) << name;
    EXPECT_EQ(rendered.supervised[0].begin, static_cast<int64_t>(prompt.size())) << name;
    for (size_t i = 0; i < 2; ++i) {
      const Span span = rendered.supervised[i];
      const std::string text =
          rendered.text.substr(size_t(span.begin), size_t(span.end - span.begin));
      EXPECT_EQ(t.assistant_prompt + text, cat(t.assistant_begin, "A", i + 1, t.assistant_end));
    }
    EXPECT_EQ(rendered.supervised[1].end, static_cast<int64_t>(rendered.text.size())) << name;
  }
}

TEST(Conversations, LabelsAreTheIdsOfTheAnswers) {
  const Encoded encoded = train(turns({"<image>\nWhat?", "7 cats.", "Sure?", "No"}), 1);
  ASSERT_EQ(encoded.ids.size(), encoded.labels.size());
  EXPECT_EQ(supervised_text(encoded), "7 cats.</s> No</s>");
  EXPECT_EQ(std::count(encoded.ids.begin(), encoded.ids.end(), kImageId), 1);
  for (size_t i = 0; i < encoded.ids.size(); ++i) {
    EXPECT_TRUE(encoded.labels[i] == kIgnore || encoded.labels[i] == encoded.ids[i]);
  }
  const Encoded plain = train(turns({"Tell me. <image>", "A cat."}), 1, "plain");
  EXPECT_EQ(supervised_text(plain), "A cat.\n");
  EXPECT_EQ(plain.ids[0], tokenizer().bos_id());
  EXPECT_EQ(plain.ids[1], kImageId);
}

TEST(Conversations, MarkersGoToTheFront) {
  const auto text = [](const std::string& question, MarkerPolicy policy) {
    const Rendered rendered =
        render_conversation(load_template("mistral_instruct"), turns({question}), policy, "");
    return cat(rendered.images, " ", rendered.collapsed_markers, " ", rendered.text);
  };
  EXPECT_EQ(text("  What? <image> ", MarkerPolicy::kError), "1 0 [INST] <image>\nWhat? [/INST]");
  EXPECT_EQ(text("<image>", MarkerPolicy::kError), "1 0 [INST] <image> [/INST]");
  EXPECT_EQ(text("a <image> b <image>", MarkerPolicy::kError),
            "2 0 [INST] <image>\n<image>\na  b [/INST]");
  EXPECT_EQ(text("a <image> b <image>", MarkerPolicy::kCollapse),
            "1 1 [INST] <image>\na  b [/INST]");
  EXPECT_EQ(text("  no marker ", MarkerPolicy::kError), "0 0 [INST]   no marker  [/INST]");
  EXPECT_EQ(text("<image 1>", MarkerPolicy::kError), "0 0 [INST] <image 1> [/INST]");
}

TEST(Conversations, BadOnesAreNamed) {
  EXPECT_EQ(error({}, 0), "a.json: record 3: the conversation is empty");
  EXPECT_EQ(
      error({{"gpt", "A"}, {"human", "Q"}}, 0),
      "a.json: record 3: the conversation begins with 'gpt'; it must begin with a human turn");
  EXPECT_EQ(error({{"human", "Q"}, {"human", "Q"}}, 0),
            "a.json: record 3: turn 2 is from 'human', expected 'gpt': human and gpt take turns");
  EXPECT_EQ(error({{"human", "Q"}, {"gpt", "A"}, {"gpt", "A"}}, 0),
            "a.json: record 3: turn 3 is from 'gpt', expected 'human': human and gpt take turns");
  for (const char* empty : {"", " ", "\n\t", "\xE3\x80\x80"}) {
    EXPECT_EQ(error(turns({"Q", empty, "Q", "A"}), 0),
              "a.json: record 3: turn 2 of gpt is empty: nothing to learn from it");
    EXPECT_EQ(error(turns({"Q", "A", "Q", empty}), 0),
              "a.json: record 3: turn 4 of gpt is empty: nothing to learn from it");
  }
  EXPECT_EQ(error(turns({"Q", "A", "Q"}), 0),
            "a.json: record 3: the conversation ends with a human turn; an answer is missing");
  EXPECT_EQ(error(turns({"<image> <image>", "A"}), 1),
            "a.json: record 3: 2 <image> markers in the text, 1 image in the record");
  EXPECT_EQ(error(turns({"Q", "A"}), 2),
            "a.json: record 3: 0 <image> markers in the text, 2 images in the record");
  EXPECT_NE(error(turns({"Q", "A"}), 0, "plain"), "");
  EXPECT_NE(error(turns({"<image>", "A", "Q", "A"}), 1, "plain"), "");
}

TEST(Conversations, LongTextIsWhole) {
  std::string text;
  for (int i = 0; i < 50000; ++i) text += "word ";
  const Encoded encoded = train(turns({"Q", text}), 0);
  EXPECT_GE(encoded.ids.size(), 50000u);
  EXPECT_EQ(supervised_text(encoded), text + "</s>");
}

TEST(Templates, AreFoundByNameAliasAndFile) {
  EXPECT_EQ(load_template("v1").name, "vicuna_v1");
  EXPECT_NE(message_of<ConfigError>([] { load_template("vicuna_v2"); }).find("'vicuna_v1'"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>([] { load_template("no/such.yaml:x"); }).find("no/such.yaml"),
            std::string::npos);
  const fs::path path = fs::temp_directory_path() / cat("mgm_templates_", ::getpid(), ".yaml");
  const auto from_file = [&](const std::string& row) {
    std::ofstream(path) << row;
    return message_of<ConfigError>([&] { load_template(path.string() + ":mine"); });
  };
  const std::string good = "mine: {user_begin: 'Q ', user_end: ' ', assistant_begin: 'A '";
  EXPECT_EQ(from_file(good + ", assistant_end: '.'}"), "");
  EXPECT_NE(from_file(good + "}").find(": template mine: 'assistant_end' is missing"),
            std::string::npos);
  EXPECT_NE(from_file(good + ", assistant_end: '.', ennd: x}").find("unknown key 'ennd'"),
            std::string::npos);
  EXPECT_NE(from_file("other: {}").find("no template 'mine'"), std::string::npos);
  EXPECT_EQ(from_file(good + ", assistant_end: '.', captions: true, stop: ['.']}"), "");
  EXPECT_NE(from_file(good + ", assistant_end: '.', captions: yes}")
                .find("captions is 'yes'; true or false"),
            std::string::npos);
  EXPECT_NE(from_file(good + ", assistant_end: '.', stop: ['.', {a: b}]}")
                .find("stop: expected text, got"),
            std::string::npos);
  fs::remove(path);
}

// The format writes the ends of its answers; the tokenizer's own would stand before every picture.
TEST(Conversation, ATokenizersOwnEndIsLeftOut) {
  const fs::path dir = fs::temp_directory_path() / cat("mgm_add_eos_", ::getpid());
  fs::create_directories(dir);
  fs::copy_file(MGM_SOURCE_DIR "/data/embedded/tokenizer/tokenizer.model", dir / "tokenizer.model");
  std::ofstream(dir / "tokenizer_config.json")
      << R"({"tokenizer_class": "LlamaTokenizer", "legacy": false, "add_eos_token": true})";
  const auto adding = load_tokenizer(dir.string());
  fs::remove_all(dir);
  ASSERT_EQ(adding->encode("a").back(), adding->eos_id());
  const std::vector<Turn> turns = {
      {"human", "<image>\nWhat?"}, {"gpt", "A bus."}, {"human", "And"}};
  const auto encoded = [&](const Tokenizer& t) {
    return ConversationEncoder(load_template("v1"), t, MarkerPolicy::kError)
        .encode_prompt(turns, 1, "here");
  };
  EXPECT_EQ(encoded(*adding).ids, encoded(tokenizer()).ids);
  EXPECT_EQ(encoded(*adding).labels, encoded(tokenizer()).labels);
}

TEST(Templates, AnswersThatNothingEnds) {
  EXPECT_EQ(endless_answers_warning(load_template("v1"), tokenizer()), "");
  EXPECT_EQ(endless_answers_warning(load_template("plain"), tokenizer()), "");
  ConversationTemplate format = load_template("v1");
  format.assistant_end = "<|im_end|>\n";
  EXPECT_NE(endless_answers_warning(format, tokenizer()).find("\"<|im_end|>\\n\""),
            std::string::npos);
  format.stop = {"<|im_end|>"};
  EXPECT_EQ(endless_answers_warning(format, tokenizer()), "");
}

TEST(Templates, StopIds) {
  const ConversationEncoder encoder(load_template("v1"), tokenizer(), MarkerPolicy::kError);
  EXPECT_EQ(encoder.stop_ids(), std::vector<int32_t>{tokenizer().eos_id()});
}

}  // namespace
}  // namespace mgm
