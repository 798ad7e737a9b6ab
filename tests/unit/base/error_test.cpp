#include "base/error.h"

#include <gtest/gtest.h>

#include <type_traits>

namespace mgm {
namespace {

template <class E>
int code_of() {
  try {
    throw E("a", 1, "b");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "a1b");
    return static_cast<int>(e.code());
  }
}

// Scripts rely on these numbers.
TEST(Error, EachKindHasItsExitCode) {
  EXPECT_EQ(code_of<InternalError>(), 1);
  EXPECT_EQ(code_of<ConfigError>(), 2);
  EXPECT_EQ(code_of<DataError>(), 3);
  EXPECT_EQ(code_of<CheckpointError>(), 4);
  EXPECT_EQ(code_of<DistError>(), 5);
  EXPECT_EQ(code_of<NonFiniteError>(), 6);
  EXPECT_EQ(static_cast<int>(ExitCode::kSigint), 130);
  EXPECT_EQ(static_cast<int>(ExitCode::kSigterm), 143);
}

TEST(Error, KindsAreDifferentTypes) {
  EXPECT_THROW(throw DataError("x"), DataError);
  EXPECT_FALSE((std::is_base_of_v<DataError, CheckpointError>));
  EXPECT_TRUE((std::is_base_of_v<std::runtime_error, ConfigError>));
}

TEST(Error, ACheckNamesThePlaceTheConditionAndTheValues) {
  const int rows = 3;
  MGM_CHECK(rows == 3, "never built");
  try {
    MGM_CHECK(rows == 4, "rows ", rows);
    FAIL();
  } catch (const InternalError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("error_test.cpp:"), text.npos) << text;
    EXPECT_TRUE(text.ends_with(": check failed: rows == 4. rows 3")) << text;
  }
}

}  // namespace
}  // namespace mgm
