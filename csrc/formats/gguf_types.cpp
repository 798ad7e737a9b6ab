#include "formats/gguf_types.h"

#include <immintrin.h>

#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

constexpr uint32_t kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kQ4_K = 12, kQ6_K = 14;
constexpr uint32_t kF32 = 0, kF16 = 1, kBF16 = 30;

constexpr GgufType kTypes[] = {
    {kF32, "F32", 1, 4, "F32"},    {kF16, "F16", 1, 2, "F16"},    {kQ4_0, "Q4_0", 32, 18, ""},
    {kQ4_1, "Q4_1", 32, 20, ""},   {6, "Q5_0", 32, 22, ""},       {7, "Q5_1", 32, 24, ""},
    {kQ8_0, "Q8_0", 32, 34, ""},   {9, "Q8_1", 32, 40, ""},       {10, "Q2_K", 256, 84, ""},
    {11, "Q3_K", 256, 110, ""},    {kQ4_K, "Q4_K", 256, 144, ""}, {13, "Q5_K", 256, 176, ""},
    {kQ6_K, "Q6_K", 256, 210, ""}, {15, "Q8_K", 256, 292, ""},    {16, "IQ2_XXS", 256, 66, ""},
    {17, "IQ2_XS", 256, 74, ""},   {18, "IQ3_XXS", 256, 98, ""},  {19, "IQ1_S", 256, 50, ""},
    {20, "IQ4_NL", 32, 18, ""},    {21, "IQ3_S", 256, 110, ""},   {22, "IQ2_S", 256, 82, ""},
    {23, "IQ4_XS", 256, 136, ""},  {24, "I8", 1, 1, "I8"},        {25, "I16", 1, 2, "I16"},
    {26, "I32", 1, 4, "I32"},      {27, "I64", 1, 8, "I64"},      {28, "F64", 1, 8, "F64"},
    {29, "IQ1_M", 256, 56, ""},    {kBF16, "BF16", 1, 2, "BF16"}, {34, "TQ1_0", 256, 54, ""},
    {35, "TQ2_0", 256, 66, ""},    {39, "MXFP4", 32, 17, ""},     {40, "NVFP4", 64, 36, ""},
    {41, "Q1_0", 128, 18, ""},
};

uint16_t half_bits(const uint8_t* at) {
  uint16_t bits = 0;
  std::memcpy(&bits, at, 2);
  return bits;
}

float half(const uint8_t* at) { return _cvtsh_ss(half_bits(at)); }

float bfloat(const uint8_t* at) {
  const uint32_t bits = static_cast<uint32_t>(half_bits(at)) << 16;
  float out = 0;
  std::memcpy(&out, &bits, 4);
  return out;
}

void q8_0(const uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

// Low nibbles are the first half of a block, high ones the second.
void q4_0(const uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void q4_1(const uint8_t* block, float* out) {
  const float d = half(block), m = half(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
    out[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
  }
}

// Eight groups of 32 with 6-bit scales and minima, packed into 12 bytes: the first four of each in
// the low 6 bits of bytes 0-3 and 4-7; of the last four the low 4 bits in bytes 8-11, the high 2 in
// the top bits of bytes 0-3 and 4-7.
void q4_k(const uint8_t* block, float* out) {
  const float d = half(block), dmin = half(block + 2);
  const uint8_t *packed = block + 4, *q = block + 16;
  for (int group = 0; group < 8; ++group) {
    const int g = group % 4;
    int scale = packed[g] & 63, min = packed[4 + g] & 63;
    if (group >= 4) {
      scale = (packed[8 + g] & 15) | (packed[g] >> 6 << 4);
      min = (packed[8 + g] >> 4) | (packed[4 + g] >> 6 << 4);
    }
    const float scale_f = d * static_cast<float>(scale), min_f = dmin * static_cast<float>(min);
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = q[group / 2 * 32 + i] >> shift & 15;
      out[group * 32 + i] = scale_f * static_cast<float>(value) - min_f;
    }
  }
}

// Two halves of 128; in each, four groups of 32 with the low 4 bits in `low` and the high 2 bits in
// `high`, and a signed 8-bit scale for every 16 elements.
void q6_k(const uint8_t* block, float* out) {
  const float d = half(block + 208);
  for (int part = 0; part < 8; ++part) {
    const uint8_t* low = block + part / 4 * 64 + part % 2 * 32;
    const uint8_t* high = block + 128 + part / 4 * 32;
    const int low_shift = part % 4 / 2 * 4, high_shift = part % 4 * 2;
    for (int i = 0; i < 32; ++i) {
      const auto scale = static_cast<int8_t>(block[192 + part * 2 + i / 16]);
      const int value = ((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32;
      out[part * 32 + i] = (d * static_cast<float>(scale)) * static_cast<float>(value);
    }
  }
}

using BlockReader = void (*)(const uint8_t* block, float* out);

BlockReader block_reader(uint32_t id) {
  switch (id) {
    case kF32:
      return [](const uint8_t* block, float* out) { std::memcpy(out, block, 4); };
    case kF16:
      return [](const uint8_t* block, float* out) { *out = half(block); };
    case kBF16:
      return [](const uint8_t* block, float* out) { *out = bfloat(block); };
    case kQ8_0:
      return q8_0;
    case kQ4_0:
      return q4_0;
    case kQ4_1:
      return q4_1;
    case kQ4_K:
      return q4_k;
    case kQ6_K:
      return q6_k;
    default:
      return nullptr;
  }
}

}  // namespace

const GgufType* gguf_type(uint32_t id) {
  for (const GgufType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

bool can_dequantise(const GgufType& type) { return block_reader(type.id) != nullptr; }

void dequantise(const GgufType& type, const uint8_t* blocks, size_t elements, float* out) {
  const BlockReader read = block_reader(type.id);
  MGM_CHECK(read && elements % type.block == 0, elements, " elements of type ", type.name);
  for (size_t at = 0; at < elements; at += type.block, blocks += type.bytes) read(blocks, out + at);
}

}  // namespace mgm
