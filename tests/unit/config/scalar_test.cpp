#include "config/scalar.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "base/strings.h"

namespace mgm {
namespace {

template <class T>
std::string text_of(const std::variant<T, BadScalar>& parsed) {
  if (const auto* bad = std::get_if<BadScalar>(&parsed)) return bad->message;
  return cat(std::get<T>(parsed));
}

TEST(Scalar, WholeNumbers) {
  EXPECT_EQ(std::get<int64_t>(parse_int("0")), 0);
  EXPECT_EQ(std::get<int64_t>(parse_int("-1")), -1);
  EXPECT_EQ(std::get<int64_t>(parse_int("+8")), 8);
  EXPECT_EQ(std::get<int64_t>(parse_int("1e6")), 1000000);
  EXPECT_EQ(std::get<int64_t>(parse_int("127E+4")), 1270000);
  EXPECT_EQ(std::get<int64_t>(parse_int("0e99999999999999999999")), 0);
  EXPECT_EQ(std::get<int64_t>(parse_int("9223372036854775807")),
            std::numeric_limits<int64_t>::max());
  EXPECT_EQ(std::get<int64_t>(parse_int("-9223372036854775808")),
            std::numeric_limits<int64_t>::min());
}

TEST(Scalar, NoWholeNumbers) {
  EXPECT_EQ(text_of(parse_int("9223372036854775808")),
            "expected a whole number, got '9223372036854775808', which does not fit in 64 bits");
  for (const char* text :
       {"",    "-",    "+", "e5",   "1e",    "1e+", "--1",   "1 ",   " 1",  "1-1",
        "nan", "true", ".", "1..2", "1e5.5", "1.0", "1_000", "0x10", "010", "\xd9\xa1"}) {
    EXPECT_TRUE(std::holds_alternative<BadScalar>(parse_int(text))) << text;
  }
  EXPECT_TRUE(std::holds_alternative<BadScalar>(parse_int("4", /*quoted=*/true)));
}

TEST(Scalar, Numbers) {
  EXPECT_EQ(std::get<double>(parse_number(".5")), 0.5);
  EXPECT_EQ(std::get<double>(parse_number("5.")), 5.0);
  EXPECT_EQ(std::get<double>(parse_number("+2e-5")), 2e-5);
  EXPECT_TRUE(std::signbit(std::get<double>(parse_number("-0.0"))));
  EXPECT_EQ(std::get<double>(parse_number("0.1")), 0.1);
}

TEST(Scalar, NeverNanOrInfinity) {
  for (const char* text : {".nan", ".NaN", "nan", "NAN", "-nan", ".inf", "-.inf", "+.Inf", "inf",
                           "INFINITY", "1e309", "-1e309", "1e99999999999"}) {
    EXPECT_TRUE(std::holds_alternative<BadScalar>(parse_number(text))) << text;
    EXPECT_TRUE(std::holds_alternative<BadScalar>(parse_int(text))) << text;
  }
}

TEST(Scalar, OnlyTrueAndFalseAreBooleans) {
  EXPECT_TRUE(std::get<bool>(parse_bool("true")));
  EXPECT_FALSE(std::get<bool>(parse_bool("false")));
  for (const char* text : {"yes", "Yes", "on", "ON", "y", "True", "TRUE", "1"}) {
    EXPECT_EQ(text_of(parse_bool(text)),
              cat("expected true or false, got '", text, "'; write true"));
  }
  for (const char* text : {"no", "No", "off", "OFF", "n", "False", "FALSE", "0"}) {
    EXPECT_EQ(text_of(parse_bool(text)),
              cat("expected true or false, got '", text, "'; write false"));
  }
  EXPECT_EQ(text_of(parse_bool("")), "expected true or false, got ''");
}

// What number_text writes is what parse_number reads, for every finite double.
TEST(Scalar, NumberTextReadsBackToTheSameBits) {
  const auto check = [](double value) {
    const auto parsed = parse_number(number_text(value));
    ASSERT_TRUE(std::holds_alternative<double>(parsed)) << number_text(value);
    EXPECT_EQ(std::bit_cast<uint64_t>(std::get<double>(parsed)), std::bit_cast<uint64_t>(value));
  };
  std::mt19937_64 random(7);
  int finite = 0;
  for (int i = 0; i < 20000; ++i) {
    const auto value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    ++finite;
    check(value);
  }
  EXPECT_GT(finite, 19000);
  for (const double value : {0.0, -0.0, 1.0, 1e9, 999999999.0, -1e9, 5e-324, 1.7976931348623157e308,
                             0.1, 2e-5, 1e-8, 500000.0}) {
    check(value);
  }
  EXPECT_EQ(number_text(500000), "500000");
  EXPECT_EQ(number_text(2e-5), "2.0e-05");
}

}  // namespace
}  // namespace mgm
