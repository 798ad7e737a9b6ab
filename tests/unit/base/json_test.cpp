#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace mgm {
namespace {

std::string error_of(const std::string& text) {
  try {
    parse_json(text, "file.json");
  } catch (const DataError& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Json, ErrorsHaveAPlace) {
  EXPECT_EQ(error_of("[1,\n 2,]").substr(0, 14), "file.json:2:4:");
  EXPECT_EQ(error_of("").substr(0, 14), "file.json:1:1:");
  EXPECT_EQ(error_of("[1]"), "accepted");
}

TEST(Json, NumbersBeyondADoubleAndBrokenTextAreRefused) {
  EXPECT_NE(error_of("[11e308]").find("not valid JSON"), std::string::npos);
  EXPECT_NE(error_of("[\"\xff\"]").find("not valid JSON"), std::string::npos);
}

}  // namespace
}  // namespace mgm
