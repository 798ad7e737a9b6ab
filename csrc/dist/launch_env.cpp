#include "dist/launch_env.h"

#include <cstdlib>

#include "base/error.h"

namespace mgm {

LaunchEnv read_launch_env(const EnvLookup& lookup) {
  LaunchEnv env;
  if (!lookup("RANK") || !lookup("WORLD_SIZE")) return env;
  const auto number = [&](const char* name, int fallback) {
    const auto text = lookup(name);
    return text ? std::atoi(text->c_str()) : fallback;
  };
  env.launcher = "torchrun";
  env.rank = number("RANK", 0);
  env.world = number("WORLD_SIZE", 1);
  env.local_rank = number("LOCAL_RANK", env.rank);
  env.local_world = number("LOCAL_WORLD_SIZE", env.world);
  env.master_host = lookup("MASTER_ADDR").value_or(env.master_host);
  env.master_port = number("MASTER_PORT", env.master_port);
  env.store_is_served = lookup("TORCHELASTIC_USE_AGENT_STORE") == "True";
  env.restart = number("TORCHELASTIC_RESTART_COUNT", 0);
  return env;
}

LaunchEnv read_launch_env() {
  return read_launch_env([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  });
}

}  // namespace mgm
