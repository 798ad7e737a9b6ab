// Hashes of weights that ranks compare before a start.
#include "train/doctor/identity.h"

#include <gtest/gtest.h>

#include "base/fs.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/gguf_builder.h"

namespace mgm {
namespace {

constexpr uint32_t kQ8_0 = 8;
constexpr int64_t kBlocks = 4000, kBlockBytes = 34;

using IdentityTest = FilesTest;

std::string gguf_with(std::string values) {
  GgufBuilder out;
  out.meta("general.architecture", std::string("llama"));
  out.meta("llama.attention.head_count", 2u);
  return out.tensor("output.weight", {32, kBlocks}, kQ8_0, std::move(values)).build();
}

TEST_F(IdentityTest, OfAGgufFileTheBytesInItCount) {
  RunConfig config;
  config.model.init = ModelInit::kPretrained;
  config.model.path = (folder_ / "a.gguf").string();
  const auto hash_of = [&](const std::string& values, WeightContent content) {
    write_file_atomic(config.model.path, gguf_with(values));
    return weights_hash(config, content);
  };
  const std::string zeros(kBlocks * kBlockBytes, '\0');
  std::string last = zeros, between = zeros, unseen = zeros;
  last.back() = 1;
  between[zeros.size() / 2] = 1;  // between the second and the third of four places
  // A number of a block whose scale is 0: unpacked, the tensor is the same.
  unseen[5] = 7;
  for (const auto content : {WeightContent::kSampled, WeightContent::kWhole}) {
    EXPECT_EQ(hash_of(zeros, content), hash_of(zeros, content));
    EXPECT_NE(hash_of(zeros, content), hash_of(last, content));
    EXPECT_NE(hash_of(zeros, content), hash_of(unseen, content));
  }
  EXPECT_EQ(hash_of(zeros, WeightContent::kSampled), hash_of(between, WeightContent::kSampled));
  EXPECT_NE(hash_of(zeros, WeightContent::kWhole), hash_of(between, WeightContent::kWhole));
  EXPECT_EQ(hash_of(zeros, WeightContent::kNone), hash_of(last, WeightContent::kNone));
}

}  // namespace
}  // namespace mgm
