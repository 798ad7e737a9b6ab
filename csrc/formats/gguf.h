// GGUF, the file format of llama.cpp: a header, key-value metadata, a table of tensors, then their
// bytes, each tensor aligned. Parsing trusts nothing: a hostile or cut file gives a
// CheckpointError, never a read outside the file, and memory in proportion to the file. Versions 2
// and 3, little-endian. Source: docs/gguf.md of the ggml project.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf_types.h"

namespace mgm {

enum class GgufKind : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// One metadata value, a view of the file's bytes: it lives as long as they do. Accessors give
// nothing for a value of another kind.
struct GgufValue {
  GgufKind kind = GgufKind::kU8;
  GgufKind element = GgufKind::kU8;  // of an array
  uint64_t count = 0;                // of an array
  std::string_view bytes;            // a string's own bytes, an array's elements

  std::optional<int64_t> integer() const;  // any integer kind; U64 beyond I64 gives nothing
  std::optional<double> number() const;    // any integer or float kind
  std::optional<bool> boolean() const;
  std::optional<std::string_view> string() const;
  // Arrays. `elements` of strings and nested arrays need a walk, the others are read in place.
  std::optional<std::vector<GgufValue>> elements() const;
};

struct GgufTensor {
  std::string name;
  GgufType type{};             // formats/gguf_types.h
  std::vector<int64_t> shape;  // outermost first, as in torch: the file has it reversed
  uint64_t begin = 0;          // byte range in the file
  uint64_t end = 0;
};

struct GgufFile {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // in the order of the table
};

// Whether the bytes begin as a GGUF file does.
bool is_gguf(std::string_view file);

// Checks that every tensor lies inside the file at an aligned place, none overlaps another, and no
// key or tensor occurs twice. Throws CheckpointError naming `source`.
GgufFile parse_gguf(std::string_view file, const std::string& source);

}  // namespace mgm
