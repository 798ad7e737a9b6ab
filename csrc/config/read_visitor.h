// Walks the fields of a RunConfig beside the tree they come from. Internal to the reader.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "config/node.h"
#include "config/schema.h"

namespace mgm {

class ReadVisitor : public FieldVisitor {
 public:
  // Adds what is wrong to `issues` and the place of every value that is there to `origins`.
  ReadVisitor(const ConfigNode& root, std::vector<ConfigIssue>& issues,
              std::map<std::string, Where>& origins);

  void finish();  // after the last field: unknown keys of the top level

  // Keys whose value could not be used, so that the field kept its default.
  const std::set<std::string>& unusable() const { return unusable_; }

  void field(const char* key, bool& value, const char* help) override;
  void field(const char* key, int64_t& value, const char* help, Range range) override;
  void field(const char* key, double& value, const char* help, Range range) override;
  void field(const char* key, std::string& value, const char* help) override;
  void field(const char* key, std::vector<int64_t>& value, const char* help, Range each) override;
  void field(const char* key, std::vector<double>& value, const char* help, Range each) override;
  void field(const char* key, std::vector<std::string>& value, const char* help) override;
  void required(const char* key) override;

 protected:
  void enum_field(const char* key, const std::vector<std::string>& names, int& index,
                  const char* help) override;
  void begin_section(const char* key, const char* help) override;
  void end_section() override;
  size_t begin_list(const char* key, size_t size, const char* help) override;
  void begin_item(size_t index) override;
  void end_item() override;
  void end_list() override;

 private:
  // A mapping that is being read.
  struct Frame {
    const ConfigNode* node;  // null: not there, or not a mapping
    std::string path;
    std::set<std::string> seen;
    std::vector<std::string> keys;  // the fields it has
  };
  // A list of mappings that is being read.
  struct List {
    const ConfigNode* node;
    std::string path;
  };

  std::string path(const std::string& key) const;
  void issue(const ConfigNode& node, const std::string& key, const std::string& message);
  const ConfigNode* take(const char* key);
  const ConfigNode* scalar(const char* key, const std::string& expected);
  bool in_range(const ConfigNode& node, const std::string& key, double number, const Range& range);
  void read(const ConfigNode& node, const std::string& key, int64_t& value, const Range& range);
  void read(const ConfigNode& node, const std::string& key, double& value, const Range& range);
  void read(const ConfigNode& node, const std::string& key, std::string& value, const Range& range);
  template <class T>
  void read_list(const char* key, std::vector<T>& value, const char* expected, const Range& each);
  void report_unknown();

  std::vector<ConfigIssue>& issues_;
  std::map<std::string, Where>& origins_;
  std::set<std::string> unusable_;
  std::vector<Frame> frames_;
  std::vector<List> lists_;
};

}  // namespace mgm
