// Dropout by counters: what Philox says, nothing else.
#include "kernels/dropout.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/rng.h"

namespace mgm::kernels {
namespace {

struct Rows {
  Rows(int64_t rows, int64_t width) : x(static_cast<size_t>(rows * width)), y(x.size(), -1) {
    fill_normal(x.data(), x.size(), 5, 0, 0, 1);
    for (int64_t r = 0; r < rows; ++r) {
      sample.push_back(1000 + r / 3);
      position.push_back(r % 3);
    }
    problem = {rows, width, x.data(), y.data(), sample.data(), position.data(), 77, 0.3};
  }
  std::vector<float> x, y;
  std::vector<int64_t> sample, position;
  DropoutRows<float> problem;
};

TEST(Dropout, IsWhatPhiloxSaysForSamplePositionAndColumn) {
  Rows rows(7, 11);
  dropout_rows_cpu(rows.problem, serial_for);
  for (int64_t r = 0; r < 7; ++r) {
    for (int64_t c = 0; c < 11; ++c) {
      const auto i = static_cast<size_t>(r * 11 + c);
      const auto low = static_cast<uint64_t>(r % 3) << 20 | static_cast<uint64_t>(c / 4);
      const uint32_t bits =
          philox(77, static_cast<uint64_t>(1000 + r / 3), low)[static_cast<size_t>(c % 4)];
      const bool kept = to_unit(bits) >= 0.3;
      EXPECT_EQ(rows.y[i], kept ? rows.x[i] * static_cast<float>(1 / 0.7) : 0.0f) << r << " " << c;
    }
  }
}

TEST(Dropout, RowsDoNotDependOnTheirNeighbours) {
  Rows whole(9, 13), parts(9, 13);
  dropout_rows_cpu(whole.problem, [](int64_t n, int64_t, const RangeBody& body) {
    for (int64_t i = n - 1; i >= 0; --i) body(i, i + 1);
  });
  for (int64_t r = 0; r < 9; ++r) {
    DropoutRows<float> one = parts.problem;
    one.rows = 1;
    one.x += r * 13, one.y += r * 13, one.sample += r, one.position += r;
    dropout_rows_cpu(one, serial_for);
  }
  EXPECT_EQ(whole.y, parts.y);
}

TEST(Dropout, DropsTheShareItIsTold) {
  for (const double p : {0.0, 0.05, 0.5, 0.95}) {
    Rows rows(100, 1000);
    rows.problem.p = p;
    dropout_rows_cpu(rows.problem, serial_for);
    double dropped = 0;
    for (const float y : rows.y) dropped += y == 0;
    EXPECT_NEAR(dropped / 1e5, p, 0.005) << p;
  }
}

TEST(Dropout, AnotherKeyIsAnotherMask) {
  Rows a(20, 50), b(20, 50);
  b.problem.key = 78;
  dropout_rows_cpu(a.problem, serial_for);
  dropout_rows_cpu(b.problem, serial_for);
  int64_t differ = 0;
  for (size_t i = 0; i < a.y.size(); ++i) differ += (a.y[i] == 0) != (b.y[i] == 0);
  EXPECT_NEAR(double(differ) / 1000, 2 * 0.3 * 0.7, 0.08);
}

}  // namespace
}  // namespace mgm::kernels
