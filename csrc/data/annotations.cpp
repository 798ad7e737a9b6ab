#include "data/annotations.h"

#include <simdjson.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/json_problem.h"
#include "data/words.h"

namespace mgm {
namespace {

namespace dom = simdjson::dom;

constexpr int64_t kMaxImagesPerRecord = 4096;  // Batch::image_keys number pictures in 12 bits
constexpr size_t kPage = 4096;                 // a mapping is readable to the end of its last page

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// ---- cutting the array into records
// ---------------------------------------------------------------

struct Failure {
  size_t offset;
  std::string message;
};

// Walks over one array of objects without looking inside them: strings and brackets only.
class Splitter {
 public:
  explicit Splitter(std::string_view text) : text_(text) {}

  // Calls found(begin, end) per record; returns what is wrong with the file, if anything is.
  template <class Found>
  std::optional<Failure> run(const Found& found) {
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;  // a byte order mark
    skip_space();
    if (done()) return Failure{0, "the file is empty; expected a JSON array of records"};
    if (text_[at_] != '[') {
      return Failure{at_, cat("expected '[', the start of a JSON array of records, got ", here(),
                              text_[at_] == '{' ? "; one record per line (JSON lines) has to be "
                                                  "joined into one array"
                                                : "")};
    }
    ++at_;
    skip_space();
    if (!done() && text_[at_] == ']') return finish();
    while (true) {
      skip_space();
      if (done()) return cut();
      if (text_[at_] != '{') {
        return Failure{at_, cat("record ", count_, ": expected '{', got ", here())};
      }
      const size_t begin = at_;
      if (!skip_object()) return Failure{begin, ""};  // the caller finds out where and why
      found(begin, at_);
      ++count_;
      skip_space();
      if (done()) return cut();
      if (text_[at_] == ']') return finish();
      if (text_[at_] != ',') {
        return Failure{at_, cat("expected ',' or ']' after record ", count_ - 1, ", got ", here())};
      }
      ++at_;
    }
  }

 private:
  bool done() const { return at_ >= text_.size(); }
  void skip_space() {
    while (!done() && is_space(text_[at_])) ++at_;
  }

  std::string here() const {
    const auto c = static_cast<unsigned char>(text_[at_]);
    return c >= 0x20 && c < 0x7f ? cat("'", text_[at_], "'") : strf("byte 0x%02x", c);
  }

  std::optional<Failure> cut() const {
    return Failure{text_.size(), cat("the file ends after ", count_,
                                     " records without the closing ']'; it was cut")};
  }

  std::optional<Failure> finish() {
    ++at_;
    skip_space();
    if (done()) return std::nullopt;
    return Failure{at_, cat("expected the end of the file after the closing ']', got ", here())};
  }

  // From the quote at at_ past the closing one. False: the file ends inside.
  bool skip_string() {
    const size_t open = at_++;
    while (true) {
      const void* quote = std::memchr(text_.data() + at_, '"', text_.size() - at_);
      if (quote == nullptr) return false;
      const auto position = static_cast<size_t>(static_cast<const char*>(quote) - text_.data());
      size_t backslashes = 0;
      while (position - 1 - backslashes > open && text_[position - 1 - backslashes] == '\\') {
        ++backslashes;
      }
      at_ = position + 1;
      if (backslashes % 2 == 0) return true;
    }
  }

  // From the brace at at_ past the bracket that closes it. False: the file ends inside.
  bool skip_object() {
    int64_t depth = 0;
    while (!done()) {
      switch (text_[at_]) {
        case '"':
          if (!skip_string()) return false;
          continue;
        case '{':
        case '[':
          ++depth;
          break;
        case '}':
        case ']':
          --depth;
          break;
        default:
          break;
      }
      ++at_;
      if (depth == 0) return true;
    }
    return false;
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t count_ = 0;
};

// The first syntax error of one JSON value; `text` may go on behind it.
std::optional<Failure> syntax_error(std::string_view text) {
  try {
    [[maybe_unused]] const Json value = Json::parse(text.begin(), text.end());
    return std::nullopt;
  } catch (const Json::exception& e) {
    const bool valid = dynamic_cast<const Json::parse_error*>(&e) == nullptr;  // but too large
    return Failure{json_offset(e, text), cat(valid ? "" : "not valid JSON: ", json_problem(e))};
  }
}

// ---- one record
// -----------------------------------------------------------------------------------

struct TurnView {
  std::string_view from, value;
};

// A record as views into the parser's buffers; reused from record to record.
struct RecordView {
  std::string id;
  std::vector<std::string_view> images;
  std::vector<TurnView> turns;
};

std::string type_name(const dom::element& value) {
  switch (value.type()) {
    case dom::element_type::ARRAY:
      return "a list";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::STRING:
      return "a text";
    case dom::element_type::BOOL:
      return "true or false";
    case dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

// Each reader returns what is wrong, or "".
std::string read_id(const dom::element& value, std::string& id) {
  if (value.is_string()) {
    id = std::string_view(value.get_string());
  } else if (value.is_int64()) {
    id = cat(int64_t(value.get_int64()));
  } else if (value.is_uint64()) {
    id = cat(uint64_t(value.get_uint64()));
  } else if (value.is_double()) {
    id = strf("%.17g", double(value.get_double()));
  } else if (!value.is_null()) {
    return cat("id: expected a text or a number, got ", type_name(value));
  }
  return "";
}

std::string read_images(const dom::element& value, std::vector<std::string_view>& images) {
  if (value.is_null()) return "";
  if (value.is_string()) {
    images.push_back(value.get_string());
  } else if (value.is_array()) {
    for (const dom::element item : dom::array(value.get_array())) {
      if (!item.is_string()) {
        return cat("image[", images.size(), "]: expected a text, got ", type_name(item));
      }
      images.push_back(item.get_string());
    }
  } else {
    return cat("image: expected a path or a list of paths, got ", type_name(value));
  }
  if (static_cast<int64_t>(images.size()) > kMaxImagesPerRecord) {
    return cat("image: ", images.size(), " pictures in one record; at most ", kMaxImagesPerRecord);
  }
  for (const std::string_view path : images) {
    if (path.empty()) return "image: the path is empty; leave the key out for a text-only record";
    if (path.find('\0') != path.npos) return "image: the path holds a NUL character";
  }
  return "";
}

std::string read_turn(const dom::element& value, size_t number, TurnView& turn) {
  const std::string where = cat("conversations[", number, "]");
  if (!value.is_object()) return cat(where, ": expected an object, got ", type_name(value));
  bool from = false, text = false;
  for (const dom::key_value_pair field : dom::object(value.get_object())) {
    const bool is_from = field.key == "from";
    if (!is_from && field.key != "value") continue;
    bool& seen = is_from ? from : text;
    if (seen) return cat(where, ": the key '", field.key, "' appears twice");
    seen = true;
    if (!field.value.is_string()) {
      return cat(where, ".", field.key, ": expected a text, got ", type_name(field.value));
    }
    (is_from ? turn.from : turn.value) = field.value.get_string();
  }
  if (!from || !text) return cat(where, ": has no '", from ? "value" : "from", "'");
  if (turn.from != "human" && turn.from != "gpt") {
    return cat(where, ".from: unknown speaker '", turn.from, "'; known: human, gpt");
  }
  return "";
}

std::string read_record(const dom::element& root, RecordView& view) {
  bool id = false, image = false, conversations = false;
  for (const dom::key_value_pair field : dom::object(root.get_object())) {
    bool* seen = field.key == "id"              ? &id
                 : field.key == "image"         ? &image
                 : field.key == "conversations" ? &conversations
                                                : nullptr;
    if (seen == nullptr) continue;
    if (*seen) return cat("the key '", field.key, "' appears twice");
    *seen = true;
    std::string problem;
    if (seen == &id) {
      problem = read_id(field.value, view.id);
    } else if (seen == &image) {
      problem = read_images(field.value, view.images);
    } else if (!field.value.is_array()) {
      problem = cat("conversations: expected a list of turns, got ", type_name(field.value));
    } else {
      for (const dom::element turn : dom::array(field.value.get_array())) {
        view.turns.emplace_back();
        problem = read_turn(turn, view.turns.size() - 1, view.turns.back());
        if (!problem.empty()) break;
      }
    }
    if (!problem.empty()) return problem;
  }
  if (!conversations) return "has no 'conversations'";
  if (view.turns.empty()) return "conversations: the list is empty";
  return "";
}

// What is wrong with a record: where (relative to its beginning) and what.
std::optional<Failure> parse(dom::parser& parser, const MappedFile& file, uint64_t offset,
                             uint64_t length, RecordView& view) {
  view.id.clear();
  view.images.clear();
  view.turns.clear();
  // The parser reads a little past the record; only at the end of the file is there nothing to
  // read.
  const size_t readable = (file.size() + kPage - 1) / kPage * kPage;
  const bool copy = offset + length + simdjson::SIMDJSON_PADDING > readable;
  dom::element root;
  const simdjson::error_code code =
      parser.parse(file.data() + offset, static_cast<size_t>(length), copy).get(root);
  if (code) {
    // simdjson does not say where; its stricter twin does.
    auto located = syntax_error(text_of(file).substr(offset, length));
    if (located) return located;
    std::string digits;
    const size_t big = find_big_integer(text_of(file).substr(offset, length), digits);
    if (big != std::string::npos) {
      return Failure{
          big, cat("the whole number ", digits, " does not fit into 64 bits; write it as a text")};
    }
    return Failure{0, cat("not valid JSON: ", simdjson::error_message(code))};
  }
  const std::string problem = read_record(root, view);
  if (!problem.empty()) return Failure{0, problem};
  return std::nullopt;
}

}  // namespace

// ---- the index
// ------------------------------------------------------------------------------------

AnnotationIndex::AnnotationIndex(const std::vector<DataSource>& sources, int threads)
    : sources_(sources) {
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  MGM_CHECK(sources_.size() < 65536, sources_.size(), " sources");
  for (size_t source = 0; source < sources_.size(); ++source) {
    files_.emplace_back(sources_[source].annotations);
    first_.push_back(size());
    const int64_t begin = size();
    std::optional<Failure> failure;
    const std::string_view text = text_of(files_.back());
    failure = Splitter(text).run([&](size_t from, size_t to) {
      if (to - from > UINT32_MAX) {
        fail(source, from, cat("record ", size() - begin, " is longer than 4 GiB"));
      }
      entries_.push_back(
          {from, static_cast<uint32_t>(to - from), 0, 0, static_cast<uint16_t>(source), false});
    });
    hashes_.push_back(hash64(text));
    summarise(begin, threads);
    if (!failure) continue;
    // A quote too many in one record derails the walk behind it: name the first record at fault.
    if (first_malformed_ >= begin) record(first_malformed_);
    if (failure->message.empty()) {
      const size_t record = failure->offset;
      failure = syntax_error(text.substr(record));
      MGM_CHECK(failure.has_value(), "a record without an end parsed");
      failure->offset += record;
      failure->message = cat("record ", size() - begin, ": ", failure->message);
    }
    fail(source, failure->offset, failure->message);
  }
  entries_.shrink_to_fit();
}

// Checks and counts the records from `begin` on, in blocks shared out to threads.
void AnnotationIndex::summarise(int64_t begin, int threads) {
  constexpr int64_t kBlock = 1024;
  std::atomic<int64_t> next{begin};
  const auto work = [&] {
    dom::parser parser;
    RecordView view;
    while (true) {
      const int64_t from = next.fetch_add(kBlock);
      if (from >= size()) return;
      for (int64_t i = from; i < std::min(size(), from + kBlock); ++i) {
        Entry& e = entries_[static_cast<size_t>(i)];
        e.malformed = parse(parser, files_[e.source], e.offset, e.length, view).has_value();
        if (e.malformed) continue;
        e.images = static_cast<uint32_t>(view.images.size());
        for (const TurnView& turn : view.turns) {
          e.words += static_cast<uint32_t>(count_words(turn.value));
        }
      }
    }
  };
  const int64_t blocks = (size() - begin + kBlock - 1) / kBlock;
  std::vector<std::jthread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, blocks); ++i) helpers.emplace_back(work);
  work();
  helpers.clear();  // joins
  for (int64_t i = begin; i < size(); ++i) {
    if (!entries_[static_cast<size_t>(i)].malformed) continue;
    ++malformed_;
    if (first_malformed_ < 0) first_malformed_ = i;
  }
}

Record AnnotationIndex::record(int64_t i) const {
  static thread_local dom::parser parser;
  const Entry& e = entry(i);
  RecordView view;
  const auto failure = parse(parser, files_[e.source], e.offset, e.length, view);
  if (failure) {
    fail(e.source, e.offset + failure->offset,
         cat("record ", i - first_[e.source], ": ", failure->message));
  }
  Record record;
  record.index = i;
  record.id = view.id;
  record.images.assign(view.images.begin(), view.images.end());
  for (const TurnView& turn : view.turns) {
    record.turns.push_back({std::string(turn.from), std::string(turn.value)});
  }
  return record;
}

RecordSummary AnnotationIndex::summary(int64_t i) const {
  const Entry& e = entry(i);
  return {e.words, e.images, e.malformed};
}

std::string AnnotationIndex::where(int64_t i) const {
  const Entry& e = entry(i);
  return cat(sources_[e.source].annotations, ": record ", i - first_[e.source]);
}

std::string AnnotationIndex::name(int64_t i) const {
  if (entry(i).malformed) return where(i);
  const std::string id = record(i).id;
  return id.empty() ? where(i) : id;
}

uint64_t AnnotationIndex::identity() const {
  return hash64({reinterpret_cast<const char*>(hashes_.data()), hashes_.size() * sizeof(uint64_t)});
}

const AnnotationIndex::Entry& AnnotationIndex::entry(int64_t i) const {
  MGM_CHECK(i >= 0 && i < size(), "record ", i, " of ", size());
  return entries_[static_cast<size_t>(i)];
}

void AnnotationIndex::fail(size_t source, uint64_t offset, const std::string& message) const {
  const std::string_view before = text_of(files_[source]).substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t newline = before.rfind('\n');
  const size_t column = newline == before.npos ? before.size() + 1 : before.size() - newline;
  throw DataError(sources_[source].annotations, ":", line, ":", column, ": ", message);
}

}  // namespace mgm
