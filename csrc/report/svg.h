// Line charts as inline SVG.
#pragma once

#include <string>
#include <vector>

namespace mgm {

struct Chart {
  std::string title;
  bool log_scale = false;  // values of 0 and below are left out then
  std::vector<double> x, y;
};

// An <svg> of fixed aspect that fills its container. An empty chart says so.
std::string svg_chart(const Chart& chart);

// Round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten, about `count`.
std::vector<double> axis_ticks(double low, double high, int count);

}  // namespace mgm
