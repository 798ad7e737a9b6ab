#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json_problem.h"

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
  EXPECT_EQ(error_of("[1,\n \"11e308\", -11e308]"),
            "file.json:2:12: the number -11e308 is beyond what a 64-bit float holds (1.8e308)");
  EXPECT_NE(error_of("[\"\xff\"]").find("not valid JSON"), std::string::npos);
}

TEST(Json, MistakesAreSaidInWords) {
  EXPECT_EQ(error_of("[1,\n 2,]"),
            "file.json:2:4: not valid JSON: unexpected ']'; expected '[', '{', or a literal");
  EXPECT_EQ(error_of("[tru]"),
            "file.json:1:5: not valid JSON: invalid literal; last read: '[tru]'");
  const Json json = Json::parse(R"({"a": 1})");
  const auto problem = [](const auto& use) {
    try {
      use();
    } catch (const Json::exception& e) {
      return json_problem(e);
    }
    return std::string("none");
  };
  EXPECT_EQ(problem([&] { return json.at("a").get<std::string>(); }),
            "expected string, got number");
  EXPECT_EQ(problem([&] { return json.at("b"); }), "the key 'b' is missing");
  EXPECT_EQ(problem([&] { return json.at("a").at("b"); }),
            "expected an object or a list, got number");
}

TEST(Json, BigIntegersAreFound) {
  std::string digits;
  const std::string fits =
      R"(["99999999999999999999", 18446744073709551615, -9223372036854775808, 1e99)";
  EXPECT_EQ(find_big_integer(fits + "]", digits), std::string::npos);
  EXPECT_EQ(find_big_integer(fits + ",18446744073709551616]", digits), fits.size() + 1);
  EXPECT_EQ(digits, "18446744073709551616");
  EXPECT_EQ(find_big_integer("-9223372036854775809", digits), 0u);
}

}  // namespace
}  // namespace mgm
