// N ranks as N threads of one process over Gloo and a store in memory.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/AutogradState.h>

#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "dist/ranks.h"

namespace mgm {

// c10d keeps one flight recorder per process and writes a map of it without a lock: ranks that are
// threads crash in it. A rank that is a process has one thread that communicates.
inline const int kWithoutC10dRecorder = ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1);

// Calls `body` on every rank and throws the first exception any of them ended with, after all have
// ended.
inline void run_ranks(int world, const DistConfig& config,
                      const std::function<void(Ranks&)>& body) {
  const std::shared_ptr<Store> store = make_memory_store();
  std::exception_ptr first;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        at::set_num_threads(1);
        c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
        LaunchEnv env;
        env.rank = env.local_rank = rank;
        env.world = env.local_world = world;
        RankSettings settings;
        settings.timeout_s = 60;
        Ranks ranks = world == 1 ? local_ranks(config) : place_rank(env, config, store);
        if (world > 1) connect_groups(ranks, settings);
        body(ranks);
        ranks.shutdown();
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace mgm
