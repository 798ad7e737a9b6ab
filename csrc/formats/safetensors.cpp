#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/json.h"
#include "base/json_problem.h"
#include "formats/dtype.h"

namespace mgm {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // what the reference reader accepts
constexpr int kMaxDepth = 4;                  // header, entry, list and one to spare

// nlohmann keeps the last of two equal keys; here that would swap a tensor without a word.
Json parse_unique(std::string_view text, const std::string& source) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth) {
      throw CheckpointError(source, ": the safetensors header nests deeper than ", kMaxDepth);
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key &&
        !keys.back().insert(value.get_ref<const std::string&>()).second) {
      throw CheckpointError(source, ": '", value.get_ref<const std::string&>(),
                            "' occurs twice in the safetensors header");
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& e) {
    throw CheckpointError(source, ": the safetensors header is not valid JSON: byte ",
                          json_offset(e, text), " of it: ", json_problem(e));
  }
}

TensorEntry parse_entry(const std::string& name, const Json& json, uint64_t data_size,
                        const std::string& source) {
  const std::string where = cat(source, ": tensor '", name, "'");
  TensorEntry t;
  t.name = name;
  try {
    t.dtype = json.at("dtype").get<std::string>();
    for (const Json& size : json.at("shape")) {
      if (!size.is_number_unsigned()) {
        throw CheckpointError(where, ": size ", size.dump(), " in its shape");
      }
      t.shape.push_back(size.get<int64_t>());
    }
    const Json& offsets = json.at("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      throw CheckpointError(where, ": data_offsets is no pair of byte positions");
    }
    t.begin = offsets[0].get<uint64_t>();
    t.end = offsets[1].get<uint64_t>();
  } catch (const Json::exception& e) {
    throw CheckpointError(where, ": malformed header entry: ", json_problem(e));
  }
  const size_t size = dtype_bytes(t.dtype);
  if (size == 0) throw CheckpointError(where, ": unknown dtype '", t.dtype, "'");
  const auto bytes = shape_bytes(t.shape, size);
  if (!bytes) throw CheckpointError(where, ": impossible shape ", json.at("shape").dump());
  if (t.end < t.begin || t.end - t.begin != *bytes) {
    throw CheckpointError(where, ": bytes ", t.begin, " to ", t.end, ", but dtype ", t.dtype,
                          " and shape ", json.at("shape").dump(), " need ", *bytes, " bytes");
  }
  if (t.end > data_size) {
    throw CheckpointError(where, ": ends at byte ", t.end, " of ", data_size,
                          " data bytes: the file is cut; fetch or copy it again");
  }
  return t;
}

void read_metadata(const Json& json, const std::string& source, SafetensorsHeader& header) {
  if (!json.is_object()) throw CheckpointError(source, ": __metadata__ is no JSON object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      throw CheckpointError(source, ": __metadata__ '", key, "' is not text");
    }
    header.metadata[key] = value.get<std::string>();
  }
}

// Moves offsets from the data section to the file and checks that nothing overlaps or is left out.
void place(std::vector<TensorEntry>& tensors, uint64_t data_begin, uint64_t file_size,
           const std::string& source) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t at = data_begin;
  for (TensorEntry& t : tensors) {
    t.begin += data_begin;
    t.end += data_begin;
    if (t.begin != at) {
      throw CheckpointError(source, ": tensor '", t.name, "' begins at byte ", t.begin,
                            ", expected ", at, ": tensors overlap or leave a hole");
    }
    at = t.end;
  }
  if (at != file_size) {
    throw CheckpointError(source, ": ", file_size - at,
                          " bytes behind the last tensor: damaged or not a whole header");
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view head, uint64_t file_size,
                                           const std::string& source) {
  if (file_size < 8 || head.size() < 8) {
    throw CheckpointError(source, ": ", file_size, " bytes are too few for a safetensors file");
  }
  uint64_t length = 0;
  std::memcpy(&length, head.data(), 8);
  if (length > kMaxHeader) {
    throw CheckpointError(source, ": a header of ", length, " bytes, more than ", kMaxHeader,
                          ": not a safetensors file");
  }
  if (length > file_size - 8 || length > head.size() - 8) {
    throw CheckpointError(source, ": a header of ", length, " bytes in a file of ", file_size,
                          ": cut, or not a safetensors file");
  }
  const Json json = parse_unique(head.substr(8, length), source);
  if (!json.is_object()) {
    throw CheckpointError(source, ": the safetensors header is no JSON object");
  }
  SafetensorsHeader header;
  const uint64_t data_begin = 8 + length;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      read_metadata(entry, source, header);
    } else {
      header.tensors.push_back(parse_entry(name, entry, file_size - data_begin, source));
    }
  }
  place(header.tensors, data_begin, file_size, source);
  return header;
}

std::string make_safetensors_header(std::vector<TensorEntry>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tuple(dtype_bytes(b.dtype), std::string_view(a.name)) <
           std::tuple(dtype_bytes(a.dtype), std::string_view(b.name));
  });
  std::set<std::string_view> names = {"__metadata__"};
  Json about = metadata;
  about["format"] = "pt";
  std::string text = R"({"__metadata__":)" + about.dump();
  uint64_t at = 0;
  for (TensorEntry& t : tensors) {
    MGM_CHECK(names.insert(t.name).second, "tensor '", t.name, "' is written twice");
    const auto bytes = shape_bytes(t.shape, dtype_bytes(t.dtype));
    MGM_CHECK(bytes && dtype_bytes(t.dtype) > 0, "tensor '", t.name, "' of dtype ", t.dtype);
    t.begin = at;
    t.end = at += *bytes;
    const Json entry = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {t.begin, t.end}}};
    text += "," + Json(t.name).dump() + ":" + entry.dump();
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  for (TensorEntry& t : tensors) {
    t.begin += 8 + length;
    t.end += 8 + length;
  }
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + text;
}

}  // namespace mgm
