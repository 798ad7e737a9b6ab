// SLURM's short lists of task counts and nodes.
#include "launch/slurm_lists.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace mgm {
namespace {

std::string message(const std::function<void()>& act) {
  try {
    act();
  } catch (const DistError& e) {
    return e.what();
  }
  return "no error";
}

TEST(SlurmLists, TaskCounts) {
  using Counts = std::vector<int>;
  EXPECT_EQ(expand_task_counts("V", "8"), Counts({8}));
  EXPECT_EQ(expand_task_counts("V", "2(x3)"), Counts({2, 2, 2}));
  EXPECT_EQ(expand_task_counts("V", "4(x2),3"), Counts({4, 4, 3}));
  EXPECT_EQ(expand_task_counts("V", "1,2(x1),16(x2)"), Counts({1, 2, 16, 16}));
}

TEST(SlurmLists, BrokenTaskCountsNameTheVariable) {
  for (const char* text : {"", ",", "4,", "x", "4(x", "4(x)", "4(x2", "4(2)", "4(x2)3", "-1", "0",
                           "4(x0)", "4(x-1)", "4 ", "99999999999", "1(x999999)"}) {
    const std::string error = message([&] { expand_task_counts("SLURM_X", text); });
    EXPECT_EQ(error.find(cat("SLURM_X is '", text, "'")), 0) << text << ": " << error;
    EXPECT_NE(error.find("4(x2),3"), std::string::npos) << error;
  }
}

TEST(SlurmLists, NodeNames) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(expand_node_list("V", "vm"), Names({"vm"}));
  EXPECT_EQ(expand_node_list("V", "a,b.c"), Names({"a", "b.c"}));
  EXPECT_EQ(expand_node_list("V", "gpu[3]"), Names({"gpu3"}));
  EXPECT_EQ(expand_node_list("V", "gpu[01-03,07],login1"),
            Names({"gpu01", "gpu02", "gpu03", "gpu07", "login1"}));
  EXPECT_EQ(expand_node_list("V", "n[9-11]"), Names({"n9", "n10", "n11"}));
  EXPECT_EQ(expand_node_list("V", "n[098-101]"), Names({"n098", "n099", "n100", "n101"}));
  EXPECT_EQ(expand_node_list("V", "a[1-2]-ib,b[5]x"), Names({"a1-ib", "a2-ib", "b5x"}));
  EXPECT_EQ(expand_node_list("V", "r[1-2]n[3,5]"), Names({"r1n3", "r1n5", "r2n3", "r2n5"}));
}

TEST(SlurmLists, BrokenNodeListsNameTheVariable) {
  for (const char* text :
       {"", "a,,b", ",a", "gpu[1-3", "gpu1-3]", "gpu[[1]]", "gpu[]", "gpu[a-b]", "gpu[1-]",
        "gpu[-3]", "gpu[3-1]", "gpu[1,,2]", "gpu[0-99999999]", "a[0-999]b[0-999]"}) {
    const std::string error = message([&] { expand_node_list("SLURM_N", text); });
    EXPECT_EQ(error.find(cat("SLURM_N is '", text, "'")), 0) << text << ": " << error;
  }
}

}  // namespace
}  // namespace mgm
