#include "launch/json_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

constexpr size_t kMaxMessage = 1 << 22;
constexpr int kConnectMs = 3000;

int bound_socket(int port, const std::string& advice) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (fd < 0 || ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
      ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    throw DistError("cannot use TCP port ", port, " of this host: ", std::strerror(error), advice);
  }
  return fd;
}

}  // namespace

JsonSocket::JsonSocket(int fd) : fd_(fd) {
  const int yes = 1, idle_s = 15, interval_s = 5, count = 3, unanswered_ms = 30000;
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

JsonSocket::~JsonSocket() { close(); }

JsonSocket::JsonSocket(JsonSocket&& other) noexcept
    : fd_(other.fd_), received_(std::move(other.received_)) {
  other.fd_ = -1;
}

JsonSocket& JsonSocket::operator=(JsonSocket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = other.fd_;
    received_ = std::move(other.received_);
    other.fd_ = -1;
  }
  return *this;
}

void JsonSocket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool JsonSocket::send(const Json& message) {
  // What a rank wrote last need not be UTF-8.
  const std::string line = message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  size_t sent = 0;
  while (fd_ >= 0 && sent < line.size()) {
    const ssize_t now = ::send(fd_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) return false;  // receive() will find the connection closed
    sent += static_cast<size_t>(now);
  }
  return fd_ >= 0;
}

std::vector<Json> JsonSocket::receive() {
  std::vector<Json> out;
  char bytes[65536];
  while (fd_ >= 0) {
    const ssize_t got = ::recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got > 0) {
      received_.append(bytes, static_cast<size_t>(got));
      if (received_.size() > kMaxMessage) close();
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) close();
    break;
  }
  for (size_t end; (end = received_.find('\n')) != std::string::npos;) {
    Json message = Json::parse(received_.substr(0, end), nullptr, /*allow_exceptions=*/false);
    received_.erase(0, end + 1);
    if (!message.is_object()) {
      close();
      break;
    }
    out.push_back(std::move(message));
  }
  return out;
}

int listen_on(int port) {
  const int fd = bound_socket(port, "; choose another one in --master HOST:PORT, on every host");
  ::listen(fd, 256);
  return fd;
}

int accept_from(int listener) {
  pollfd waiting = {listener, POLLIN, 0};
  if (::poll(&waiting, 1, 0) <= 0) return -1;
  return ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
}

int connect_to(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  // A pod's name is unknown until the pod runs, so that this too may pass.
  if (code != 0) return -1;
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int error = 0;
  if (fd >= 0 && ::connect(fd, found->ai_addr, found->ai_addrlen) != 0) {
    error = errno;
    pollfd waiting = {fd, POLLOUT, 0};
    if (error == EINPROGRESS && ::poll(&waiting, 1, kConnectMs) == 1) {
      socklen_t size = sizeof error;
      ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
  }
  ::freeaddrinfo(found);
  if (fd >= 0 && error == 0) {
    ::fcntl(fd, F_SETFL, 0);  // blocking again
    return fd;
  }
  if (fd >= 0) ::close(fd);
  return -1;
}

int free_port() {
  const int fd = bound_socket(0, "");
  sockaddr_in address{};
  socklen_t size = sizeof address;
  const int code = ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  if (code != 0) throw DistError("no free TCP port: ", std::strerror(errno));
  return ntohs(address.sin_port);
}

}  // namespace mgm
