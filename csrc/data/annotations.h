// LLaVA annotation files: an index of where each record begins, made in one pass over the mapped
// file, so that a file of gigabytes costs 24 bytes per record beside its page cache. A record is
// parsed when it is asked for.
//
// Record: {"id": text or number (optional), "image": path or list of paths (absent or null: text
// only), "conversations": [{"from": "human" | "gpt", "value": text}, ...]}; other keys are ignored.
// Format: LLaVA docs/Finetune_Custom_Data.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fs.h"
#include "config/run_config.h"
#include "text/conversation.h"

namespace mgm {

struct Record {
  int64_t index = 0;  // position in the concatenated sources
  std::string id;     // "" when the record has none
  std::vector<std::string> images;
  std::vector<Turn> turns;
};

// What planning needs of a record.
struct RecordSummary {
  int64_t words = 0;  // white-space separated (as Python's str.split), over all turns
  int64_t images = 0;
  bool malformed = false;  // valid neither as JSON nor as a record: record(i) throws
};

class AnnotationIndex {
 public:
  // Maps and indexes every source. Throws DataError "file:line:col: ..." where a file is no array
  // of objects (empty, cut, another type): its records cannot be told apart then. A record that is
  // broken in itself is counted, and its record(i) throws. threads == 0: all cores.
  explicit AnnotationIndex(const std::vector<DataSource>& sources, int threads = 0);

  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  // Thread-safe. Throws DataError "file:line:col: record N: ..." for a malformed record. Columns
  // count bytes from 1; N counts from 0 within the file.
  Record record(int64_t i) const;
  RecordSummary summary(int64_t i) const;

  const DataSource& source(int64_t i) const { return sources_[entry(i).source]; }
  std::string where(int64_t i) const;  // "file: record N"
  std::string name(int64_t i) const;   // its id; where it is, if it has none or is malformed
  int64_t malformed() const { return malformed_; }
  int64_t first_malformed() const { return first_malformed_; }  // -1: none

  // xxh3-64 of each file, in order, and of all of them: the identity of the data set.
  const std::vector<uint64_t>& file_hashes() const { return hashes_; }
  uint64_t identity() const;

 private:
  struct Entry {
    uint64_t offset;
    uint32_t length;
    uint32_t words;
    uint32_t images;
    uint16_t source;
    bool malformed;
  };

  const Entry& entry(int64_t i) const;
  void summarise(int64_t begin, int threads);
  [[noreturn]] void fail(size_t source, uint64_t offset, const std::string& message) const;

  std::vector<DataSource> sources_;
  std::vector<MappedFile> files_;
  std::vector<int64_t> first_;  // first record of each source
  std::vector<uint64_t> hashes_;
  std::vector<Entry> entries_;
  int64_t malformed_ = 0;
  int64_t first_malformed_ = -1;
};

}  // namespace mgm
