#include "formats/tfevents.h"

#include <gtest/gtest.h>

namespace mgm {
namespace {

// What protobuf makes of Event(wall_time=1.5, step=300,
// summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.25)])) of tensorboard 2.21.
TEST(TfEvents, BytesOfOneScalar) {
  const std::string record = tfevents_scalars(1.5, 300, {{"loss", 0.25}});
  const std::string payload = std::string("\x09\0\0\0\0\0\0\xf8\x3f\x10\xac\x02\x2a\x0d", 14) +
                              std::string("\x0a\x0b\x0a\x04loss\x15\0\0\x80\x3e", 13);
  ASSERT_EQ(record.size(), 8 + 4 + payload.size() + 4);
  EXPECT_EQ(record.substr(12, payload.size()), payload);
  EXPECT_EQ(record.substr(0, 8), std::string("\x1b\0\0\0\0\0\0\0", 8));
}

TEST(TfEvents, WritersOfOneSecondDoNotMeet) {
  const fs::path folder = fs::path(testing::TempDir()) / "tfevents_test";
  fs::remove_all(folder);
  make_dirs(folder);
  TfEventsWriter a(folder, 0, 1.0), b(folder, 0, 1.0);
  EXPECT_NE(a.path(), b.path());
  a.add(2.0, 1, {{"x", 1}, {"y", 2}});
  a.finish();
  b.finish();
  EXPECT_GT(fs::file_size(a.path()), fs::file_size(b.path()));
}

}  // namespace
}  // namespace mgm
