#include "formats/torch_file.h"

#include <gtest/gtest.h>

#include "formats/crc32.h"
#include "formats/pickle.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

std::string file_with(const PickledTensor& tensor, const std::string& storage,
                      const std::string& byte_order = "little") {
  ZipLayout zip;
  const std::string pickle = make_state_pickle({tensor});
  std::string out;
  for (const auto& [name, content] :
       {std::pair("m/data.pkl", pickle), {"m/byteorder", byte_order}, {"m/data/0", storage}}) {
    out += zip.header(name, content.size(), crc32(content)) + content;
  }
  return out + zip.end();
}

void refuse(const PickledTensor& tensor, size_t storage_bytes, const std::string& part) {
  const std::string file = file_with(tensor, std::string(storage_bytes, 'x'));
  expect_checkpoint_error([&] { parse_torch_file(file, "f.bin"); }, {"f.bin", "'t'", part});
}

TEST(TorchFile, WritesAndReadsBack) {
  const std::vector<TorchFileEntry> entries = {
      {"a", "F32", {3, 1, 2}}, {"b", "U8", {}}, {"e", "F16", {0}}};
  const std::vector<std::string> bytes = {std::string(24, 'a'), "b", ""};
  TorchFileLayout layout(entries);
  std::string file = layout.begin();
  for (size_t i = 0; i < bytes.size(); ++i) {
    file += layout.before(i, bytes[i].size(), crc32(bytes[i])) + bytes[i];
  }
  EXPECT_THROW(layout.before(0, 23, 0), InternalError);
  file += layout.end();
  const TorchFile parsed = parse_torch_file(file, "f.bin");
  ASSERT_EQ(parsed.tensors.size(), 3u);
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(parsed.tensors[i].name, entries[i].name);
    EXPECT_EQ(parsed.tensors[i].shape, entries[i].shape);
    EXPECT_EQ(file.substr(parsed.tensors[i].begin, bytes[i].size()), bytes[i]);
  }
  EXPECT_EQ(parsed.tensors[0].stride, (std::vector<int64_t>{2, 2, 1}));
}

TEST(TorchFile, ViewsStayInTheirStorage) {
  const std::string file = file_with({"t", "F32", "0", 1, {2, 2}, {1, 3}}, std::string(24, 'x'));
  const TorchTensor t = parse_torch_file(file, "f.bin").tensors.at(0);
  EXPECT_LE(t.begin + (1 + 3 + 1) * 4, file.size());
  refuse({"t", "F32", "0", 2, {2, 2}, {1, 3}}, 24, "elements 2 to 7 of a storage that holds 6");
  refuse({"t", "F32", "0", 0, {7}, {1}}, 24, "holds 6");
  refuse({"t", "F32", "0", 0, {1000}, {0}}, 24, "expanded view");
  refuse({"t", "F32", "0", 0, {2}, {-1}}, 24, "negative");
  refuse({"t", "F32", "0", 0, {-2}, {1}}, 24, "negative");
  refuse({"t", "F32", "0", INT64_MAX, {1}, {1}}, 24, "holds 6");
  refuse({"t", "F32", "0", 0, {INT64_MAX, 2}, {1, 1}}, 24, "holds 6");
  refuse({"t", "F32", "0", 0, {INT64_MAX, 3}, {INT64_MAX, 1}}, 24, "impossible");
  refuse({"t", "F32", "7", 0, {1}, {1}}, 24, "storage '7' is not in the archive");
}

TEST(TorchFile, RefusesOtherArchives) {
  const PickledTensor tensor = {"t", "F32", "0", 0, {1}, {1}};
  expect_checkpoint_error([&] { parse_torch_file(file_with(tensor, "1234", "big"), "f.bin"); },
                          {"big-endian"});
  ZipLayout zip;
  const std::string other = zip.header("readme", 1, 0) + "x" + zip.end();
  expect_checkpoint_error([&] { parse_torch_file(other, "f.bin"); }, {"without data.pkl"});
  // The first bytes of torch's format before 1.6.
  expect_checkpoint_error(
      [] { parse_torch_file("\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.", "f.bin"); },
      {"before torch 1.6", "safetensors"});
}

}  // namespace
}  // namespace mgm
