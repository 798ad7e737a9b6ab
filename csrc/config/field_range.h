// The limits that a struct's own description (config/schema.h) gives one of its numbers, for values
// that come from elsewhere than YAML.
#pragma once

#include "base/error.h"
#include "config/scalar.h"
#include "config/schema.h"

namespace mgm {

// Finds the number that lies at `member`.
class RangeFinder : public FieldVisitor {
 public:
  explicit RangeFinder(const void* member) : member_(member) {}

  // Throws InternalError if no described number is there.
  Range range() const {
    if (!found_) throw InternalError("the schema describes no number at this place of its struct");
    return *found_;
  }

  void field(const char*, bool&, const char*) override {}
  void field(const char*, int64_t& value, const char*, Range r) override { take(&value, r); }
  void field(const char*, double& value, const char*, Range r) override { take(&value, r); }
  void field(const char*, std::string&, const char*) override {}
  void field(const char*, std::vector<int64_t>& value, const char*, Range each) override {
    take(&value, each);
  }
  void field(const char*, std::vector<double>& value, const char*, Range each) override {
    take(&value, each);
  }
  void field(const char*, std::vector<std::string>&, const char*) override {}
  void required(const char*) override {}

 protected:
  void enum_field(const char*, const std::vector<std::string>&, int&, const char*) override {}
  void begin_section(const char*, const char*) override {}
  void end_section() override {}
  size_t begin_list(const char*, size_t size, const char*) override { return size; }
  void begin_item(size_t) override {}
  void end_item() override {}
  void end_list() override {}

 private:
  void take(const void* value, const Range& range) {
    if (value == member_) found_ = range;
  }

  const void* member_;
  std::optional<Range> found_;
};

template <class Section, class T>
Range range_of(Section& section, const T& member) {
  RangeFinder finder(&member);
  section.describe(finder);
  return finder.range();
}

inline bool in_range(double number, const Range& range) {
  return !(range.min && number < *range.min) && !(range.max && number > *range.max);
}

// "between 1 and 4096".
inline std::string range_text(const Range& range) {
  if (range.min && range.max) {
    return cat("between ", number_text(*range.min), " and ", number_text(*range.max));
  }
  return range.min ? "at least " + number_text(*range.min) : "at most " + number_text(*range.max);
}

}  // namespace mgm
