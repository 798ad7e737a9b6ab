// JSON lines of questions: what is read, and every line that is refused.
#include "infer/prompt_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"

namespace mgm {
namespace {

const std::string kPicture = MGM_SOURCE_DIR "/data/embedded/images/apple.png";

class PromptFileTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() / cat("mgm_prompts_", ::getpid(), ".jsonl");
  }
  void TearDown() override { fs::remove(path_); }

  PromptFile read(const std::string& text) {
    std::ofstream(path_) << text;
    return read_prompt_file(path_);
  }

  void fails(const std::string& text, const std::string& says) {
    try {
      read(text);
      ADD_FAILURE() << "no error: " << text;
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(path_.string() + says), std::string::npos) << e.what();
    }
  }

  fs::path path_;
};

TEST_F(PromptFileTest, ReadsEveryForm) {
  const PromptFile file = read(
      "{\"id\": 7, \"prompt\": \"What?\"}\r\n\n"
      "{\"id\": \"7\", \"prompt\": \"Wo ist \\u00e4\\n?\", \"image\": \"" +
      kPicture + "\"}\n{\"prompt\": \"\", \"image\": [\"" + kPicture + "\", \"" + kPicture +
      "\"], \"id\": -1}\n{\"id\": 8, \"prompt\": \"x\", \"image\": null}");
  ASSERT_EQ(file.prompts.size(), 4u);
  EXPECT_EQ(file.ids, (std::vector<Json>{7, "7", -1, 8}));
  EXPECT_EQ(file.prompts[0].turns.size(), 1u);
  EXPECT_EQ(file.prompts[0].turns[0].from, "human");
  EXPECT_EQ(file.prompts[1].turns[0].value, "Wo ist \xC3\xA4\n?");
  EXPECT_EQ(file.prompts[1].images, std::vector<std::string>{kPicture});
  EXPECT_EQ(file.prompts[2].images.size(), 2u);
  EXPECT_TRUE(file.prompts[3].images.empty());
  EXPECT_EQ(file.prompts[2].where, path_.string() + ":4");
}

TEST_F(PromptFileTest, RefusesWhatItDoesNotUnderstand) {
  fails("", ": holds no question");
  fails("\n \n", ": holds no question");
  fails("{\"id\": 1, \"prompt\": \"a\"}\n{\"id\": 2,", ":2:10: not valid JSON");
  fails("[1]", ":1: expected an object");
  fails("{\"id\": 1}", ":1: 'prompt' is missing");
  fails("{\"prompt\": \"a\"}", ":1: 'id' is missing");
  fails("{\"id\": 1.5, \"prompt\": \"a\"}", ":1: 'id' must be");
  fails("{\"id\": 1, \"prompt\": 3}", ":1: 'prompt' must be text");
  fails("{\"id\": 1, \"prompt\": \" \"}", ":1: 'prompt' is empty");
  fails("{\"id\": 1, \"prompt\": \"a\", \"images\": \"b\"}", ":1: unknown key 'images'");
  fails("{\"id\": 1, \"prompt\": \"a\", \"image\": 3}", ":1: 'image' must be");
  fails("{\"id\": 1, \"prompt\": \"a\", \"image\": [null]}", ":1: 'image' must be");
  fails("{\"id\": 1, \"prompt\": \"a\", \"image\": \"no.png\"}", ":1: no picture at 'no.png'");
  fails("{\"id\": 1, \"prompt\": \"a\"}\n\n{\"id\": 1, \"prompt\": \"b\"}",
        ":3: id 1 is that of line 1");
  fails("{\"id\": 1, \"prompt\": \"\xFF\"}", ":1:22: not valid JSON");
  EXPECT_THROW(read_prompt_file("/no/such/file.jsonl"), DataError);
}

TEST_F(PromptFileTest, AnswersAreLines) {
  Answer answer;
  answer.text = "Zwei \"\xC3\x84pfel\"\n\xFF";
  answer.stopped = true;
  EXPECT_EQ(
      answer_line("7", answer),
      "{\"id\":\"7\",\"answer\":\"Zwei \\\"\xC3\x84pfel\\\"\\n\xEF\xBF\xBD\",\"stopped\":true}\n");
  answer.error = "q.jsonl:3: cut";
  EXPECT_EQ(answer_line(5, answer), "{\"id\":5,\"error\":\"q.jsonl:3: cut\"}\n");
}

}  // namespace
}  // namespace mgm
