// Which address of this host the ranks of other hosts can reach (IPv4).
#pragma once

#include <string>

namespace mgm {

// That of the interface which GLOO_SOCKET_IFNAME names, else the one that packets to `host` leave
// from. Where that is the loopback although there are several hosts (many a host's own name leads
// to 127.0.1.1), the first other interface's. Throws DistError when the host is unknown or
// unreachable, or the interface is not there.
std::string address_towards(const std::string& host, int port, bool several_hosts);

}  // namespace mgm
