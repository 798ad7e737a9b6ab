#include "report/svg.h"

#include <algorithm>
#include <cmath>

#include "base/html.h"
#include "base/strings.h"

namespace mgm {
namespace {

constexpr double kWidth = 520, kHeight = 220;
constexpr double kLeft = 58, kRight = 22, kTop = 26, kBottom = 28;  // around the plot

struct Axis {
  double low, high, from, to;  // values, and pixels they are drawn at
  double place(double v) const { return from + (v - low) / (high - low) * (to - from); }
};

Axis make_axis(double low, double high, double from, double to) {
  if (high <= low) {
    const double pad = std::max(1e-12, std::abs(low) * 0.1);
    low -= pad;
    high += pad;
  }
  return {low, high, from, to};
}

std::string label(double value) {
  return std::abs(value) >= 1000 && std::abs(value) < 1e6 ? strf("%.0f", value)
                                                          : strf("%.3g", value);
}

std::string tick(const char* css, double x1, double y1, double x2, double y2) {
  return strf("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>", css, x1, y1,
              x2, y2);
}

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return strf("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor) + html_escape(text) +
         "</text>";
}

}  // namespace

std::vector<double> axis_ticks(double low, double high, int count) {
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double nice : {1.0, 2.0, 5.0}) {
    if (nice * power >= rough * 0.999) {
      step = nice * power;
      break;
    }
  }
  std::vector<double> out;
  for (double k = std::ceil(low / step); k * step <= high + 1e-9 * step; ++k)
    out.push_back(k * step);
  return out;
}

std::string svg_chart(const Chart& chart) {
  std::string out = strf("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\">", kWidth, kHeight);
  out += "<title>" + html_escape(chart.title) + "</title>";
  out += "<g class=\"chart-title\">" + text_at(kLeft, 15, "start", chart.title) + "</g>";
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < chart.y.size() && i < chart.x.size(); ++i) {
    const double y = chart.log_scale ? std::log10(chart.y[i]) : chart.y[i];
    if (std::isfinite(y)) points.emplace_back(chart.x[i], y);
  }
  if (points.empty()) {
    return out + text_at(kWidth / 2, kHeight / 2, "middle", "no data") + "</svg>";
  }
  const auto by_y = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto [low, high] = std::minmax_element(points.begin(), points.end(), by_y);
  const Axis x = make_axis(points.front().first, points.back().first, kLeft, kWidth - kRight);
  const double floor_y = !chart.log_scale && low->second > 0 ? 0 : low->second;
  const Axis y = make_axis(floor_y, high->second, kHeight - kBottom, kTop);

  std::vector<double> ticks = axis_ticks(y.low, y.high, 4);
  if (chart.log_scale) {  // 1, 2, 5 of each decade where there are few decades, else decades
    ticks.clear();
    for (double decade = std::floor(y.low); decade <= y.high; ++decade) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        const double at = decade + std::log10(digit);
        if ((digit == 1 || y.high - y.low < 1.6) && at >= y.low && at <= y.high)
          ticks.push_back(at);
      }
    }
  }
  for (const double t : ticks) {
    const double at = y.place(t);
    out += tick("grid", kLeft, at, kWidth - kRight, at);
    out += text_at(kLeft - 6, at + 4, "end", label(chart.log_scale ? std::pow(10, t) : t));
  }
  for (const double t : axis_ticks(x.low, x.high, 6)) {
    const double at = x.place(t);
    out += tick("grid", at, kHeight - kBottom, at, kHeight - kBottom + 4);
    out += text_at(at, kHeight - kBottom + 17, "middle", label(t));
  }
  out += "<polyline class=\"curve\" points=\"";
  for (const auto& [px, py] : points) out += strf("%.1f,%.1f ", x.place(px), y.place(py));
  return out + "\"/></svg>";
}

}  // namespace mgm
