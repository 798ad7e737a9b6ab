// The address that other hosts reach this one by.
#include "launch/host_address.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"

namespace mgm {
namespace {

TEST(HostAddress, OneHostMayUseTheLoopback) {
  ::unsetenv("GLOO_SOCKET_IFNAME");
  EXPECT_EQ(address_towards("127.0.0.1", 29500, false), "127.0.0.1");
  EXPECT_EQ(address_towards("localhost", 29500, false), "127.0.0.1");
}

TEST(HostAddress, SeveralHostsDoNotWhereThereIsAnotherInterface) {
  ::unsetenv("GLOO_SOCKET_IFNAME");
  // Where packets to the rest of the world would leave from; nothing is sent. A host without any
  // such route has the loopback alone.
  std::string outside = "127.0.0.1";
  try {
    outside = address_towards("203.0.113.1", 29500, true);
  } catch (const DistError&) {
    return;
  }
  EXPECT_EQ(address_towards("127.0.0.1", 29500, true).substr(0, 4) == "127.",
            outside.substr(0, 4) == "127.");
}

TEST(HostAddress, InterfaceCanBeNamed) {
  ::setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  EXPECT_EQ(address_towards("no.such.host.invalid", 29500, true), "127.0.0.1");
  ::setenv("GLOO_SOCKET_IFNAME", "ib77", 1);
  EXPECT_THROW(address_towards("127.0.0.1", 29500, false), DistError);
  ::unsetenv("GLOO_SOCKET_IFNAME");
}

TEST(HostAddress, UnknownHostIsNamed) {
  ::unsetenv("GLOO_SOCKET_IFNAME");
  try {
    address_towards("no.such.host.invalid", 29500, true);
    FAIL();
  } catch (const DistError& e) {
    EXPECT_EQ(std::string(e.what()).find("MASTER_ADDR no.such.host.invalid: "), 0) << e.what();
  }
}

}  // namespace
}  // namespace mgm
