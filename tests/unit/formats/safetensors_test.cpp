#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/dtype.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

std::string with_length(const std::string& json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + json + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(file, file.size(), "f.safetensors");
}

void refuse(const std::string& json, size_t data_bytes, std::initializer_list<std::string> parts) {
  SCOPED_TRACE(json);
  expect_checkpoint_error([&] { parse(with_length(json, data_bytes)); }, parts);
}

TEST(Safetensors, WritesAndReadsBack) {
  std::vector<TensorEntry> tensors = {{"b.odd", "BF16", {3, 5, 7}, 0, 0},
                                      {"a", "F32", {}, 0, 0},
                                      {"empty", "I64", {0, 3}, 0, 0},
                                      {"z", "BOOL", {1}, 0, 0},
                                      {"\"quoted\"\n", "F64", {2}, 0, 0}};
  std::string file = make_safetensors_header(tensors);
  EXPECT_EQ(file.size() % 8, 0u);
  file.append(3 * 5 * 7 * 2 + 4 + 0 + 1 + 16, 'd');
  const SafetensorsHeader header = parse(file);
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(header.tensors.size(), tensors.size());
  for (const TensorEntry& t : header.tensors) {
    const auto written = std::find_if(tensors.begin(), tensors.end(),
                                      [&](const TensorEntry& w) { return w.name == t.name; });
    ASSERT_NE(written, tensors.end()) << t.name;
    EXPECT_EQ(t.dtype, written->dtype);
    EXPECT_EQ(t.shape, written->shape);
    EXPECT_EQ(t.begin, written->begin);
    EXPECT_EQ(t.end, written->end);
    EXPECT_EQ(t.begin % dtype_bytes(t.dtype), 0u) << t.name << " is not aligned";
  }
}

TEST(Safetensors, NoTensors) {
  std::vector<TensorEntry> none;
  EXPECT_TRUE(parse(make_safetensors_header(none)).tensors.empty());
  EXPECT_TRUE(parse(with_length("{}", 0)).tensors.empty());
}

TEST(Safetensors, RefusesANameTwiceWhenWriting) {
  std::vector<TensorEntry> twice = {{"a", "U8", {1}, 0, 0}, {"a", "U8", {1}, 0, 0}};
  EXPECT_THROW(make_safetensors_header(twice), InternalError);
  std::vector<TensorEntry> reserved = {{"__metadata__", "U8", {1}, 0, 0}};
  EXPECT_THROW(make_safetensors_header(reserved), InternalError);
}

TEST(Safetensors, RefusesBadLengths) {
  expect_checkpoint_error([] { parse(""); }, {"f.safetensors", "too few"});
  expect_checkpoint_error([] { parse("1234567"); }, {"too few"});
  expect_checkpoint_error([] { parse(std::string(8, '\xff')); }, {"more than 100000000"});
  std::string longer = with_length("{}", 0);
  longer[0] = 3;
  expect_checkpoint_error([&] { parse(longer); }, {"header of 3 bytes in a file of 10"});
  // The whole file is not there: only its beginning.
  expect_checkpoint_error(
      [] { parse_safetensors_header(with_length("{}", 0).substr(0, 9), 10, "f"); }, {"cut"});
}

TEST(Safetensors, RefusesBadJson) {
  refuse("", 0, {"not valid JSON"});
  refuse("{", 0, {"not valid JSON"});
  refuse("[]", 0, {"no JSON object"});
  refuse("[[[[[[[[[[]]]]]]]]]]", 0, {"nests deeper"});
  refuse(R"({"a":1})", 0, {"'a'", "malformed"});
  refuse(R"({"a":{"dtype":"F32","shape":[1]}})", 4, {"'a'", "data_offsets"});
  refuse(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, {"'a'", "malformed"});
  refuse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, {"'a'", "no pair"});
  refuse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, {"'a'", "no pair"});
  refuse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}})", 4, {"'a'", "no pair"});
  refuse(R"({"__metadata__":7})", 0, {"__metadata__"});
  refuse(R"({"__metadata__":{"format":7}})", 0, {"__metadata__", "format"});
}

TEST(Safetensors, RefusesNamesAndKeysTwice) {
  refuse(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
         R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
         2, {"'a' occurs twice"});
  refuse(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1,
         {"'dtype' occurs twice"});
}

TEST(Safetensors, RefusesShapesThatDoNotFitTheBytes) {
  refuse(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, {"'a'", "need 12"});
  refuse(R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, {"unknown dtype 'F33'"});
  refuse(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, {"size -1"});
  refuse(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1, {"size 1.5"});
  // 2^32 * 2^32 bytes would be zero in 64 bits.
  refuse(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
         {"impossible shape"});
  refuse(R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0,
         {"impossible shape"});
  refuse(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0,
         {"impossible shape"});
}

TEST(Safetensors, RefusesOffsetsThatDoNotTile) {
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3, {"'a'", "cut"});
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 5, {"1 bytes behind"});
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, {"'a'", "need 4"});
  refuse(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})", 4, {"'a'", "hole"});
  refuse(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
         R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         4, {"'b'", "overlap"});
  refuse(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":)"
         R"([18446744073709551615,18446744073709551615]}})",
         0, {"'a'", "cut"});
}

TEST(Dtype, SizesAndShapes) {
  EXPECT_EQ(dtype_bytes("BF16"), 2u);
  EXPECT_EQ(dtype_bytes("F8_E4M3"), 1u);
  EXPECT_EQ(dtype_bytes("bf16"), 0u);
  EXPECT_EQ(shape_bytes({}, 4), 4u);
  EXPECT_EQ(shape_bytes({3, 0, 5}, 8), 0u);
  EXPECT_EQ(shape_bytes({int64_t{1} << 62, 4}, 1), std::nullopt);
  EXPECT_EQ(shape_bytes({-1}, 1), std::nullopt);
}

}  // namespace
}  // namespace mgm
