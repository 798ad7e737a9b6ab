// main() of the gtest binaries that see torch.
#include <gtest/gtest.h>

#include "types/vector_math.h"

int main(int argc, char** argv) {
  mgm::settle_vector_math();  // as the product's does
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
