// Where the ranks of a run meet: a small key-value store that one process serves. It carries
// rendezvous, heartbeats and reports of failures; tensors go through a ProcessGroup.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace c10d {
class Store;
}

namespace mgm {

class Store {
 public:
  explicit Store(c10::intrusive_ptr<c10d::Store> impl);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // All throw DistError naming the key; get and wait also after `timeout_s` seconds without it.
  void set(const std::string& key, const std::string& value);
  std::string get(const std::string& key, double timeout_s);
  void wait(const std::vector<std::string>& keys, double timeout_s);
  bool has(const std::string& key);
  void remove(const std::string& key);  // if it is there
  // Adds and returns the sum; a key that is not there counts as 0.
  int64_t add(const std::string& key, int64_t amount);

  // The same store with every key below `prefix`.
  std::shared_ptr<Store> below(const std::string& prefix) const;
  // Another connection to the same store: calls on the two do not wait for each other.
  std::shared_ptr<Store> connect_again() const;

  const c10::intrusive_ptr<c10d::Store>& impl() const { return impl_; }

 private:
  c10::intrusive_ptr<c10d::Store> impl_;
};

// For ranks that are threads of this process.
std::shared_ptr<Store> make_memory_store();
// Rank 0 serves (`serve`) unless a launcher does. Throws DistError when host and port cannot be
// reached within `timeout_s`. Port 0 with `serve`: a free one, which *port then names.
std::shared_ptr<Store> connect_store(const std::string& host, int* port, bool serve,
                                     double timeout_s);

}  // namespace mgm
