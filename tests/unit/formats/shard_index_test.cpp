#include "formats/shard_index.h"

#include <gtest/gtest.h>

#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

TEST(ShardIndex, WritesAndReadsBack) {
  ShardIndex index;
  index.weight_map = {{"b", "model-00002-of-00002.safetensors"},
                      {"a", "model-00001-of-00002.safetensors"},
                      {"c", "model-00001-of-00002.safetensors"}};
  index.total_size = 14532187008;
  const ShardIndex back = parse_shard_index(make_shard_index(index), "i.json");
  EXPECT_EQ(back.weight_map, index.weight_map);
  EXPECT_EQ(back.files(), (std::vector<std::string>{"model-00001-of-00002.safetensors",
                                                    "model-00002-of-00002.safetensors"}));
  EXPECT_NE(make_shard_index(index).find("\"total_size\": 14532187008"), std::string::npos);
}

TEST(ShardIndex, Refuses) {
  const auto refuse = [](const std::string& text, const std::string& part) {
    SCOPED_TRACE(text);
    expect_checkpoint_error([&] { parse_shard_index(text, "i.json"); }, {"i.json", part});
  };
  refuse("", "not a shard index");
  refuse("[]", "not a shard index");
  refuse("{}", "weight_map");
  refuse(R"({"weight_map":{}})", "names no tensor");
  refuse(R"({"weight_map":["a"]})", "no JSON object");
  refuse(R"({"weight_map":{"a":1}})", "not a shard index");
  refuse(R"({"weight_map":{"a":"x","b":"y","a":"z"}})", "'a' occurs twice");
  refuse(R"({"weight_map":{"a":"../x"}})", "\"../x\"");
  refuse(R"({"weight_map":{"a":"/etc/passwd"}})", "no file name");
  refuse(R"({"weight_map":{"a":".."}})", "no file name");
  refuse(R"({"weight_map":{"a":""}})", "no file name");
  refuse(R"({"weight_map":{"a":"b\u0000c"}})", "no file name");
}

// The same key twice elsewhere is no concern of the weights.
TEST(ShardIndex, KeysOutsideTheMapMayRepeat) {
  const std::string text =
      R"({"metadata":{"a":1,"a":2,"total_size":1e300},"weight_map":{"a":"x"},"more":{"a":1,"a":2}})";
  EXPECT_EQ(parse_shard_index(text, "i.json").weight_map.at("a"), "x");
}

}  // namespace
}  // namespace mgm
