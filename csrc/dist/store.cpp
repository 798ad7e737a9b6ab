#include "dist/store.h"

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/error.h"

namespace mgm {
namespace {

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// c10d's exceptions as ours.
template <class Act>
auto guarded(const std::string& what, const Act& act) {
  try {
    return act();
  } catch (const c10::Error& e) {
    throw DistError(what, ": ", e.what_without_backtrace());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    throw DistError(what, ": ", e.what());
  }
}

std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

Store::Store(c10::intrusive_ptr<c10d::Store> impl) : impl_(std::move(impl)) {}
Store::~Store() = default;

void Store::set(const std::string& key, const std::string& value) {
  guarded(cat("store: set ", key), [&] {
    impl_->set(key, std::vector<uint8_t>(value.begin(), value.end()));
    return 0;
  });
}

std::string Store::get(const std::string& key, double timeout_s) {
  wait({key}, timeout_s);
  return guarded(cat("store: get ", key), [&] { return text_of(impl_->get(key)); });
}

void Store::wait(const std::vector<std::string>& keys, double timeout_s) {
  guarded(cat("store: no key ", join(keys, ", "), " within ", timeout_s, " s"), [&] {
    impl_->wait(keys, milliseconds(timeout_s));
    return 0;
  });
}

bool Store::has(const std::string& key) {
  return guarded(cat("store: look for ", key), [&] { return impl_->check({key}); });
}

void Store::remove(const std::string& key) {
  guarded(cat("store: remove ", key), [&] { return impl_->deleteKey(key); });
}

int64_t Store::add(const std::string& key, int64_t amount) {
  return guarded(cat("store: add to ", key), [&] { return impl_->add(key, amount); });
}

std::shared_ptr<Store> Store::below(const std::string& prefix) const {
  return std::make_shared<Store>(c10::make_intrusive<c10d::PrefixStore>(prefix, impl_));
}

std::shared_ptr<Store> Store::connect_again() const {
  return guarded("store: connect again", [&] { return std::make_shared<Store>(impl_->clone()); });
}

std::shared_ptr<Store> make_memory_store() {
  return std::make_shared<Store>(c10::make_intrusive<c10d::HashStore>());
}

std::shared_ptr<Store> connect_store(const std::string& host, int* port, bool serve,
                                     double timeout_s) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(*port);
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = milliseconds(timeout_s);
  return guarded(
      cat("cannot ", serve ? "serve" : "reach", " the ranks' store at ", host, ":", *port), [&] {
        auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
        *port = store->getPort();
        return std::make_shared<Store>(std::move(store));
      });
}

}  // namespace mgm
