#include "cli/numbers.h"

#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdlib>

#include "base/strings.h"
#include "config/node.h"

namespace mgm::cli {
namespace {

template <std::integral T>
bool parse(const std::string& text, T& out) {
  const char* end = text.data() + text.size();
  const auto [rest, code] = std::from_chars(text.data(), end, out);
  return code == std::errc() && rest == end;
}

bool parse(const std::string& text, double& out) {
  char* rest = nullptr;
  out = std::strtod(text.c_str(), &rest);
  return !text.empty() && rest == text.c_str() + text.size();
}

template <class T>
CLI::Validator from_to(T low, T high) {
  const std::string range = cat(low, " to ", high);
  return {[=](std::string& text) {
            T value{};
            if (parse(text, value) && value >= low && value <= high) return std::string();
            return cat(shown(text), " is no ", std::integral<T> ? "whole " : "", "number from ",
                       range);
          },
          range};
}

// 10^12 or 2^40 for "TB" or "TiB"; 0 for what is no unit.
double unit_factor(std::string unit) {
  unit = to_lower(unit);
  if (unit.empty() || unit == "b") return 1;
  const size_t power = std::string_view("kmgtpe").find(unit[0]);
  if (power == std::string_view::npos) return 0;
  const std::string rest = unit.substr(1);
  if (rest == "i" || rest == "ib") return std::pow(1024.0, double(power) + 1);
  return rest.empty() || rest == "b" ? std::pow(1000.0, double(power) + 1) : 0;
}

}  // namespace

CLI::Validator whole_number(int64_t low, int64_t high) { return from_to(low, high); }

CLI::Validator number(double low, double high) { return from_to(low, high); }

CLI::Validator seed_number() { return from_to(uint64_t{0}, UINT64_MAX); }

CLI::Validator byte_size(uint64_t low) {
  return {[=](std::string& text) {
            const size_t end = text.find_first_not_of("0123456789.");
            const std::string unit(trim(end == text.npos ? "" : text.substr(end)));
            double value = 0;
            const double factor = unit_factor(unit);
            const bool read = parse(text.substr(0, end), value) && factor > 0;
            const double bytes = read ? value * factor : 0;
            if (!read || !(bytes < 0x1p63)) {
              return cat(shown(text), " is no size below 8 EiB; sizes are like 500MB or 80GiB");
            }
            if (bytes < double(low)) {
              return cat(shown(text), " is less than ", human_bytes(double(low)),
                         ", the least it can be; sizes are like 500MB or 80GiB");
            }
            text = cat(static_cast<uint64_t>(bytes));
            return std::string();
          },
          "SIZE"};
}

}  // namespace mgm::cli
