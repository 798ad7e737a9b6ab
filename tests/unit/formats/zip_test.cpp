#include "formats/zip.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/crc32.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

using Contents = std::vector<std::pair<std::string, std::string>>;

std::string archive(const Contents& contents) {
  ZipLayout layout;
  std::string out;
  for (const auto& [name, content] : contents) {
    out += layout.header(name, content.size(), crc32(content)) + content;
  }
  return out + layout.end();
}

const Contents kSome = {
    {"a/data.pkl", "pickle"}, {"a/data/0", std::string(1237, 'x')}, {"empty", ""}};

TEST(Crc32, KnownAnswers) {
  EXPECT_EQ(crc32("123456789"), 0xCBF43926u);  // the check values of the CRC catalogue
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(crc32(""), 0u);
  const std::string text = "any text of more than eight bytes";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(crc32(std::string_view(text).substr(cut), crc32(text.substr(0, cut))), crc32(text));
  }
}

TEST(Zip, WritesAndReadsBack) {
  const std::string file = archive(kSome);
  const std::vector<ZipEntry> entries = parse_zip(file, "f.zip");
  ASSERT_EQ(entries.size(), kSome.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    EXPECT_EQ(entries[i].name, kSome[i].first);
    EXPECT_EQ(file.substr(entries[i].begin, entries[i].end - entries[i].begin), kSome[i].second);
    EXPECT_EQ(entries[i].begin % 64, 0u);
  }
}

TEST(Zip, EmptyArchive) { EXPECT_TRUE(parse_zip(archive({}), "f.zip").empty()); }

// Content beyond 4 GB, of which only the bytes around it exist.
TEST(Zip, Zip64Fields) {
  ZipLayout layout;
  const uint64_t huge = (uint64_t{1} << 32) + 12345;
  const std::string first = layout.header("big", huge, 1), second = layout.header("b", 3, 2);
  EXPECT_NE(first.find(std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8)), std::string::npos);
  const std::string end = layout.end();
  uint64_t value = 0;
  const size_t field = end.find("big") + 3 + 4;
  std::memcpy(&value, end.data() + field, 8);
  EXPECT_EQ(value, huge);
  std::memcpy(&value, end.data() + end.find("PK\x01\x02", 10) + 46 + 1 + 4 + 16, 8);
  EXPECT_EQ(value, first.size() + huge);  // where the second entry begins
  EXPECT_EQ((first.size() + huge + second.size()) % 64, 0u);
}

// The same directory with its small values moved to a zip64 field and a zip64 end record.
TEST(Zip, ReadsZip64) {
  const std::string content = "hello";
  ZipLayout layout;
  std::string file = layout.header("n", content.size(), crc32(content)) + content;
  const uint64_t directory = file.size(), offset = 0, size = content.size(), one = 1;
  const auto put = [&](const void* data, size_t bytes) {
    file.append(static_cast<const char*>(data), bytes);
  };
  std::string record("PK\x01\x02", 4);
  record.resize(46, '\0');
  std::memset(record.data() + 20, 0xff, 8);
  record[28] = 1;   // name
  record[30] = 28;  // extra
  std::memset(record.data() + 42, 0xff, 4);
  file += record + "n" + std::string("\x01\x00\x18\x00", 4);
  for (const uint64_t value : {size, size, offset}) put(&value, 8);
  const uint64_t end64 = file.size(), directory_size = end64 - directory;
  file += std::string("PK\x06\x06", 4) + std::string(20, '\0');
  for (const uint64_t value : {one, one, directory_size, directory}) put(&value, 8);
  file += std::string("PK\x06\x07", 4) + std::string(4, '\0');
  put(&end64, 8);
  file += std::string(4, '\0') + std::string("PK\x05\x06", 4) + std::string(4, '\0') +
          std::string(12, '\xff') + std::string(2, '\0');
  const std::vector<ZipEntry> entries = parse_zip(file, "f.zip");
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(file.substr(entries[0].begin, entries[0].end - entries[0].begin), content);
}

TEST(Zip, RefusesWhatIsNoArchive) {
  for (const std::string& text : {std::string(), std::string("PK"), std::string(100, 'x')}) {
    expect_checkpoint_error([&] { parse_zip(text, "f.bin"); }, {"f.bin", "not a zip", "torch"});
  }
}

// Every cut and every single altered byte gives an archive or an error, never a read outside (the
// sanitizer build watches).
TEST(Zip, CutsAndAlteredBytes) {
  const std::string file = archive(kSome);
  for (size_t cut = 0; cut < file.size(); ++cut) {
    EXPECT_THROW(parse_zip(file.substr(0, cut), "f.zip"), CheckpointError) << cut;
  }
  for (size_t at = 0; at < file.size(); ++at) {
    for (const char value : {'\0', '\xff', '\x01'}) {
      std::string altered = file;
      altered[at] = value;
      try {
        for (const ZipEntry& e : parse_zip(altered, "f.zip")) {
          EXPECT_LE(e.begin, e.end);
          EXPECT_LE(e.end, altered.size());
        }
      } catch (const CheckpointError&) {
      }
    }
  }
}

TEST(Zip, RefusesByName) {
  const size_t record = archive(kSome).find("PK\x01\x02");
  std::string compressed = archive(kSome);
  compressed[record + 10] = 8;
  expect_checkpoint_error([&] { parse_zip(compressed, "f.zip"); }, {"'a/data.pkl'", "compressed"});
  std::string encrypted = archive(kSome);
  encrypted[record + 8] = 1;
  expect_checkpoint_error([&] { parse_zip(encrypted, "f.zip"); }, {"'a/data.pkl'", "encrypted"});
  const std::string twice = archive({{"a", "1"}, {"b", "2"}, {"a", "3"}});
  expect_checkpoint_error([&] { parse_zip(twice, "f.zip"); }, {"'a' occurs twice"});
}

}  // namespace
}  // namespace mgm
