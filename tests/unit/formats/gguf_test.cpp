#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "unit/formats/expect_error.h"
#include "unit/formats/gguf_builder.h"

namespace mgm {
namespace {

constexpr uint32_t kF32 = 0, kQ8_0 = 8;
using Raw = GgufBuilder;

std::string array(uint32_t element, uint64_t count, const std::string& bytes) {
  return Raw::raw(element) + Raw::raw(count) + bytes;
}

GgufFile parse(const std::string& file) { return parse_gguf(file, "f.gguf"); }

void refuse(const GgufBuilder& builder, std::initializer_list<std::string> parts) {
  const std::string file = builder.build();
  expect_checkpoint_error([&] { parse(file); }, parts);
}

GgufBuilder small() {
  GgufBuilder out;
  out.meta("general.architecture", std::string("llama"));
  out.meta("n", 7u);
  out.meta("eps", 0.5f);
  out.meta("minus", 11, Raw::raw<int64_t>(-9));
  out.meta("yes", 7, Raw::raw<uint8_t>(1));
  out.meta("double", 12, Raw::raw(0.25));
  out.meta("tokens", 9, array(8, 3, Raw::text("a") + Raw::text("") + Raw::text("ccc")));
  out.meta("types", 9, array(5, 2, Raw::raw<int32_t>(-1) + Raw::raw<int32_t>(4)));
  out.meta("nested", 9, array(9, 2, array(0, 2, "ab") + array(8, 1, Raw::text("x"))));
  out.tensor("w", {4, 2}, kF32, std::string(32, 'w'));
  out.tensor("q", {32, 3}, kQ8_0, std::string(3 * 34, 'q'));
  out.tensor("none", {0, 5}, kF32, "");
  out.tensor("scalar", {}, kF32, "1234");
  return out;
}

TEST(Gguf, ReadsMetadata) {
  const std::string bytes = small().build();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.version, 3u);
  EXPECT_EQ(file.alignment, 32u);
  EXPECT_EQ(file.metadata.at("general.architecture").string(), "llama");
  EXPECT_EQ(file.metadata.at("n").integer(), 7);
  EXPECT_EQ(file.metadata.at("n").number(), 7.0);
  EXPECT_EQ(file.metadata.at("eps").number(), 0.5);
  EXPECT_EQ(file.metadata.at("minus").integer(), -9);
  EXPECT_EQ(file.metadata.at("double").number(), 0.25);
  EXPECT_EQ(file.metadata.at("yes").boolean(), true);
  const auto tokens = file.metadata.at("tokens").elements();
  ASSERT_TRUE(tokens && tokens->size() == 3);
  EXPECT_EQ((*tokens)[0].string(), "a");
  EXPECT_EQ((*tokens)[1].string(), "");
  EXPECT_EQ((*tokens)[2].string(), "ccc");
  const auto types = file.metadata.at("types").elements();
  ASSERT_TRUE(types && types->size() == 2);
  EXPECT_EQ((*types)[0].integer(), -1);
  EXPECT_EQ((*types)[1].integer(), 4);
  const auto nested = file.metadata.at("nested").elements();
  ASSERT_TRUE(nested && nested->size() == 2);
  EXPECT_EQ((*(*nested)[0].elements())[1].integer(), 'b');
  EXPECT_EQ((*(*nested)[1].elements())[0].string(), "x");
}

TEST(Gguf, ValuesOfAnotherKindGiveNothing) {
  const std::string bytes = small().build();
  const GgufFile file = parse(bytes);
  const GgufValue &text = file.metadata.at("general.architecture"), &n = file.metadata.at("n"),
                  &eps = file.metadata.at("eps"), &list = file.metadata.at("types");
  EXPECT_FALSE(text.integer() || text.number() || text.boolean() || text.elements());
  EXPECT_FALSE(n.string() || n.boolean() || n.elements());
  EXPECT_FALSE(eps.integer());
  EXPECT_FALSE(list.integer() || list.string());
  const std::string huge =
      GgufBuilder().meta("u", 10, Raw::raw(std::numeric_limits<uint64_t>::max())).build();
  EXPECT_FALSE(parse(huge).metadata.at("u").integer());
}

TEST(Gguf, ReadsTensors) {
  const std::string bytes = small().build();
  const GgufFile file = parse(bytes);
  ASSERT_EQ(file.tensors.size(), 4u);
  const GgufTensor &w = file.tensors[0], &q = file.tensors[1], &none = file.tensors[2],
                   &scalar = file.tensors[3];
  EXPECT_EQ(w.shape, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(bytes.substr(w.begin, w.end - w.begin), std::string(32, 'w'));
  EXPECT_EQ(q.type.name, "Q8_0");
  EXPECT_EQ(q.shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(bytes.substr(q.begin, q.end - q.begin), std::string(3 * 34, 'q'));
  EXPECT_EQ(none.begin, none.end);
  EXPECT_EQ(bytes.substr(scalar.begin, scalar.end - scalar.begin), "1234");
  for (const GgufTensor& t : file.tensors) EXPECT_LE(t.end, bytes.size());
}

TEST(Gguf, TakesItsOwnAlignmentAndVersion2) {
  GgufBuilder builder;
  builder.version = 2;
  builder.meta("general.alignment", 8u);
  builder.entry("a", {1}, kF32, 0).entry("b", {1}, kF32, 8).data(std::string(12, 'x'));
  const std::string bytes = builder.build();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.version, 2u);
  EXPECT_EQ(file.tensors[1].begin, file.tensors[0].begin + 8);
  EXPECT_EQ(file.tensors[0].begin % 8, 0u);
}

// Only the padding behind the last tensor may be missing.
TEST(Gguf, EveryTruncationIsRefused) {
  const std::string whole = small().build();
  const uint64_t end = parse(whole).tensors[3].end;
  for (size_t size = 0; size < end; ++size) {
    SCOPED_TRACE(size);
    // A copy of its own: AddressSanitizer sees any read behind it.
    const std::vector<char> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    expect_checkpoint_error([&] { parse_gguf({cut.data(), cut.size()}, "f.gguf"); }, {"f.gguf"});
  }
  EXPECT_EQ(parse(whole.substr(0, end)).tensors.size(), 4u);
}

TEST(Gguf, RefusesOtherFiles) {
  GgufBuilder magic = small();
  magic.magic = "GGUX";
  refuse(magic, {"f.gguf", "no GGUF file"});
  for (const auto& [version, text] : {std::pair{0u, "version 0"},
                                      {1u, "version 1"},
                                      {4u, "version 4"},
                                      {0x03000000u, "big-endian"}}) {
    GgufBuilder builder = small();
    builder.version = version;
    refuse(builder, {"f.gguf", text});
  }
}

TEST(Gguf, RefusesBadMetadata) {
  refuse(GgufBuilder().meta("a", 1u).meta("a", 2u), {"metadata 'a' occurs twice"});
  refuse(GgufBuilder().meta("a", 13, "xxxx"), {"metadata 'a'", "unknown value type 13"});
  refuse(GgufBuilder().meta("a", 7, "\2"), {"metadata 'a'", "truth value of 2"});
  refuse(GgufBuilder().meta("a", 9, array(7, 2, std::string("\1\3"))), {"truth value of 3"});
  refuse(GgufBuilder().meta("a", 9, array(99, 1, "x")), {"unknown value type 99"});
  refuse(GgufBuilder().meta("a", 8, Raw::raw<uint64_t>(1ull << 60)), {"metadata 'a'", "needs"});
  // More elements than bytes: nothing of that size may be allocated.
  for (const uint32_t element : {0u, 6u, 8u, 9u, 12u}) {
    refuse(GgufBuilder().meta("a", 9, array(element, 1ull << 61, std::string(64, 'x'))),
           {"metadata 'a'", "2305843009213693952 elements"});
  }
  std::string deep = array(0, 0, "");
  for (int i = 0; i < 5; ++i) deep = array(9, 1, deep);
  refuse(GgufBuilder().meta("a", 9, deep), {"nest deeper than 4"});
  for (const uint32_t alignment : {0u, 3u, 33u, 1u << 21}) {
    refuse(GgufBuilder().meta("general.alignment", alignment),
           {"general.alignment", std::to_string(alignment)});
  }
  refuse(GgufBuilder().meta("general.alignment", 0.5f), {"general.alignment"});
}

TEST(Gguf, RefusesBadTensors) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const std::string data(64, 'x');
  const auto one = [&](const std::vector<int64_t>& dims, uint32_t type, uint64_t offset) {
    return GgufBuilder().entry("a", dims, type, offset).data(data);
  };
  refuse(one({1}, 4, 0), {"tensor 'a'", "unknown type 4"});  // Q4_2, removed from ggml
  refuse(one({1}, 1000, 0), {"unknown type 1000"});
  refuse(one({1, 1, 1, 1, 1}, kF32, 0), {"5 dimensions"});
  refuse(one({-1}, kF32, 0), {"impossible shape [-1]"});
  refuse(one({-32, -1}, kQ8_0, 0), {"impossible shape"});
  refuse(one({kMost, kMost}, kF32, 0), {"impossible shape"});
  refuse(one({kMost}, kF32, 0), {"impossible shape"});
  refuse(one({9}, kF32, ~31ull), {"impossible shape", "offset"});
  refuse(one({33}, kQ8_0, 0), {"33 elements", "Q8_0"});
  refuse(one({4}, kF32, 4), {"byte 4", "alignment 32"});
  refuse(one({17}, kF32, 0), {"ends at byte 68", "has 64", "cut"});
  refuse(one({1}, kF32, 64), {"ends at byte 68", "has 64"});
  refuse(one({1}, kF32, 1ull << 62), {"cut"});
  refuse(GgufBuilder().entry("a", {1}, kF32, 0).entry("a", {1}, kF32, 32).data(data),
         {"tensor 'a' occurs twice"});
  refuse(GgufBuilder().entry("a", {9}, kF32, 0).entry("b", {1}, kF32, 32).data(data),
         {"'a' and 'b' overlap"});
  refuse(GgufBuilder().entry("b", {1}, kF32, 32).entry("a", {1}, kF32, 32).data(data), {"overlap"});
  refuse(GgufBuilder().entry(std::string(70000, 'n'), {1}, kF32, 0).data(data), {"70000 bytes"});
}

// Scales of 1 and counted integers; random blocks are compared with PyPI gguf in tests/parity.
TEST(GgufTypes, UnpacksQ4AndQ8) {
  std::vector<float> out(32);
  // Halves: 1.0, and the minimum -2.0.
  std::string q8("\0\x3c", 2), q4_0 = q8, q4_1("\0\x3c\0\xc0", 4);
  for (int i = 0; i < 32; ++i) q8 += static_cast<char>(i - 16);
  for (int i = 0; i < 16; ++i) q4_0 += static_cast<char>(i | (15 - i) << 4);
  q4_1 += q4_0.substr(2);
  const auto run = [&](uint32_t id, const std::string& bytes) {
    ASSERT_EQ(gguf_type(id)->bytes, bytes.size());
    dequantise(*gguf_type(id), reinterpret_cast<const uint8_t*>(bytes.data()), 32, out.data());
  };
  run(8, q8);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], i - 16);
  run(2, q4_0);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(out[static_cast<size_t>(i)], i - 8);
    EXPECT_EQ(out[static_cast<size_t>(i + 16)], 7 - i);
  }
  run(3, q4_1);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], i - 2);
}

TEST(GgufTypes, KnowsWhatItCannotRead) {
  EXPECT_EQ(gguf_type(4), nullptr);
  ASSERT_NE(gguf_type(10), nullptr);
  EXPECT_FALSE(can_dequantise(*gguf_type(10)));  // Q2_K
  for (const uint32_t id : {0u, 1u, 2u, 3u, 8u, 12u, 14u, 30u}) {
    EXPECT_TRUE(can_dequantise(*gguf_type(id))) << id;
  }
  float out = 0;
  const uint8_t byte = 0;
  EXPECT_THROW(dequantise(*gguf_type(10), &byte, 256, &out), InternalError);
  EXPECT_THROW(dequantise(*gguf_type(8), &byte, 31, &out), InternalError);
}

}  // namespace
}  // namespace mgm
