// A CheckpointError whose message holds every one of the given parts.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <string>

#include "base/error.h"

namespace mgm {

inline void expect_checkpoint_error(const std::function<void()>& run,
                                    std::initializer_list<std::string> parts) {
  try {
    run();
  } catch (const CheckpointError& e) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << e.what();
    }
    return;
  }
  ADD_FAILURE() << "no error; expected one with '" << (parts.size() ? *parts.begin() : "") << "'";
}

}  // namespace mgm
