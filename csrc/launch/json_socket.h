// JSON messages over TCP, one per line, for launchers that agree with each other. Small and rare;
// a peer that vanishes without a word is noticed within half a minute (TCP keep-alive).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace mgm {

class JsonSocket {
 public:
  explicit JsonSocket(int fd);  // takes it over
  ~JsonSocket();
  JsonSocket(JsonSocket&& other) noexcept;
  JsonSocket& operator=(JsonSocket&& other) noexcept;

  int fd() const { return fd_; }
  bool send(const Json& message);  // false: the peer is gone
  // What has arrived whole, without waiting; closed() afterwards: the peer is gone, or is none of
  // ours (what came is not JSON).
  std::vector<Json> receive();
  bool closed() const { return fd_ < 0; }
  void close();

 private:
  int fd_ = -1;
  std::string received_;
};

// A socket that listens on `port` of every interface. Throws DistError, which says what to do.
int listen_on(int port);
int accept_from(int listener);  // -1 when nobody is there
// -1 when host:port cannot be reached now: its host may still be starting.
int connect_to(const std::string& host, int port);
// A TCP port that nobody uses now.
int free_port();

}  // namespace mgm
