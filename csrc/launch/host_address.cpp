#include "launch/host_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace mgm {
namespace {

std::string text_of(const sockaddr* address) {
  char text[INET_ADDRSTRLEN] = "";
  ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
  return text;
}

// The IPv4 address of the interface, or of the first that leads out of this host ("" for `name`);
// "" if there is none.
std::string interface_address(const std::string& name) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  std::string found;
  for (const ifaddrs* i = all; i != nullptr && found.empty(); i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    const bool leads_out = (i->ifa_flags & IFF_UP) != 0 && (i->ifa_flags & IFF_LOOPBACK) == 0 &&
                           std::strncmp(i->ifa_name, "docker", 6) != 0;
    if (name.empty() ? leads_out : name == i->ifa_name) found = text_of(i->ifa_addr);
  }
  ::freeifaddrs(all);
  return found;
}

}  // namespace

std::string address_towards(const std::string& host, int port, bool several_hosts) {
  if (const char* name = std::getenv("GLOO_SOCKET_IFNAME"); name != nullptr && *name != '\0') {
    const std::string found = interface_address(name);
    if (found.empty()) {
      throw DistError("GLOO_SOCKET_IFNAME is '", name,
                      "', but this host has no such interface with an IPv4 address (ip -br a)");
    }
    return found;
  }
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) {
    throw DistError("MASTER_ADDR ", host, ": ", ::gai_strerror(code),
                    "; it must be a name or address that every rank can resolve");
  }
  // A connected UDP socket sends nothing; the kernel picks the route.
  std::string text;
  int error = 0;
  const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in local{};
  socklen_t length = sizeof local;
  if (fd < 0 || ::connect(fd, found->ai_addr, found->ai_addrlen) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) != 0) {
    error = errno;
  } else {
    text = text_of(reinterpret_cast<const sockaddr*>(&local));
  }
  if (fd >= 0) ::close(fd);
  ::freeaddrinfo(found);
  if (error != 0) throw DistError("no route to MASTER_ADDR ", host, ": ", std::strerror(error));
  if (several_hosts && text.compare(0, 4, "127.") == 0) {
    const std::string other = interface_address("");
    if (!other.empty()) return other;
  }
  return text;
}

}  // namespace mgm
