// request_fsm, page_pool, identity and the hand-off seal.

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/handoff.h"
#include "scheduler/identity.h"
#include "scheduler/page_pool.h"
#include "scheduler/request_fsm.h"

namespace baton::scheduler {
namespace {

using enum RequestState;

constexpr RequestState kAll[] = {kQueued,   kReserved, kPrefilling, kLanded,
                                 kDecoding, kDone,     kFailed,     kCancelled};

TEST(RequestFsmTest, OnlyTheTableOfTheReadmeIsLegal) {
  const std::set<std::pair<RequestState, RequestState>> legal = {
      {kQueued, kReserved},      {kQueued, kDone},         {kQueued, kFailed},
      {kQueued, kCancelled},     {kReserved, kPrefilling}, {kReserved, kQueued},
      {kReserved, kFailed},      {kReserved, kCancelled},  {kPrefilling, kLanded},
      {kPrefilling, kDone},      {kPrefilling, kQueued},   {kPrefilling, kFailed},
      {kPrefilling, kCancelled}, {kLanded, kDecoding},     {kLanded, kDone},
      {kLanded, kQueued},        {kLanded, kFailed},       {kLanded, kCancelled},
      {kDecoding, kDone},        {kDecoding, kQueued},     {kDecoding, kFailed},
      {kDecoding, kCancelled}};
  for (const RequestState from : kAll) {
    for (const RequestState to : kAll) {
      EXPECT_EQ(IsLegal(from, to), legal.contains({from, to})) << Name(from) << " -> " << Name(to);
    }
  }
}

TEST(RequestFsmTest, GoingBackToTheQueueBeginsTheNextAttempt) {
  RequestFsm fsm;
  fsm.To(kReserved);
  fsm.To(kPrefilling);
  EXPECT_TRUE(fsm.running());
  EXPECT_EQ(fsm.attempt(), 0u);
  fsm.To(kQueued);
  EXPECT_FALSE(fsm.running());
  EXPECT_EQ(fsm.attempt(), 1u);
}

TEST(RequestFsmDeathTest, IllegalTransitionAborts) {
  RequestFsm fsm;
  EXPECT_DEATH(fsm.To(kDecoding), "queued -> decoding");
}

TEST(PagePoolTest, CountsAddUpThroughEveryChange) {
  PagePool pool(8);
  EXPECT_TRUE(pool.CanAllocate(8));
  const std::vector<PageId> a = pool.Allocate(3);
  const std::vector<PageId> b = pool.Allocate(4);
  EXPECT_FALSE(pool.CanAllocate(2));
  EXPECT_EQ(pool.allocated_pages(), 7);
  pool.Quarantine(a);
  EXPECT_EQ(pool.quarantined_pages(), 3);
  EXPECT_EQ(pool.free_pages(), 1);  // quarantined pages are not handed out
  pool.CheckConservation();
  pool.EndQuarantine(a);
  pool.Free(b);
  EXPECT_EQ(pool.free_pages(), 8);
  pool.CheckConservation();
}

TEST(PagePoolTest, NoPageIsHandedOutTwice) {
  PagePool pool(16);
  std::set<PageId> seen;
  for (const PageId page : pool.Allocate(10)) EXPECT_TRUE(seen.insert(page).second);
  for (const PageId page : pool.Allocate(6)) EXPECT_TRUE(seen.insert(page).second);
  EXPECT_EQ(seen.rbegin()->value(), 15u);
}

TEST(PagePoolDeathTest, FreeingTwiceAborts) {
  PagePool pool(4);
  const std::vector<PageId> pages = pool.Allocate(1);
  pool.Free(pages);
  EXPECT_DEATH(pool.Free(pages), "check failed");
}

TEST(PagePoolDeathTest, FreeingAQuarantinedPageAborts) {
  PagePool pool(4);
  const std::vector<PageId> pages = pool.Allocate(1);
  pool.Quarantine(pages);
  EXPECT_DEATH(pool.Free(pages), "check failed");
}

TEST(ReservedTokensTest, TheLastTokenIsNeverWritten) {
  EXPECT_EQ(ReservedTokens(10, 0, 1, 100), 10);     // prefill samples it
  EXPECT_EQ(ReservedTokens(10, 0, 5, 100), 14);     // all but the last
  EXPECT_EQ(ReservedTokens(10, 3, 100, 20), 32);    // prompt, delivered, 20 ahead less one
  EXPECT_EQ(ReservedTokens(10, 99, 100, 20), 109);  // one to come: nothing to write for it
}

WorkerIdentity Identity() {
  WorkerIdentity identity;
  identity.role = "decode";
  identity.instance = "a:1";
  identity.model_name = "m";
  identity.model_hash = "h";
  identity.kv_format = "bf16";
  identity.page_tokens = 64;
  identity.layers = 4;
  identity.revision = "r1";
  identity.expert_dispatch = "activations";
  return identity;
}

TEST(IdentityTest, EqualAndUnknownFieldsMatch) {
  EXPECT_TRUE(CheckCompatible(Identity(), Identity()).ok());
  EXPECT_TRUE(CheckCompatible(WorkerIdentity(), Identity()).ok());
  EXPECT_TRUE(CheckCompatible(Identity(), WorkerIdentity()).ok());
}

TEST(IdentityTest, EveryDifferenceIsNamed) {
  WorkerIdentity other = Identity();
  other.instance = "b:2";
  other.model_hash = "other";
  other.kv_format = "fp8";
  other.page_tokens = 32;
  other.layers = 5;
  other.revision = "r2";
  other.expert_dispatch = "fp8";
  const absl::Status status = CheckCompatible(Identity(), other);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(status.message());
  for (const char* part : {"a:1", "b:2", "model hash", "'fp8'", "page size", "32", "layer count",
                           "revision", "'r2'", "expert dispatch"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
  EXPECT_EQ(message.find("model name"), std::string::npos);
}

TEST(HandoffSealTest, EveryFieldChangesIt) {
  const HandoffPlace place{{RequestId(1), 2}, Epoch(3), 4, 5, 6, 7};
  std::set<uint64_t> seals = {HandoffSeal(place)};
  for (int field = 0; field < 7; ++field) {
    for (int bit = 0; bit < 32; ++bit) {
      HandoffPlace other = place;
      const uint32_t flip = 1u << bit;
      if (field == 0) other.key.request = RequestId(1 ^ uint64_t{flip});
      if (field == 1) other.key.attempt ^= flip;
      if (field == 2) other.epoch = Epoch(3 ^ uint64_t{flip});
      if (field == 3) other.layer ^= flip;
      if (field == 4) other.first_page ^= flip;
      if (field == 5) other.page_count ^= flip;
      if (field == 6) other.token_count ^= flip;
      EXPECT_TRUE(seals.insert(HandoffSeal(other)).second) << "field " << field << " bit " << bit;
    }
  }
}

}  // namespace
}  // namespace baton::scheduler
