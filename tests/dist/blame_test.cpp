// What `blame` says of records that are made up here: the one rank behind it all, and no other.
#include "dist/blame.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/strings.h"
#include "dist/topology.h"

namespace mgm {
namespace {

using Findings = std::vector<std::string>;

// A rank with its groups, at step 7.
FlightRecord record_of(int rank, int world, const DistConfig& config) {
  FlightRecord r;
  r.rank = rank;
  r.world = world;
  r.host = cat("h", rank);
  r.phase = "step";
  r.step = 7;
  const RankGroups groups(make_topology(config, rank, world, world));
  r.groups = {groups.control};
  for (const GroupPlace* group : groups.connected()) r.groups.push_back(*group);
  return r;
}

CollectiveRecord collective(const char* group, int64_t sequence, const char* label, bool left) {
  CollectiveRecord c;
  c.group = group;
  c.sequence = sequence;
  c.operation = "all_gather";
  c.label = label;
  c.dtype = "Float";
  c.numel = 8;
  c.left_s = left ? 1 : 0;
  return c;
}

struct Did {
  const char* group;
  int64_t sequence;
  bool left;
};

FlightRecord did(FlightRecord r, const std::vector<Did>& all) {
  for (const Did& d : all) {
    r.collectives.push_back(collective(d.group, d.sequence, "b", d.left));
  }
  return r;
}

DistConfig config_of_mode(DistMode mode, int64_t shard_size = 0) {
  DistConfig out;
  out.mode = mode;
  out.shard_size = shard_size;
  return out;
}

// Three ranks, the middle one stopped: rank 2 is behind rank 0 in one group, for it waits for rank
// 1 in another.
std::vector<FlightRecord> middle_stopped() {
  const DistConfig zero2 = config_of_mode(DistMode::kZero2);
  return {did(record_of(0, 3, zero2), {{"reduce.0", 5, true}, {"world", 9, false}}),
          did(record_of(1, 3, zero2), {{"reduce.0", 4, true}, {"world", 8, true}}),
          did(record_of(2, 3, zero2), {{"reduce.0", 5, false}, {"world", 8, true}})};
}

TEST(Blame, ARankThatOnlyWaitsForTheCulpritIsNotNamed) {
  EXPECT_EQ(blame(middle_stopped()),
            (Findings{"rank 1 on h1 has not entered all_gather 'b' (number 5 of group reduce.0), "
                      "which rank 2 waits in; it was at step 7, phase step, and had entered "
                      "all_gather 'b' (number 4 of group reduce.0) last"}));
}

TEST(Blame, WhoIsBehindWithoutWaitingIsNamedEachOnce) {
  std::vector<FlightRecord> records = middle_stopped();
  records[2].collectives[0].left_s = 1;  // does something else, for long
  const Findings found = blame(records);
  ASSERT_EQ(found.size(), 2u) << join(found, "\n");
  EXPECT_EQ(found[0].rfind("rank 1 on h1 has not entered all_gather 'b' (number 9 of group world), "
                           "which rank 0 waits in",
                           0),
            0u)
      << found[0];
  EXPECT_EQ(found[1].rfind("rank 2 on h2 has not entered all_gather 'b' (number 9 of group world), "
                           "which rank 0 waits in",
                           0),
            0u)
      << found[1];
}

// Two shard groups of two: rank 3 is stopped. Rank 2 waits for it in their shard group, rank 0 for
// rank 2 in the replica group, rank 1 for rank 0 in the other shard group.
TEST(Blame, FollowsAChainOverTheGroupsOfAHybrid) {
  const DistConfig hybrid = config_of_mode(DistMode::kHybrid, 2);
  const std::vector<FlightRecord> records = {
      did(record_of(0, 4, hybrid), {{"gather.0", 6, true}, {"replica.0", 4, false}}),
      did(record_of(1, 4, hybrid), {{"gather.0", 7, false}, {"replica.1", 3, true}}),
      did(record_of(2, 4, hybrid), {{"gather.1", 6, false}, {"replica.0", 3, true}}),
      did(record_of(3, 4, hybrid), {{"gather.1", 5, true}, {"replica.1", 3, true}})};
  EXPECT_EQ(blame(records),
            (Findings{"rank 3 on h3 has not entered all_gather 'b' (number 6 of group gather.1), "
                      "which rank 2 waits in; it was at step 7, phase step, and had entered "
                      "all_gather 'b' (number 5 of group gather.1) last"}));
  // Killed, it leaves no record, and the others are as little to blame.
  EXPECT_EQ(blame({records[0], records[1], records[2]}),
            (Findings{"rank 3 left no record: killed, or the host is gone"}));
  // It has entered nothing of the group yet.
  std::vector<FlightRecord> early = records;
  early[3].collectives.clear();
  ASSERT_EQ(blame(early).size(), 1u);
  EXPECT_NE(blame(early)[0].find("rank 3 on h3 has not entered"), std::string::npos);
  EXPECT_NE(blame(early)[0].find("and had entered nothing of that group last"), std::string::npos);
}

// A device's collective is left by the host at once; the ranks that ran ahead on the host are the
// ones that wait.
TEST(Blame, OnADeviceTheRankFurthestBehindIsNamed) {
  std::vector<FlightRecord> records = middle_stopped();
  for (FlightRecord& r : records) {
    for (CollectiveRecord& c : r.collectives) c.left_s = 1, c.on_device = true;
  }
  const Findings found = blame(records);
  ASSERT_EQ(found.size(), 1u) << join(found, "\n");
  EXPECT_EQ(found[0].rfind("rank 1 on h1 has not entered", 0), 0u) << found[0];
}

TEST(Blame, RanksThatWaitForEachOtherAreBothNamed) {
  const DistConfig zero2 = config_of_mode(DistMode::kZero2);
  const Findings found =
      blame({did(record_of(0, 3, zero2), {{"reduce.0", 5, false}, {"world", 8, true}}),
             did(record_of(1, 3, zero2), {{"reduce.0", 4, true}, {"world", 9, false}}),
             did(record_of(2, 3, zero2), {{"reduce.0", 5, false}, {"world", 9, false}})});
  ASSERT_EQ(found.size(), 2u) << join(found, "\n");
  EXPECT_EQ(found[0].rfind("rank 0 on h0 has not entered all_gather 'b' (number 9 of group world), "
                           "which ranks 1, 2 wait in",
                           0),
            0u)
      << found[0];
  EXPECT_EQ(found[1].rfind("rank 1 on h1 has not entered all_gather 'b' (number 5 of group "
                           "reduce.0), which ranks 0, 2 wait in",
                           0),
            0u)
      << found[1];
}

TEST(Blame, ASilentRankIsBehindItEvenWithinACollective) {
  std::vector<FlightRecord> records = middle_stopped();
  for (FlightRecord& r : records) r.collectives = {collective("world", 9, "b", false)};
  EXPECT_EQ(blame(records), (Findings{"all 3 ranks of group world have entered all_gather 'b' "
                                      "(number 9 of group world) and it has not ended: the network "
                                      "or a device between them"}));
  records[1].silent_s = 5;
  EXPECT_EQ(blame(records),
            (Findings{"rank 1 on h1 has given no sign of life for 5 s: stopped, or its host or "
                      "network is gone. It was at step 7, phase step, last collective: 'b'"}));
}

FlightRecord at_start(FlightRecord r) {
  r.phase = "start";
  r.step = 0;
  r.groups.push_back({kStartGroup, r.world, 0, 1});
  return r;
}

CollectiveRecord round(int64_t sequence, const char* label, bool left) {
  CollectiveRecord c = collective(kStartGroup, sequence, label, left);
  c.operation = "gather";
  c.dtype = "";
  c.numel = 0;
  return c;
}

CollectiveRecord connecting(const char* group, bool left) {
  CollectiveRecord c = collective(group, kConnectNumber, group, left);
  c.operation = kConnect;
  c.dtype = "";
  c.numel = 0;
  return c;
}

// Rank 2 has given its hashes and waits for what the first rank says, which waits for rank 1.
TEST(Blame, WhoDoesNotComeToARoundOfTheStartIsNamed) {
  const DistConfig zero2 = config_of_mode(DistMode::kZero2);
  std::vector<FlightRecord> records;
  for (int rank = 0; rank < 3; ++rank) records.push_back(at_start(record_of(rank, 3, zero2)));
  records[0].collectives = {round(4, "weights", false)};
  records[1].collectives = {round(3, "a name", true)};
  records[2].collectives = {round(5, "verdict", false)};
  EXPECT_EQ(
      blame(records),
      (Findings{"rank 1 on h1 has not entered 'weights' of the start, which rank 0 waits in; "
                "it was at step 0, phase start, and had entered 'a name' of the start last"}));
}

TEST(Blame, WhoDoesNotComeToConnectAGroupIsNamed) {
  const DistConfig hybrid = config_of_mode(DistMode::kHybrid, 2);
  std::vector<FlightRecord> records;
  for (int rank = 0; rank < 4; ++rank) {
    records.push_back(at_start(record_of(rank, 4, hybrid)));
    records.back().collectives = {connecting("control", true)};
  }
  records[0].collectives.push_back(connecting("gather.0", true));
  records[0].collectives.push_back(connecting("replica.0", false));
  records[1].collectives.push_back(connecting("gather.0", true));
  records[1].collectives.push_back(connecting("replica.1", false));
  records[2].collectives.push_back(connecting("gather.1", false));
  EXPECT_EQ(blame(records),
            (Findings{"rank 3 on h3 has not entered the connecting of group gather.1, which rank 2 "
                      "waits in; it was at step 0, phase start, and had entered nothing of that "
                      "group last"}));
}

// As behind a firewall: the store is reached, the ports of the groups are not.
TEST(Blame, OfAGroupThatDoesNotConnectRanksAndHostsAreNamed) {
  std::vector<FlightRecord> records;
  for (int rank = 0; rank < 4; ++rank) {
    FlightRecord r = at_start(record_of(rank, 4, config_of_mode(DistMode::kZero2)));
    r.host = rank < 2 ? "a" : "b";
    r.collectives = {round(1, "place", true), connecting("control", false)};
    records.push_back(r);
  }
  const std::string found =
      "ranks 0, 1 on a and ranks 2, 3 on b are all connecting group control and it has not ended: "
      "some of them do not reach each other. No firewall may stand between them, on any port; "
      "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to take";
  EXPECT_EQ(blame(records), Findings{found});
  for (FlightRecord& r : records) r = flight_record(to_json(r));
  EXPECT_EQ(blame(records), Findings{found});
}

TEST(Blame, AFailureOfARanksOwnIsToldOnceAndAnEchoOfItNever) {
  std::vector<FlightRecord> records = middle_stopped();
  records[1].cause = "cat.jpg is cut in half";
  records[2].cause = "Connection closed by peer";
  records[2].kind = CauseKind::kEcho;
  EXPECT_EQ(blame(records),
            (Findings{"rank 1 on h1 failed at step 7, phase step: cat.jpg is cut in half"}));
  // Where the echo is all there is, it is told.
  records[1].cause.clear();
  for (FlightRecord& r : records) r.collectives.clear();
  EXPECT_EQ(blame(records),
            (Findings{"rank 2 on h2 failed at step 7, phase step: Connection closed by peer"}));
}

// It stood still in the middle of sending, and goes on when the others have ended: rank 1 has all
// of number 5, rank 2 has not.
TEST(Blame, WhoWaitedForAFailureOfARanksOwnIsNotNamed) {
  const DistConfig zero2 = config_of_mode(DistMode::kZero2);
  std::vector<FlightRecord> records = {did(record_of(0, 3, zero2), {{"reduce.0", 5, true}}),
                                       did(record_of(1, 3, zero2), {{"reduce.0", 6, false}}),
                                       did(record_of(2, 3, zero2), {{"reduce.0", 5, false}})};
  records[0].cause = "rank 0 on h0 has stood still for 7 s";
  for (const int rank : {1, 2}) {
    records[rank].cause = "the store of the ranks has not answered for 6 s";
    records[rank].kind = CauseKind::kEcho;
  }
  EXPECT_EQ(blame(records), (Findings{"rank 0 on h0 failed at step 7, phase step: rank 0 on h0 has "
                                      "stood still for 7 s"}));
}

// It went on when the others had ended: its record is of later than theirs.
TEST(Blame, WhatWasFoundWhileAllStoodStillCounts) {
  std::vector<FlightRecord> records = middle_stopped();
  records[0].cause = "step 7 has lasted 60 s: rank 1 on h1 has not entered ...";
  records[0].kind = CauseKind::kFound;
  records[1].collectives.push_back(collective("reduce.0", 5, "b", false));
  records[1].cause = "Connection closed by peer";
  records[1].kind = CauseKind::kEcho;
  EXPECT_EQ(blame(records), (Findings{"found by rank 0 on h0: step 7 has lasted 60 s: rank 1 on h1 "
                                      "has not entered ..."}));
}

TEST(Blame, FindsDifferentCollectivesAndMissingRanks) {
  const auto record = [](int rank, const char* label, int64_t numel) {
    FlightRecord r;
    r.rank = rank;
    r.world = 3;
    r.host = "h";
    r.phase = "step";
    CollectiveRecord c = collective("gather.0", 5, label, true);
    c.numel = numel;
    r.collectives = {c};
    return r;
  };
  EXPECT_EQ(
      blame({record(0, "block 1", 8), record(2, "block 2", 8)}),
      (Findings{"rank 1 left no record: killed, or the host is gone",
                "number 5 of group gather.0 differs: rank 0 entered all_gather 'block 1' of 8 "
                "Float, rank 2 entered all_gather 'block 2' of 8 Float"}));
  // It waits for what another has ended, and is not sent.
  FlightRecord waits = record(0, "b", 8);
  waits.collectives[0].left_s = 0;
  EXPECT_EQ(blame({waits, record(1, "b", 8), record(2, "b", 8)}),
            (Findings{"rank 1 on h, rank 2 on h have ended all_gather 'b' (number 5 of group "
                      "gather.0), which rank 0 waits in: stopped or very slow, or the network "
                      "between them"}));
  const Findings agree = {
      "the records of 3 ranks agree: every collective that was entered has ended, all_gather 'b' "
      "(number 5 of group gather.0) last; each is at work of its own"};
  EXPECT_EQ(blame({record(0, "b", 8), record(1, "b", 8), record(2, "b", 8)}), agree);
  // A size that differs is a fault, but for rows that each rank has another number of.
  std::vector<FlightRecord> sizes = {record(0, "b", 8), record(1, "b", 9), record(2, "b", 8)};
  ASSERT_EQ(blame(sizes).size(), 1u);
  EXPECT_NE(blame(sizes)[0].find("number 5 of group gather.0 differs"), std::string::npos);
  EXPECT_NE(blame(sizes)[0].find("of 9 Float"), std::string::npos);
  for (FlightRecord& r : sizes) r.collectives[0].operation = "all_to_all";
  ASSERT_EQ(blame(sizes).size(), 1u);
  EXPECT_EQ(blame(sizes)[0].rfind("the records of 3 ranks agree", 0), 0u) << blame(sizes)[0];
}

// What a heartbeat calls the last collective is the last of all groups.
TEST(CollectiveLog, TheLatestOfEachGroupComeInTheOrderTheyWereEnteredIn) {
  CollectiveLog log;
  EXPECT_EQ(log.next_sequence("world"), 0);
  log.enter(collective("world", 3, "loss", true));
  log.enter(collective("control", 8, "count", true));
  log.enter(collective("control", 9, "stop", false));
  const std::vector<CollectiveRecord> latest = log.latest();
  ASSERT_EQ(latest.size(), 2u);
  EXPECT_EQ(latest[0].label, "loss");
  EXPECT_EQ(latest[1].label, "stop");
  EXPECT_EQ(log.next_sequence("world"), 4);
}

// ---- records as files ---------------------------------------------------------------------------

std::string refusal(const Json& json) {
  try {
    flight_record(json);
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

TEST(FlightRecord, ComesBackFromJson) {
  FlightRecord r = middle_stopped()[2];
  r.cause = "why";
  r.kind = CauseKind::kFound;
  const FlightRecord back = flight_record(to_json(r));
  EXPECT_EQ(to_json(back), to_json(r));
  EXPECT_EQ(back.kind, CauseKind::kFound);
  ASSERT_EQ(back.groups.size(), r.groups.size());
  EXPECT_EQ(back.groups.back().name, r.groups.back().name);
}

TEST(FlightRecord, RefusesWhatNoRunCouldHaveWritten) {
  const Json good = to_json(middle_stopped()[2]);
  const auto with = [&](const char* path, const Json& value) {
    Json json = good;
    json[Json::json_pointer(path)] = value;
    return refusal(json);
  };
  EXPECT_EQ(with("/world", 1000000000),
            "not a flight record: rank 2 of a world of 1000000000; a world has 1 to 1048576 ranks");
  EXPECT_EQ(with("/rank", -1),
            "not a flight record: rank -1 of a world of 3; a world has 1 to 1048576 ranks");
  EXPECT_EQ(with("/rank", 3),
            "not a flight record: rank 3 of a world of 3; a world has 1 to 1048576 ranks");
  EXPECT_EQ(with("/groups/0/size", 4),
            "not a flight record: group 'control' of 4 ranks from 0 by 1 does not lie in the world "
            "of 3");
  EXPECT_EQ(with("/groups/0/stride", 2),
            "not a flight record: group 'control' of 3 ranks from 0 by 2 does not lie in the world "
            "of 3");
  EXPECT_EQ(with("/cause_is", "mine"),
            "not a flight record: cause_is 'mine' is not own, found or echo");
}

}  // namespace
}  // namespace mgm
