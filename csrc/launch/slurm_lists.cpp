#include "launch/slurm_lists.h"

#include <charconv>
#include <string_view>

#include "base/error.h"
#include "base/strings.h"

namespace mgm {
namespace {

// More than any cluster has; a longer list is a typing error.
constexpr size_t kMaxEntries = 1 << 17;

class Expander {
 public:
  Expander(const std::string& variable, const std::string& text, const char* example)
      : variable_(variable), text_(text), example_(example) {}

  [[noreturn]] void fail(const std::string& why) const {
    throw DistError(variable_, " is '", text_, "': ", why, "; the form is '", example_, "'");
  }

  int number(std::string_view digits) const {
    int out = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    if (error != std::errc() || end != digits.data() + digits.size() || digits[0] == '-') {
      fail(cat("'", digits, "' is not a number"));
    }
    return out;
  }

  void check_size(size_t entries) const {
    if (entries > kMaxEntries) fail(cat("more than ", kMaxEntries, " entries"));
  }

  // "01-03,07" -> 01 02 03 07; leading zeros stay.
  std::vector<std::string> ranges(std::string_view list) const {
    std::vector<std::string> out;
    for (const std::string& item : split(list, ',')) {
      const size_t dash = item.find('-');
      const std::string first = item.substr(0, dash);
      const std::string last = dash == std::string::npos ? first : item.substr(dash + 1);
      const int begin = number(first), end = number(last);
      if (end < begin) fail(cat("'", item, "' runs backwards"));
      check_size(out.size() + static_cast<size_t>(end - begin));
      for (int i = begin; i <= end; ++i) {
        out.push_back(strf("%0*d", static_cast<int>(first.size()), i));
      }
    }
    return out;
  }

  // One name with brackets.
  std::vector<std::string> names(std::string_view pattern) const {
    if (pattern.empty()) fail("an entry is empty");
    std::vector<std::string> out = {""};
    while (!pattern.empty()) {
      const size_t open = pattern.find('[');
      for (std::string& name : out) name += pattern.substr(0, open);
      if (open == std::string_view::npos) break;
      const size_t close = pattern.find(']', open);
      const std::vector<std::string> middles = ranges(pattern.substr(open + 1, close - open - 1));
      check_size(out.size() * middles.size());
      std::vector<std::string> longer;
      for (const std::string& name : out) {
        for (const std::string& middle : middles) longer.push_back(name + middle);
      }
      out = std::move(longer);
      pattern.remove_prefix(close + 1);
    }
    return out;
  }

  // Cuts at the commas outside brackets.
  std::vector<std::string_view> entries() const {
    std::vector<std::string_view> out;
    bool inside = false;
    size_t begin = 0;
    for (size_t i = 0; i < text_.size(); ++i) {
      if (text_[i] == '[' || text_[i] == ']') {
        if (inside == (text_[i] == '[')) fail("brackets do not pair");
        inside = !inside;
      } else if (text_[i] == ',' && !inside) {
        out.push_back(std::string_view(text_).substr(begin, i - begin));
        begin = i + 1;
      }
    }
    if (inside) fail("brackets do not pair");
    out.push_back(std::string_view(text_).substr(begin));
    return out;
  }

 private:
  const std::string& variable_;
  const std::string& text_;
  const char* example_;
};

}  // namespace

std::vector<int> expand_task_counts(const std::string& variable, const std::string& text) {
  const Expander expander(variable, text, "4(x2),3");
  std::vector<int> out;
  for (const std::string& item : split(text, ',')) {
    const size_t open = item.find("(x");
    int times = 1;
    if (open != std::string::npos) {
      if (item.back() != ')') expander.fail("a ')' is missing");
      times = expander.number(std::string_view(item).substr(open + 2, item.size() - open - 3));
    }
    const int count = expander.number(std::string_view(item).substr(0, open));
    if (count < 1 || times < 1) expander.fail("every count must be 1 or more");
    expander.check_size(out.size() + static_cast<size_t>(times));
    out.insert(out.end(), static_cast<size_t>(times), count);
  }
  return out;
}

std::vector<std::string> expand_node_list(const std::string& variable, const std::string& text) {
  const Expander expander(variable, text, "gpu[01-03,07],login1");
  std::vector<std::string> out;
  for (const std::string_view entry : expander.entries()) {
    const std::vector<std::string> names = expander.names(entry);
    expander.check_size(out.size() + names.size());
    out.insert(out.end(), names.begin(), names.end());
  }
  return out;
}

}  // namespace mgm
