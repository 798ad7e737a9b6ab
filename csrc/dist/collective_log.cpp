#include "dist/collective_log.h"

#include <chrono>
#include <set>

namespace mgm {
namespace {

double seconds_of_process() {
  static const auto begin = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

uint64_t CollectiveLog::enter(CollectiveRecord record) {
  record.entered_s = seconds_of_process();
  const std::lock_guard lock(mutex_);
  if (ring_.size() < capacity_) ring_.resize(ring_.size() + 1);
  latest_[record.group] = {next_, record.sequence};
  ring_[next_ % capacity_] = std::move(record);
  return next_++;
}

void CollectiveLog::leave(uint64_t ticket) {
  const double now = seconds_of_process();
  const std::lock_guard lock(mutex_);
  if (next_ - ticket <= capacity_) ring_[ticket % capacity_].left_s = now;
}

std::vector<CollectiveRecord> CollectiveLog::records() const {
  const std::lock_guard lock(mutex_);
  std::vector<CollectiveRecord> out;
  const uint64_t first = next_ > capacity_ ? next_ - capacity_ : 0;
  for (uint64_t i = first; i < next_; ++i) out.push_back(ring_[i % capacity_]);
  return out;
}

int64_t CollectiveLog::next_sequence(const std::string& group) const {
  const std::lock_guard lock(mutex_);
  const auto last = latest_.find(group);
  return last == latest_.end() ? 0 : last->second.sequence + 1;
}

std::vector<CollectiveRecord> CollectiveLog::latest() const {
  const std::lock_guard lock(mutex_);
  std::set<uint64_t> tickets;  // in the order they were entered in
  for (const auto& [group, last] : latest_) tickets.insert(last.ticket);
  std::vector<CollectiveRecord> out;
  for (const uint64_t ticket : tickets) {
    if (next_ - ticket <= capacity_) out.push_back(ring_[ticket % capacity_]);
  }
  return out;
}

OrderedJson to_json(const std::vector<CollectiveRecord>& records) {
  OrderedJson out = OrderedJson::array();
  for (const CollectiveRecord& r : records) {
    out.push_back({{"group", r.group},
                   {"sequence", r.sequence},
                   {"operation", r.operation},
                   {"label", r.label},
                   {"dtype", r.dtype},
                   {"numel", r.numel},
                   {"entered_s", r.entered_s},
                   {"left_s", r.left_s},
                   {"on_device", r.on_device}});
  }
  return out;
}

std::vector<CollectiveRecord> collective_records(const Json& json) {
  std::vector<CollectiveRecord> out;
  for (const Json& j : json) {
    CollectiveRecord r;
    r.group = j.at("group").get<std::string>();
    r.sequence = j.at("sequence").get<int64_t>();
    r.operation = j.at("operation").get<std::string>();
    r.label = j.at("label").get<std::string>();
    r.dtype = j.at("dtype").get<std::string>();
    r.numel = j.at("numel").get<int64_t>();
    r.entered_s = j.at("entered_s").get<double>();
    r.left_s = j.at("left_s").get<double>();
    r.on_device = j.at("on_device").get<bool>();
    out.push_back(std::move(r));
  }
  return out;
}

}  // namespace mgm
