#include "image/resize.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);
constexpr int64_t kRowsAtOnce = 4;  // rows that share one load of the horizontal coefficients
constexpr int64_t kSlack = 16;      // bytes that vector loads may read behind the last pixel

// pmaddwd multiplies 16-bit numbers, the coefficients have 24 bits: k = high * 2^15 + low with
// 0 <= low < 2^15. Sums wrap modulo 2^32; the combined sum fits, so it is exact.
constexpr int kLowBits = 15;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// The taps of one output pixel, in pixels of the picture.
struct Taps {
  int64_t begin = 0;
  int64_t count = 0;    // without the zeros that fill up a group of four
  size_t at = 0;        // of the first coefficient in Filter::low and ::high
  int32_t outside = 0;  // summed coefficients of border pixels
};

struct Filter {
  std::vector<Taps> taps;          // one per output pixel
  std::vector<int16_t> low, high;  // in groups of four
  int64_t max_count = 0;
};

Filter make_filter(const ResizeAxis& axis) {
  Filter filter;
  const double scale = static_cast<double>(axis.extent) / static_cast<double>(axis.scaled);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale, inverse = 1.0 / filter_scale;
  std::vector<double> weights;
  std::vector<int32_t> fixed;
  for (int64_t i = axis.first; i < axis.first + axis.count; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int64_t begin = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(center + support + 0.5), axis.extent);
    weights.clear();
    double sum = 0;
    for (int64_t j = 0; j < end - begin; ++j) {
      weights.push_back(bicubic((static_cast<double>(j + begin) - center + 0.5) * inverse));
      sum += weights.back();
    }
    // Border pixels share one colour, so their coefficients are summed.
    Taps taps;
    fixed.clear();
    for (int64_t j = begin; j < end; ++j) {
      double w = weights[static_cast<size_t>(j - begin)];
      if (sum != 0) w /= sum;
      w *= 1 << kPrecisionBits;
      const int32_t k = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
      if (j < axis.offset || j >= axis.offset + axis.size) {
        taps.outside += k;
      } else {
        if (fixed.empty()) taps.begin = j - axis.offset;
        fixed.push_back(k);
      }
    }
    taps.count = static_cast<int64_t>(fixed.size());
    taps.at = filter.low.size();
    fixed.resize((fixed.size() + 3) / 4 * 4);
    for (const int32_t k : fixed) {
      filter.low.push_back(static_cast<int16_t>(k & ((1 << kLowBits) - 1)));
      filter.high.push_back(static_cast<int16_t>(k >> kLowBits));
    }
    filter.max_count = std::max(filter.max_count, taps.count);
    filter.taps.push_back(taps);
  }
  return filter;
}

// Four coefficients as two pairs: the first pair in every 32-bit lane of the lower half, the second
// in the upper half.
__m256i load_pairs(const int16_t* k) {
  const __m256i lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  int64_t four = 0;
  std::memcpy(&four, k, sizeof four);
  return _mm256_permutevar8x32_epi32(_mm256_set1_epi64x(four), lanes);
}

__m128i sum_halves(__m256i v) {
  return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

// The horizontal pass over kRows rows. rows[i] may be read kSlack bytes past its end; out[i] may be
// written one byte past its end.
template <int kRows>
void resize_rows(const uint8_t* const* rows, const Filter& filter, const Rgb& border,
                 uint8_t* const* out) {
  // Of four RGB pixels: [r0 r1 g0 g1 b0 b1 0 0] and [r2 r3 g2 g3 b2 b3 0 0] as 16-bit numbers.
  const __m256i spread =
      _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                       6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m128i colour = _mm_setr_epi32(border[0], border[1], border[2], 0);
  for (size_t x = 0; x < filter.taps.size(); ++x) {
    const Taps& taps = filter.taps[x];
    __m256i low[kRows], high[kRows];
    for (int i = 0; i < kRows; ++i) low[i] = high[i] = _mm256_setzero_si256();
    for (int64_t j = 0; j < taps.count; j += 4) {
      const __m256i k_low = load_pairs(filter.low.data() + taps.at + j);
      const __m256i k_high = load_pairs(filter.high.data() + taps.at + j);
      for (int i = 0; i < kRows; ++i) {
        const void* at = rows[i] + (taps.begin + j) * 3;
        const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(at));
        const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
        low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pixels, k_low));
        high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pixels, k_high));
      }
    }
    const __m128i start =
        _mm_add_epi32(_mm_set1_epi32(kHalf), _mm_mullo_epi32(_mm_set1_epi32(taps.outside), colour));
    for (int i = 0; i < kRows; ++i) {
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high[i], kLowBits), low[i]);
      const __m128i sum = _mm_srai_epi32(_mm_add_epi32(start, sum_halves(both)), kPrecisionBits);
      const __m128i clipped = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
      const int32_t pixel = _mm_cvtsi128_si32(clipped);
      std::memcpy(out[i] + x * 3, &pixel, sizeof pixel);
    }
  }
}

// A ring of horizontally resized rows, filled as the vertical pass moves down.
class RowBand {
 public:
  RowBand(const RgbImage& image, const Filter& horizontal, const Rgb& border, int64_t max_rows,
          int64_t end)
      : image_(image),
        filter_(horizontal),
        border_(border),
        capacity_(max_rows + kRowsAtOnce - 1),
        stride_(static_cast<int64_t>(horizontal.taps.size()) * 3 + kSlack),
        end_(end),
        ring_(static_cast<size_t>(capacity_ * stride_)) {}

  // Makes rows [begin, begin + count) of the picture available; begin never goes down.
  void need(int64_t begin, int64_t count) {
    next_ = std::max(next_, begin);
    while (next_ < begin + count) {
      if (end_ - next_ >= kRowsAtOnce) {
        fill<kRowsAtOnce>();
      } else {
        fill<1>();
      }
    }
  }
  const uint8_t* row(int64_t y) const { return ring_.data() + y % capacity_ * stride_; }

 private:
  template <int kRows>
  void fill() {
    const uint8_t* in[kRows];
    uint8_t* out[kRows];
    for (int i = 0; i < kRows; ++i) {
      in[i] = padded_row(next_ + i, scratch_[i]);
      out[i] = ring_.data() + (next_ + i) % capacity_ * stride_;
    }
    resize_rows<kRows>(in, filter_, border_, out);
    next_ += kRows;
  }

  // A row behind which kSlack bytes may be read: a copy where the picture ends too soon.
  const uint8_t* padded_row(int64_t y, std::vector<uint8_t>& copy) const {
    const int64_t bytes = image_.width * 3;
    if ((y + 1) * bytes + kSlack <= static_cast<int64_t>(image_.hwc.size())) return image_.row(y);
    copy.assign(static_cast<size_t>(bytes + kSlack), 0);
    std::memcpy(copy.data(), image_.row(y), static_cast<size_t>(bytes));
    return copy.data();
  }

  const RgbImage& image_;
  const Filter& filter_;
  const Rgb border_;
  const int64_t capacity_, stride_, end_;
  int64_t next_ = 0;
  std::vector<uint8_t> ring_;
  std::vector<uint8_t> scratch_[kRowsAtOnce];
};

// Eight bytes as 32-bit numbers.
__m256i load_wide(const uint8_t* at) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}

// Sixteen columns of the vertical pass, starting at byte `column` of the rows.
__m128i resize_columns(const std::vector<const uint8_t*>& rows, const int16_t* k_low,
                       const int16_t* k_high, const uint8_t* border_row, int32_t outside,
                       int64_t column) {
  __m256i low[2], high[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i border = load_wide(border_row + column + 8 * i);
    low[i] = _mm256_add_epi32(_mm256_set1_epi32(kHalf),
                              _mm256_mullo_epi32(border, _mm256_set1_epi32(outside)));
    high[i] = _mm256_setzero_si256();
  }
  for (size_t j = 0; j < rows.size(); j += 2) {
    int32_t pair_low = 0, pair_high = 0;
    std::memcpy(&pair_low, k_low + j, sizeof pair_low);
    std::memcpy(&pair_high, k_high + j, sizeof pair_high);
    const __m256i kl = _mm256_set1_epi32(pair_low), kh = _mm256_set1_epi32(pair_high);
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + column));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j + 1] + column));
    const __m256i pixels[2] = {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)),
                               _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b))};
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pixels[i], kl));
      high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pixels[i], kh));
    }
  }
  __m256i sum[2];
  for (int i = 0; i < 2; ++i) {
    sum[i] = _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high[i], kLowBits), low[i]),
                               kPrecisionBits);
  }
  // packs works within halves: put the quarters back in order.
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(sum[0], sum[1]), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
}

// What the horizontal pass makes of a row of border pixels. Not always the border colour itself:
// over thousands of taps the rounded coefficients need not add up to one.
std::vector<uint8_t> make_border_row(const Filter& horizontal, const Rgb& border) {
  std::vector<uint8_t> row(horizontal.taps.size() * 3 + kSlack);
  for (size_t x = 0; x < horizontal.taps.size(); ++x) {
    const Taps& taps = horizontal.taps[x];
    int32_t weight = taps.outside;
    for (size_t j = taps.at; j < taps.at + static_cast<size_t>(taps.count); ++j) {
      weight += horizontal.high[j] * (1 << kLowBits) + horizontal.low[j];
    }
    for (size_t c = 0; c < 3; ++c) {
      row[x * 3 + c] = static_cast<uint8_t>(
          std::clamp((kHalf + weight * int32_t{border[c]}) >> kPrecisionBits, 0, 255));
    }
  }
  return row;
}

void check_axis(const ResizeAxis& axis, int64_t size, const char* name) {
  MGM_CHECK(axis.size == size && size > 0 && axis.offset >= 0 && axis.count > 0 &&
                axis.first >= 0 && axis.offset + axis.size <= axis.extent &&
                axis.first + axis.count <= axis.scaled,
            "resize axis ", name, ": size ", axis.size, " of ", size, ", offset ", axis.offset,
            ", extent ", axis.extent, ", scaled ", axis.scaled, ", first ", axis.first, ", count ",
            axis.count);
}

// An axis that stays as it is.
ResizeAxis whole(int64_t size) { return {size, 0, size, size, 0, size}; }

// The horizontal pass, then the vertical one.
RgbImage resize_passes(const RgbImage& image, const ResizeAxis& x, const ResizeAxis& y,
                       const Rgb& border) {
  const Filter horizontal = make_filter(x), vertical = make_filter(y);
  const std::vector<uint8_t> border_row = make_border_row(horizontal, border);
  int64_t end = 0;
  for (const Taps& taps : vertical.taps) end = std::max(end, taps.begin + taps.count);

  RowBand band(image, horizontal, border, vertical.max_count, end);
  RgbImage out(x.count, y.count);
  std::vector<const uint8_t*> rows;
  for (int64_t i = 0; i < y.count; ++i) {
    const Taps& taps = vertical.taps[static_cast<size_t>(i)];
    band.need(taps.begin, taps.count);
    rows.clear();
    for (int64_t j = 0; j < taps.count; ++j) rows.push_back(band.row(taps.begin + j));
    if (rows.size() % 2) rows.push_back(rows.back());  // its coefficient is zero
    const int64_t bytes = x.count * 3;
    for (int64_t column = 0; column < bytes; column += 16) {
      const __m128i pixels =
          resize_columns(rows, vertical.low.data() + taps.at, vertical.high.data() + taps.at,
                         border_row.data(), taps.outside, column);
      // The last columns of a row must not write into the next one.
      std::memcpy(out.row(i) + column, &pixels,
                  static_cast<size_t>(std::min<int64_t>(16, bytes - column)));
    }
  }
  return out;
}

}  // namespace

RgbImage resize_bicubic(const RgbImage& image, const ResizeAxis& x, const ResizeAxis& y,
                        const Rgb& border) {
  check_axis(x, image.width, "x");
  check_axis(y, image.height, "y");
  const int64_t shrink_x = x.extent - x.scaled, shrink_y = y.extent - y.scaled;
  if (shrink_y <= 0 || shrink_y <= 2 * shrink_x) return resize_passes(image, x, y, border);
  MGM_CHECK(x.extent == x.size && y.extent == y.size, "a border with the vertical pass first");
  // A pass from a size to itself changes nothing.
  return resize_passes(resize_passes(image, whole(x.size), y, border), x, whole(y.count), border);
}

RgbImage resize_bicubic(const RgbImage& image, int64_t width, int64_t height) {
  const ResizeAxis x = {image.width, 0, image.width, width, 0, width};
  const ResizeAxis y = {image.height, 0, image.height, height, 0, height};
  return resize_bicubic(image, x, y, {});
}

}  // namespace mgm
