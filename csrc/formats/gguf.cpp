#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include "base/error.h"
#include "formats/dtype.h"

namespace mgm {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kMaxDims = 4;         // GGML_MAX_DIMS
constexpr uint64_t kMaxName = 65535;     // of a key; ggml's own limit
constexpr int kMaxDepth = 4;             // arrays of arrays
constexpr size_t kKinds = 13;

template <class T>
T load(const char* at) {
  T out;
  std::memcpy(&out, at, sizeof(T));
  return out;
}

// Bytes of one value; 0 for strings and arrays, which say their size themselves.
size_t kind_bytes(GgufKind kind) {
  constexpr size_t kBytes[kKinds] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(kind)];
}

// Reads from the front; every refusal says what was read and at which byte.
class Cursor {
 public:
  Cursor(std::string_view bytes, std::string_view source) : bytes_(bytes), source_(source) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }
  std::string_view source() const { return source_; }

  std::string_view take(uint64_t size, const std::string& what) {
    if (size > left()) {
      throw CheckpointError(source_, ": ", what, " at byte ", at_, " needs ", size, " bytes, ",
                            left(), " are left: the file is cut or damaged; fetch it again");
    }
    const std::string_view out = bytes_.substr(at_, size);
    at_ += size;
    return out;
  }

  template <class T>
  T number(const std::string& what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view string(const std::string& what, uint64_t limit) {
    const auto size = number<uint64_t>(what);
    if (size > limit) {
      throw CheckpointError(source_, ": ", what, " at byte ", at_, " has ", size,
                            " bytes, more than ", limit, ": the file is damaged");
    }
    return take(size, what);
  }

  GgufKind kind(const std::string& what) {
    const auto kind = number<uint32_t>(what);
    if (kind >= kKinds) {
      throw CheckpointError(source_, ": ", what, ": unknown value type ", kind, " at byte ",
                            at_ - 4);
    }
    return static_cast<GgufKind>(kind);
  }

 private:
  std::string_view bytes_, source_;
  uint64_t at_ = 0;
};

constexpr uint64_t kAnySize = std::numeric_limits<uint64_t>::max();

GgufValue read_value(Cursor& in, GgufKind kind, const std::string& what, int depth);

// Walks over the elements, so that later reads need no checks.
GgufValue read_array(Cursor& in, const std::string& what, int depth) {
  if (depth > kMaxDepth) {
    throw CheckpointError(in.source(), ": ", what, ": arrays nest deeper than ", kMaxDepth);
  }
  GgufValue out{GgufKind::kArray, in.kind(what), 0, {}};
  out.count = in.number<uint64_t>(what);
  const size_t each = kind_bytes(out.element);
  // The least an element takes: a string its length, an array its type and length.
  const size_t least = each > 0 ? each : out.element == GgufKind::kString ? 8 : 12;
  if (out.count > in.left() / least) {
    throw CheckpointError(in.source(), ": ", what, ": ", out.count, " elements in ", in.left(),
                          " bytes: the file is cut or damaged; fetch it again");
  }
  if (each > 0 && out.element != GgufKind::kBool) {
    out.bytes = in.take(out.count * each, what);
    return out;
  }
  Cursor walk = in;
  for (uint64_t i = 0; i < out.count; ++i) read_value(walk, out.element, what, depth);
  out.bytes = in.take(walk.at() - in.at(), what);
  return out;
}

GgufValue read_value(Cursor& in, GgufKind kind, const std::string& what, int depth) {
  if (kind == GgufKind::kArray) return read_array(in, what, depth + 1);
  GgufValue out{kind, kind, 0, {}};
  out.bytes =
      kind == GgufKind::kString ? in.string(what, kAnySize) : in.take(kind_bytes(kind), what);
  if (kind == GgufKind::kBool && static_cast<uint8_t>(out.bytes[0]) > 1) {
    throw CheckpointError(in.source(), ": ", what, ": a truth value of ",
                          int{static_cast<uint8_t>(out.bytes[0])}, " at byte ", in.at() - 1);
  }
  return out;
}

void read_metadata(Cursor& in, uint64_t count, GgufFile& out) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string key(in.string(cat("the name of metadata value ", i), kMaxName));
    const std::string what = cat("metadata '", key, "'");
    if (out.metadata.count(key) > 0) {
      throw CheckpointError(in.source(), ": ", what, " occurs twice");
    }
    out.metadata[key] = read_value(in, in.kind(what), what, 0);
  }
  const auto it = out.metadata.find("general.alignment");
  if (it == out.metadata.end()) return;
  const std::optional<int64_t> value = it->second.integer();
  constexpr int64_t kMost = 1 << 20;
  if (it->second.kind != GgufKind::kU32 || *value > kMost ||
      !std::has_single_bit(static_cast<uint64_t>(*value))) {
    throw CheckpointError(in.source(), ": general.alignment ", value.value_or(-1),
                          ", expected a power of two of at most ", kMost);
  }
  out.alignment = static_cast<uint64_t>(*value);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return "[" + join(sizes, ", ") + "]";
}

// Returns the tensor with `begin` still relative to the data section and `end` its size behind it.
GgufTensor read_tensor(Cursor& in, uint64_t i, uint64_t alignment) {
  GgufTensor t;
  t.name = in.string(cat("the name of tensor ", i), kMaxName);
  const std::string what = cat("tensor '", t.name, "'"), where = cat(in.source(), ": ", what);
  const auto dims = in.number<uint32_t>(what);
  if (dims > kMaxDims) {
    throw CheckpointError(where, ": ", dims, " dimensions, more than ", kMaxDims);
  }
  for (uint32_t d = 0; d < dims; ++d) t.shape.push_back(in.number<int64_t>(what));
  std::reverse(t.shape.begin(), t.shape.end());
  const auto id = in.number<uint32_t>(what);
  const GgufType* type = gguf_type(id);
  if (!type) throw CheckpointError(where, ": unknown type ", id);
  t.type = *type;
  t.begin = in.number<uint64_t>(what);
  const std::optional<uint64_t> elements = shape_bytes(t.shape, 1);
  uint64_t bytes = 0;
  if (!elements || __builtin_mul_overflow(*elements / type->block, type->bytes, &bytes) ||
      __builtin_add_overflow(t.begin, bytes, &t.end)) {
    throw CheckpointError(where, ": impossible shape ", shape_text(t.shape), " or offset ",
                          t.begin);
  }
  const int64_t row = t.shape.empty() ? 1 : t.shape.back();
  if (row % type->block != 0) {
    throw CheckpointError(where, ": rows of ", row, " elements are no whole blocks of ", type->name,
                          " (", type->block, ")");
  }
  if (t.begin % alignment != 0) {
    throw CheckpointError(where, ": begins at byte ", t.begin,
                          " of the data, no multiple of the alignment ", alignment);
  }
  return t;
}

void check_places(const GgufFile& file, const std::string& source) {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& t : file.tensors) {
    if (t.end > t.begin) order.push_back(&t);
  }
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->begin < order[i - 1]->end) {
      throw CheckpointError(source, ": tensors '", order[i - 1]->name, "' and '", order[i]->name,
                            "' overlap");
    }
  }
}

// Behind the magic.
void read_version(Cursor& in, GgufFile& out) {
  out.version = in.number<uint32_t>("the version");
  if (out.version == 2 || out.version == 3) return;
  if ((out.version & 0xffff) == 0 && out.version != 0) {
    throw CheckpointError(in.source(),
                          ": a big-endian GGUF file, which is not read; convert it "
                          "with gguf-convert-endian (PyPI gguf)");
  }
  throw CheckpointError(in.source(), ": GGUF version ", out.version,
                        ", read are 2 and 3; convert the original weights again");
}

}  // namespace

std::optional<int64_t> GgufValue::integer() const {
  const char* at = bytes.data();
  switch (kind) {
    case GgufKind::kU8:
      return load<uint8_t>(at);
    case GgufKind::kI8:
      return load<int8_t>(at);
    case GgufKind::kU16:
      return load<uint16_t>(at);
    case GgufKind::kI16:
      return load<int16_t>(at);
    case GgufKind::kU32:
      return load<uint32_t>(at);
    case GgufKind::kI32:
      return load<int32_t>(at);
    case GgufKind::kI64:
      return load<int64_t>(at);
    case GgufKind::kU64: {
      const auto value = load<uint64_t>(at);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> GgufValue::number() const {
  if (kind == GgufKind::kF32) return load<float>(bytes.data());
  if (kind == GgufKind::kF64) return load<double>(bytes.data());
  if (const auto value = integer()) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> GgufValue::boolean() const {
  if (kind != GgufKind::kBool) return std::nullopt;
  return bytes[0] != 0;
}

std::optional<std::string_view> GgufValue::string() const {
  if (kind != GgufKind::kString) return std::nullopt;
  return bytes;
}

std::optional<std::vector<GgufValue>> GgufValue::elements() const {
  if (kind != GgufKind::kArray) return std::nullopt;
  std::vector<GgufValue> out;
  out.reserve(count);
  Cursor in(bytes, "GGUF array");
  for (uint64_t i = 0; i < count; ++i) out.push_back(read_value(in, element, "element", 0));
  return out;
}

bool is_gguf(std::string_view file) {
  return file.size() >= 4 && load<uint32_t>(file.data()) == kMagic;
}

GgufFile parse_gguf(std::string_view file, const std::string& source) {
  if (!is_gguf(file)) {
    throw CheckpointError(source, ": is no GGUF file: it does not begin with 'GGUF'");
  }
  Cursor in(file, source);
  in.take(4, "the magic");
  GgufFile out;
  read_version(in, out);
  const auto tensors = in.number<uint64_t>("the number of tensors");
  const auto values = in.number<uint64_t>("the number of metadata values");
  read_metadata(in, values, out);
  std::set<std::string> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    out.tensors.push_back(read_tensor(in, i, out.alignment));
    if (!names.insert(out.tensors.back().name).second) {
      throw CheckpointError(source, ": tensor '", out.tensors.back().name, "' occurs twice");
    }
  }
  const uint64_t data = (in.at() + out.alignment - 1) / out.alignment * out.alignment;
  for (GgufTensor& t : out.tensors) {
    if (t.end == t.begin) {  // nothing to read, wherever it is said to lie
      t.begin = t.end = file.size();
      continue;
    }
    if (data > file.size() || t.end > file.size() - data) {
      throw CheckpointError(
          source, ": tensor '", t.name, "' ends at byte ", t.end, " of the data, the file has ",
          data > file.size() ? 0 : file.size() - data, ": it is cut; fetch or copy it again");
    }
    t.begin += data;
    t.end += data;
  }
  check_places(out, source);
  return out;
}

}  // namespace mgm
