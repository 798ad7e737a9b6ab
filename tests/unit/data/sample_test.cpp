#include "data/sample.h"

#include <gtest/gtest.h>

#include <sys/stat.h>

#include "base/error.h"
#include "data/check.h"
#include "data/show.h"
#include "image/canvas.h"
#include "image/decode.h"
#include "types/batch.h"
#include "unit/data/small_data.h"

namespace mgm {
namespace {

class Samples : public ::testing::Test {
 protected:
  SampleResult build(const OrderedJson& record) {
    data.write({record});
    return OpenData(data).builder.build(0);
  }
  Sample good(const OrderedJson& record) {
    SampleResult result = build(record);
    if (const auto* problem = std::get_if<Problem>(&result)) {
      ADD_FAILURE() << describe(*problem);
      return {};
    }
    return std::get<Sample>(std::move(result));
  }
  // "kind: message" with the folder left out; "" for a good sample.
  std::string problem(const OrderedJson& record) {
    SampleResult result = build(record);
    const auto* found = std::get_if<Problem>(&result);
    if (found == nullptr) return "";
    EXPECT_EQ(found->index, 0);
    return relative(cat(kind_name(found->kind), ": ", found->message));
  }
  std::string with_image(std::string_view name, std::string_view bytes) {
    data.dir.write(cat("images/", name), bytes);
    return problem(SmallData::record("x", {std::string(name)}, {"<image>\nQ", "A"}));
  }
  std::string relative(const std::string& text) { return replace_all(text, data.dir.path(""), ""); }
  SmallData data;
};

TEST_F(Samples, PictureRowsTakeTheMarkersPlace) {
  const auto record =
      SmallData::record("x", {"a.png", "b.jpg"}, {"<image>\n<image>\nWhich?", "The first."});
  const Sample sample = good(record);
  EXPECT_EQ(sample.id, "x");
  ASSERT_EQ(sample.pictures.size(), 2u);
  EXPECT_EQ(sample.pictures[1].width, 24);
  EXPECT_EQ(sample.pictures[1].height, 40);
  EXPECT_EQ(sample.pictures[1].canvas.width, 32);
  EXPECT_EQ(sample.pictures[1].canvas.hwc.size(), 32u * 32 * 3);
  ASSERT_EQ(sample.ids.size(), sample.labels.size());

  const ConversationEncoder encoder(load_template("v1"), *data.tokenizer, MarkerPolicy::kError);
  const OpenData open(data);
  const Encoded encoded = encoder.encode_training(open.index.record(0).turns, 2, "test");
  std::vector<int64_t> ids, labels;
  int64_t targets = 0;
  for (size_t t = 0; t < encoded.ids.size(); ++t) {
    const bool image = encoded.ids[t] == kImageTokenIndex;
    ids.insert(ids.end(), image ? 4 : 1, encoded.ids[t]);
    labels.insert(labels.end(), image ? 4 : 1, image ? kIgnoreIndex : encoded.labels[t]);
    targets += !image && encoded.labels[t] != kIgnoreIndex ? 1 : 0;
  }
  EXPECT_EQ(sample.ids, ids);
  EXPECT_EQ(sample.labels, labels);
  EXPECT_EQ(sample.targets, targets);
  EXPECT_GT(targets, 2);
}

TEST_F(Samples, CanvasIsTheImageRooms) {
  const Sample sample = good(SmallData::record("x", {"b.jpg"}, {"<image>\nQ", "A"}));
  const std::string path = data.dir.path("images/b.jpg");
  const RgbImage expected =
      make_canvas(decode_rgb(read_file(path), path), ImageAspect::kPad, 32, Rgb{122, 116, 104});
  EXPECT_EQ(sample.pictures[0].canvas.hwc, expected.hwc);
  EXPECT_EQ(sample.pictures[0].path, path);
}

TEST_F(Samples, TextOnly) {
  const Sample sample = good(SmallData::record("", {}, {"Hello?", "Hello."}));
  EXPECT_TRUE(sample.pictures.empty());
  EXPECT_GT(sample.targets, 0);
}

TEST_F(Samples, PlainTemplateDiscardsTheHumanText) {
  data.config.text.template_name = "plain";
  const Sample one = good(SmallData::record("x", {"a.png"}, {"<image>\nDescribe.", "A cat."}));
  const Sample two = good(SmallData::record("x", {"a.png"}, {"Tell me. <image>", "A cat."}));
  EXPECT_EQ(one.ids, two.ids);
  EXPECT_EQ(problem(SmallData::record("x", {"a.png"}, {"<image>", "A", "more", "B"})).substr(0, 22),
            "unusable conversation:");
}

TEST_F(Samples, MarkerMismatch) {
  EXPECT_EQ(problem(SmallData::record("x", {"a.png"}, {"<image> <image> Q", "A"})),
            "image marker mismatch: 2 <image> markers in the text, 1 picture in 'image'; each "
            "picture needs one marker");
  EXPECT_EQ(problem(SmallData::record("x", {"a.png"}, {"Q", "A"})).substr(0, 33),
            "image marker mismatch: 0 <image> ");
  EXPECT_EQ(problem(SmallData::record("x", {}, {"<image>\nQ", "A"})).substr(0, 33),
            "image marker mismatch: 1 <image> ");
  data.config.text.markers = MarkerPolicy::kCollapse;
  const Sample sample = good(SmallData::record("x", {"a.png"}, {"<image> <image> Q", "A"}));
  EXPECT_EQ(sample.collapsed_markers, 1);
  EXPECT_EQ(std::count(sample.ids.begin(), sample.ids.end(), kImageTokenIndex), 4);
}

TEST_F(Samples, UnusableConversations) {
  OrderedJson assistant_first = SmallData::record("x", {}, {"Q", "A"});
  assistant_first["conversations"].erase(0);
  EXPECT_EQ(problem(assistant_first).substr(0, 22), "unusable conversation:");
  const std::string empty = problem(SmallData::record("x", {}, {"Q", ""}));
  EXPECT_EQ(empty.substr(0, 22), "unusable conversation:") << empty;
  EXPECT_NE(problem(SmallData::record("x", {}, {"Q"})), "");
  OrderedJson twice = SmallData::record("x", {}, {"Q", "A", "Q"});
  twice["conversations"][2]["from"] = "gpt";
  EXPECT_EQ(problem(twice).substr(0, 22), "unusable conversation:");
}

TEST_F(Samples, NothingIsCutSilently) {
  std::string text;
  for (int i = 0; i < 50000; ++i) text += "word ";
  const std::string error = problem(SmallData::record("x", {"a.png"}, {"<image>\n" + text, "A"}));
  EXPECT_EQ(error.substr(0, 25), "cut by the length limit: ") << error.substr(0, 200);
  EXPECT_NE(error.find(" of text, 4 visual) are "), std::string::npos);
  EXPECT_NE(error.find(" above text.max_length 256;"), std::string::npos);

  const auto record = SmallData::record("x", {"a.png"}, {"<image>\nQ", "A"});
  data.config.text.max_length = static_cast<int64_t>(good(record).ids.size());
  good(record);
  --data.config.text.max_length;
  EXPECT_NE(problem(record).find(" are 1 above text.max_length "), std::string::npos);
}

TEST_F(Samples, MissingPictures) {
  EXPECT_EQ(problem(SmallData::record("x", {"no.png"}, {"<image>\nQ", "A"})),
            "missing image: images/no.png: no such file");
  fs::create_directories(data.dir.path("images/folder.png"));
  EXPECT_EQ(problem(SmallData::record("x", {"folder.png"}, {"<image>\nQ", "A"})).substr(0, 14),
            "missing image:");
  data.config.data.sources[0].images = data.dir.path("nowhere");
  const std::string error = relative(message_of<DataError>(
      [&] { build(SmallData::record("x", {"a.png"}, {"<image>\nQ", "A"})); }));
  EXPECT_EQ(error.find("data.sources: the image folder nowhere of data.json does not exist (first "
                       "needed by record 0)."),
            0u)
      << error;
  EXPECT_EQ(problem(SmallData::record("x", {}, {"Q", "A"})), "");  // nothing needs the folder
}

TEST_F(Samples, RewritesAreTriedOnlyWhenTheFileIsMissing) {
  data.config.data.sources[0].rewrites = {{"ocr", ".jpg", ".png"},
                                          {"VG_100K", "VG_100K_2", "images"},
                                          {"VG_100K", "VG_100K", "images"}};
  data.dir.write("images/ocr/1.png", encode_png(noise_image(8, 8, 4)));
  data.dir.write("images/vg/images/7.jpg", encode_jpeg(noise_image(8, 8, 5), 90));
  const auto sample = [&](const std::string& name) {
    return good(SmallData::record("x", {name}, {"<image>\nQ", "A"}));
  };
  EXPECT_EQ(sample("ocr/1.jpg").pictures[0].path, data.dir.path("images/ocr/1.png"));
  EXPECT_EQ(sample("ocr/1.jpg").rewritten_paths, 1);
  EXPECT_EQ(sample("vg/VG_100K/7.jpg").rewritten_paths, 1);
  EXPECT_EQ(sample("vg/VG_100K_2/7.jpg").pictures[0].path, data.dir.path("images/vg/images/7.jpg"));
  EXPECT_EQ(sample("a.png").rewritten_paths, 0);
  EXPECT_EQ(problem(SmallData::record("x", {"ocr/2.jpg"}, {"<image>\nQ", "A"})),
            "missing image: images/ocr/2.jpg, images/ocr/2.png: no such file");
}

TEST_F(Samples, BrokenPictures) {
  const std::string png = encode_png(noise_image(50, 40, 1));
  const std::string jpeg = encode_jpeg(noise_image(50, 40, 2), 90);
  for (const std::string& error :
       {with_image("cut.png", png.substr(0, png.size() / 2)),
        with_image("cut.jpg", jpeg.substr(0, jpeg.size() / 2)), with_image("empty.png", ""),
        with_image("text.jpg", "this is no picture"),
        with_image("huge.png", png_that_claims(20000, 20000)),
        with_image("bomb.png", png_that_claims(60000, 60000)),
        with_image("liar.png", png_that_claims(13000, 13000))}) {
    EXPECT_EQ(error.substr(0, 21), "broken image: images/") << error;
  }
}

TEST_F(Samples, OddPicturesThatAreFine) {
  EXPECT_EQ(with_image("one.png", encode_png(noise_image(1, 1, 1))), "");
  EXPECT_EQ(with_image("high.png", encode_png(noise_image(1, 5000, 1))), "");
  EXPECT_EQ(with_image("wide.png", encode_png(noise_image(5000, 1, 1))), "");
  EXPECT_EQ(with_image("really_jpeg.png", encode_jpeg(noise_image(9, 7, 1), 90)), "");
}

TEST_F(Samples, TokenizerOfAnotherVocabulary) {
  data.config.model.llm.vocab_size = data.tokenizer->vocab_size() - 1;
  data.write(SmallData::records(1));
  const std::string error = message_of<ConfigError>([&] { OpenData open(data); });
  EXPECT_EQ(
      error.substr(0, cat("text.tokenizer has ", data.tokenizer->vocab_size(), " tokens, ").size()),
      cat("text.tokenizer has ", data.tokenizer->vocab_size(), " tokens, "));
}

TEST_F(Samples, CheckListsEveryDefect) {
  auto records = SmallData::records(23);
  records[3]["image"] = "no.png";  // two markers, one picture
  records[8]["image"] = "no.png";
  records[9]["conversations"][1]["value"] = "";
  records[10]["id"] = true;
  data.write(records);
  const OpenData open(data);
  int64_t last = 0;
  for (const int workers : {0, 1, 3}) {
    const CheckReport report =
        check_data(open.builder, workers, [&](int64_t done, int64_t, int64_t) { last = done; });
    EXPECT_EQ(last, 23);
    EXPECT_EQ(report.records, 23);
    EXPECT_EQ(report.good(), 19);
    EXPECT_EQ(report.text_only, 5);
    EXPECT_EQ(report.images, 4 + 5 + 2 * 4 + 1 - 0);
    EXPECT_EQ(report.visual_tokens, report.images * 4);
    EXPECT_EQ(report.lengths.size(), 19u);
    ASSERT_EQ(report.problems.size(), 4u);
    EXPECT_EQ(report.problems[0].index, 3);
    EXPECT_EQ(report.problems[0].id, "r3");
    EXPECT_EQ(report.problems[1].kind, ProblemKind::kMissingImage);
    EXPECT_EQ(report.problems[3].index, 10);
    EXPECT_EQ(report.by_kind[static_cast<size_t>(ProblemKind::kRecord)], 1);
    const std::string text = format_check(report, open.builder, data.config);
    EXPECT_NE(text.find("data.json: record 8 (id 'r8'): missing image: "), std::string::npos)
        << text;
    EXPECT_EQ(check_to_json(report, open.builder)["defects"].size(), 4u);
  }
}

TEST_F(Samples, ShowMarksSupervisedTokens) {
  const Sample sample =
      good(SmallData::record("x<y", {"a.png"}, {"<image>\nWhat? 猫", "A cat & 犬."}));
  const OpenData open(data);
  const std::string text = show_text(sample, open.builder, {});
  EXPECT_NE(text.find("<image 1: 4 visual tokens>"), std::string::npos) << text;
  EXPECT_NE(text.find("What? 猫"), std::string::npos) << text;
  EXPECT_NE(text.find("A cat & 犬.</s>]]"), std::string::npos) << text;
  EXPECT_NE(text.find("picture " + data.dir.path("images/a.png") + ": 40 x 24"), std::string::npos);
  EXPECT_NE(text.find("HR canvas 32 x 32, 1 LR view of 28 x 28"), std::string::npos) << text;
  const std::string html = show_html(sample, open.builder);
  EXPECT_NE(html.find("<h1>x&lt;y</h1>"), std::string::npos);
  EXPECT_NE(html.find("data:image/jpeg;base64,/9j/"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);  // nothing from outside
}

}  // namespace
}  // namespace mgm
