#include "formats/tfevents.h"

#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/strings.h"
#include "formats/crc32.h"

namespace mgm {
namespace {

// Protobuf wire format: a key is field number << 3 | wire type.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, int field, WireType type) {
  put_varint(out, static_cast<uint64_t>(field << 3 | type));
}

template <class T>
void put_raw(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

// Event: wall_time = 1, step = 2; then one of file_version = 3, summary = 5, session_log = 7.
std::string event_head(double wall_time, int64_t step) {
  std::string out;
  put_key(out, 1, kFixed64);
  put_raw(out, wall_time);
  put_key(out, 2, kVarint);
  put_varint(out, static_cast<uint64_t>(step));
  return out;
}

uint32_t masked(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

std::string frame(std::string_view payload) {
  std::string out;
  put_raw(out, static_cast<uint64_t>(payload.size()));
  put_raw(out, masked(out));
  out += payload;
  put_raw(out, masked(payload));
  return out;
}

fs::path file_name(double wall_time) {
  static std::atomic<int> number = 0;  // two writers of one process in one second
  char host[256] = "localhost";
  ::gethostname(host, sizeof(host) - 1);
  return strf("events.out.tfevents.%010lld.%s.%d.%d", static_cast<long long>(wall_time), host,
              static_cast<int>(::getpid()), number++);
}

}  // namespace

std::string tfevents_scalars(double wall_time, int64_t step,
                             const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, number] :
       scalars) {  // Summary: value = 1; Value: tag = 1, simple_value = 2
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, kFixed32);
    put_raw(value, static_cast<float>(number));
    put_bytes(summary, 1, value);
  }
  std::string event = event_head(wall_time, step);
  put_bytes(event, 5, summary);
  return frame(event);
}

TfEventsWriter::TfEventsWriter(const fs::path& folder, int64_t first_step, double wall_time)
    : path_(folder / file_name(wall_time)), writer_(path_) {
  std::string version = event_head(wall_time, 0);
  put_bytes(version, 3, "brain.Event:2");
  std::string start = event_head(wall_time, first_step);
  put_bytes(start, 7, std::string("\x08\x01", 2));  // SessionLog: status = START
  writer_.write(frame(version) + frame(start));
}

void TfEventsWriter::add(double wall_time, int64_t step,
                         const std::vector<std::pair<std::string, double>>& scalars) {
  writer_.write(tfevents_scalars(wall_time, step, scalars));
}

}  // namespace mgm
