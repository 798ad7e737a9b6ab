#include "base/log_once.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/fs.h"
#include "base/log.h"

namespace mgm {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t out = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++out;
  return out;
}

TEST(LogOnce, TheSameTextOnceInAProcess) {
  const fs::path file = fs::path(testing::TempDir()) / "mgm_log_once.log";
  fs::remove(file);
  log::add_file(file.string());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      log::warn_once("a.gguf: one warning");
      log::warn_once("b.gguf: another");
    });
  }
  for (std::thread& thread : threads) thread.join();
  log::warn("a.gguf: always");
  log::warn("a.gguf: always");
  log::flush();
  const std::string text = read_file(file);
  EXPECT_EQ(count(text, "a.gguf: one warning"), 1u) << text;
  EXPECT_EQ(count(text, "b.gguf: another"), 1u) << text;
  EXPECT_EQ(count(text, "a.gguf: always"), 2u) << text;
}

}  // namespace
}  // namespace mgm
