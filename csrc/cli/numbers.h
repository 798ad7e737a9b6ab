// What numbers an option takes. CLI11's own checks let NaN pass, turn -1 into 2^64 - 1 and print
// bounds of 300 digits.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

namespace mgm::cli {

// A whole number from `low` to `high`.
CLI::Validator whole_number(int64_t low, int64_t high);

// A finite number from `low` to `high`.
CLI::Validator number(double low, double high);

// Bytes, with a unit or without (80GiB, 500MB), at least `low`; hands the number of bytes on.
CLI::Validator byte_size(uint64_t low);

// A seed: 0 to 2^64 - 1.
CLI::Validator seed_number();

}  // namespace mgm::cli
