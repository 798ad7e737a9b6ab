#include "base/fs.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "base/error.h"
#include "base/file_access.h"
#include "base/hash.h"

namespace mgm {
namespace {

class Fs : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / cat("mgm_fs_test_", ::getpid());
    fs::remove_all(folder_);
    make_dirs(folder_ / "a" / "b");
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path file(const std::string& name) const { return folder_ / name; }
  fs::path folder_;
};

// The message of what `call` throws.
template <class E, class Call>
std::string thrown(const Call& call) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST_F(Fs, WhatIsWrittenIsRead) {
  for (const size_t size : {0, 1, 7, 65535, 65536, 65537, 1000003}) {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 31 + i / 251);
    write_file_atomic(file("x"), content);
    EXPECT_EQ(read_file(file("x")), content) << size;
    const MappedFile mapped(file("x"));
    ASSERT_EQ(mapped.size(), size);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(mapped.data()), size), content) << size;
    EXPECT_EQ(hash_file(file("x")), hash64(content)) << size;
    EXPECT_FALSE(fs::exists(file("x.tmp")));
  }
}

TEST_F(Fs, FilesOfUnknownSizeAreReadWhole) {
  EXPECT_FALSE(read_file("/proc/self/status").empty());  // says it has 0 bytes
}

TEST_F(Fs, ReadingNamesThePathAndTheReason) {
  EXPECT_EQ(thrown<DataError>([&] { read_file(file("none")); }),
            file("none").string() + ": cannot open: No such file or directory");
  EXPECT_EQ(thrown<DataError>([&] { read_file(folder_); }),
            folder_.string() + ": is a folder, expected a regular file");
  EXPECT_EQ(thrown<DataError>([&] { MappedFile mapped(file("none")); }),
            file("none").string() + ": cannot open: No such file or directory");
  EXPECT_EQ(thrown<DataError>([&] { MappedFile mapped(folder_); }),
            folder_.string() + ": is a folder, expected a regular file");
  EXPECT_THROW(hash_file(file("none")), DataError);
}

TEST_F(Fs, OnlyRegularFilesAreOpened) {
  ASSERT_EQ(::mkfifo(file("pipe").c_str(), 0600), 0);
  fs::create_symlink("/dev/zero", file("device"));
  for (const auto& [name, kind] : {std::pair{"pipe", "a pipe"}, {"device", "a device"}}) {
    const std::string expected =
        cat(file(name).string(), ": is ", kind, ", expected a regular file");
    EXPECT_EQ(thrown<DataError>([&] { read_file(file(name)); }), expected);
    EXPECT_EQ(thrown<DataError>([&] { MappedFile mapped(file(name)); }), expected);
    EXPECT_EQ(thrown<DataError>([&] { read_beginning(file(name), 4); }), expected);
  }
  write_file_atomic(file("x"), "GGUFxyz");
  EXPECT_EQ(read_beginning(file("x"), 4), "GGUF");
  EXPECT_EQ(read_beginning(file("x"), 100), "GGUFxyz");
}

TEST_F(Fs, NoOutputTakesAnInputsPlace) {
  write_file_atomic(file("in"), "1");
  write_file_atomic(file("a/in"), "2");
  fs::create_symlink(file("in"), file("link"));
  fs::create_hard_link(file("in"), file("second"));
  fs::create_symlink(file("a"), file("b"));
  FileUse files;
  files.reads(file("in"));
  files.reads(file("a"));
  for (const char* name : {"in", "link", "second", "a/in", "b/in", "a/../in"}) {
    EXPECT_NE(thrown<ConfigError>([&] { files.writes("--out", file(name)); }).find("the same file"),
              std::string::npos)
        << name;
  }
  EXPECT_NO_THROW(files.writes("--out", file("new")));
  EXPECT_THROW(files.writes("--png", file("a/../new")), ConfigError);
  EXPECT_THROW(files.writes("--png", file("a")), ConfigError);
  EXPECT_THROW(files.writes("--png", file("none/x")), InternalError);
  EXPECT_FALSE(fs::exists(file("new")));
}

TEST_F(Fs, WritingNamesThePathAndTheReason) {
  const std::string missing = thrown<InternalError>([&] { write_file_atomic(file("n/x"), "1"); });
  EXPECT_NE(missing.find("n/x"), missing.npos) << missing;
  EXPECT_NE(missing.find("No such file or directory"), missing.npos) << missing;
  write_file_atomic(file("plain"), "1");
  EXPECT_THROW(make_dirs(file("plain") / "below"), InternalError);
  EXPECT_THROW(fsync_file(file("none")), InternalError);
}

TEST_F(Fs, AFullDiskIsAnErrorWithAdvice) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  FileWriter writer("/dev/full");
  const std::string text = thrown<InternalError>([&] { writer.write("12345"); });
  EXPECT_EQ(text,
            "/dev/full: cannot write 5 bytes at 0: No space left on device; free some space or "
            "choose another folder");
}

// A reader that looks all the time sees one whole content or the other.
TEST_F(Fs, AnAtomicWriteIsNeverSeenInPart) {
  const std::string a(100003, 'a'), b(70001, 'b');
  write_file_atomic(file("x"), a);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 30; ++i) write_file_atomic(file("x"), i % 2 ? a : b);
    done = true;
  });
  int reads = 0, broken = 0;
  while (!done || reads == 0) {
    const std::string seen = read_file(file("x"));
    broken += seen != a && seen != b ? 1 : 0;
    ++reads;
  }
  writer.join();
  EXPECT_EQ(broken, 0) << "of " << reads;
}

TEST_F(Fs, AFailedAtomicWriteLeavesTheOldContent) {
  write_file_atomic(file("x"), "old");
  fs::create_directory(file("x.tmp"));  // where the new content would go first
  EXPECT_THROW(write_file_atomic(file("x"), "new"), InternalError);
  EXPECT_EQ(read_file(file("x")), "old");
  EXPECT_THROW(write_file_atomic(folder_ / "a", "new"), InternalError);  // a folder is in the way
}

TEST_F(Fs, TheWriterCountsAndHashesWhatItWrites) {
  FileWriter writer(file("x"));
  EXPECT_EQ(writer.hash(), hash64(""));
  writer.write("ab");
  writer.write("");
  writer.write("cde");
  EXPECT_EQ(writer.size(), 5u);
  EXPECT_EQ(writer.hash(), hash64("abcde"));
  writer.finish();
  EXPECT_EQ(read_file(file("x")), "abcde");
}

TEST(Hash, KnownAnswer) {
  EXPECT_EQ(hex64(hash64("")), "2d06800538d394c2");  // XXH3_64bits of nothing, from its own tests
  EXPECT_NE(hash64("a"), hash64("a", 1));
  EXPECT_EQ(hex64(0x1f), "000000000000001f");
}

TEST_F(Fs, AMapOutlivesItsFile) {
  write_file_atomic(file("x"), "abc");
  MappedFile first(file("x"));
  fs::remove(file("x"));
  const MappedFile second(std::move(first));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(second.data()), 3), "abc");
  EXPECT_EQ(first.size(), 0u);  // NOLINT(bugprone-use-after-move): the state is defined
}

TEST_F(Fs, ALockExcludesEveryoneElse) {
  {
    const FileLock lock(file("lock"), "run folder x");
    EXPECT_EQ(thrown<InternalError>([&] { FileLock again(file("lock"), "run folder x"); }),
              cat("run folder x is locked (", file("lock").string(),
                  "): another process is using it. Wait for that process to end, or choose another "
                  "folder."));
  }
  const FileLock free(file("lock"), "run folder x");
}

// Killed, not ended: nobody unlocks, and the next process still gets in.
TEST_F(Fs, ALockGoesWithItsProcess) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const FileLock lock(file("lock"), "x");
    const ssize_t put = ::write(ready[1], "1", 1);
    while (put == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THROW(FileLock(file("lock"), "x"), InternalError);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_NO_THROW(FileLock(file("lock"), "x"));
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace mgm
