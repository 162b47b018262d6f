// Which ranks may go on as their group: cases, and whole lives of groups whose ranks die, are cut
// off from each other and learn things late. Never do two groups go on.

#include "scheduler/group_quorum.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

std::vector<bool> Ranks(size_t count, const std::vector<size_t>& ranks) {
  std::vector<bool> out(count);
  for (const size_t r : ranks) out[r] = true;
  return out;
}

GroupView View(uint64_t generation, size_t count, const std::vector<size_t>& members) {
  return {generation, static_cast<int32_t>(members.front()), Ranks(count, members)};
}

// A group of four of which `here` have found each other and have seen the end of `ended`.
QuorumDecision OfFour(const std::vector<size_t>& here, const std::vector<size_t>& ended) {
  const ViewHistory history{View(1, 4, {0, 1, 2, 3}), {}, Ranks(4, ended)};
  std::vector<const ViewHistory*> histories(4);
  for (const size_t r : here) histories[r] = &history;
  return DecideQuorum(histories);
}

TEST(GroupQuorumTest, MoreThanHalfGoesOn) {
  EXPECT_TRUE(OfFour({1, 2, 3}, {}).may_go_on);
  EXPECT_FALSE(OfFour({0}, {1, 2, 3}).may_go_on);
}

TEST(GroupQuorumTest, HalfGoesOnWithTheFirstRankOrWhereTheOthersHaveEnded) {
  EXPECT_TRUE(OfFour({0, 3}, {}).may_go_on);
  const QuorumDecision cut_off = OfFour({1, 2}, {3});
  EXPECT_FALSE(cut_off.may_go_on);
  EXPECT_NE(cut_off.why_not.find("of the 4 ranks of generation 1 rank(s) 0, 3 are missing"),
            std::string::npos)
      << cut_off.why_not;
  EXPECT_TRUE(OfFour({1, 2}, {0, 3}).may_go_on);
}

TEST(GroupQuorumTest, AllHaveToHaveSeenTheEnd) {
  const ViewHistory knows{View(1, 4, {0, 1, 2, 3}), {}, Ranks(4, {0, 3})};
  const ViewHistory knows_not{View(1, 4, {0, 1, 2, 3}), {}, Ranks(4, {0})};
  EXPECT_FALSE(DecideQuorum({nullptr, &knows, &knows_not, nullptr}).may_go_on);
}

// Ranks 0 and 1 may have gone on without 3 and 4, and rank 2 with them: it cannot know.
TEST(GroupQuorumTest, AViewThatWasEnteredCounts) {
  const ViewHistory entered{View(1, 5, {0, 1, 2, 3, 4}), {View(2, 5, {0, 1, 2})}, Ranks(5, {})};
  const ViewHistory other{View(1, 5, {0, 1, 2, 3, 4}), {}, Ranks(5, {})};
  EXPECT_FALSE(DecideQuorum({nullptr, nullptr, &entered, &other, &other}).may_go_on);
  EXPECT_TRUE(DecideQuorum({nullptr, &entered, &entered, &other, nullptr}).may_go_on);
}

TEST(GroupQuorumTest, WhoseGroupHasGoneOnWithoutThemAreOutdated) {
  const ViewHistory newer{View(2, 4, {0, 1, 2}), {}, Ranks(4, {})};
  const ViewHistory older{View(1, 4, {0, 1, 2, 3}), {}, Ranks(4, {})};
  const QuorumDecision decision = DecideQuorum({&newer, &newer, nullptr, &older});
  EXPECT_FALSE(decision.may_go_on);
  EXPECT_EQ(decision.outdated, std::vector<int32_t>{3});
}

// --- whole lives ----------------------------------------------------------------------------

class GroupLife {
 public:
  GroupLife(uint64_t seed, size_t ranks) : rng_(seed), ranks_(ranks), members_(ranks) {
    GroupView all{1, 0, std::vector<bool>(ranks, true)};
    for (Member& m : members_) m = {true, true, 1, {all, {}, std::vector<bool>(ranks)}, {}, {}};
    worked_[1] = {all, all.members, std::vector<int>(ranks)};
    lives_.resize(ranks);
  }

  void Step() {
    const size_t r = rng_.Below(ranks_);
    switch (rng_.Below(8)) {
      case 0:
        if (rng_.Chance(0.2)) Die(r);
        break;
      case 1:
        Restart(r);
        break;
      case 2:
        Form();
        break;
      default:
        Resolve(r);
    }
  }

  size_t groups() const { return worked_.size(); }

 private:
  // A view that some ranks have been told to form.
  struct Attempt {
    GroupView view;
    std::vector<bool> entered;
    // What everybody gathers once all have entered.
    std::vector<std::optional<ViewHistory>> histories;
    std::vector<int> lives;
  };
  struct Member {
    bool alive = false;
    bool stayed = false;  // has a say; else it has just started
    uint64_t generation = 0;
    ViewHistory history;
    std::optional<size_t> attempt;  // that it is in the middle of
    std::optional<size_t> last;     // that it has entered
  };
  // A view that somebody has begun to work with.
  struct Group {
    GroupView view;
    std::vector<bool> asked;  // the ranks that had a say
    std::vector<int> lives;   // of the members: which of theirs
  };

  void Die(size_t r) {
    if (!members_[r].alive) return;
    const Member dead = std::exchange(members_[r], {});
    // Those see it with whom it was connected to the end, unless they are cut off.
    for (Member& m : members_) {
      const bool together = m.stayed && dead.stayed && m.last == dead.last;
      if (together && rng_.Chance(0.7)) m.history.ended[r] = true;
    }
  }

  void Restart(size_t r) {
    if (members_[r].alive) return;
    ++lives_[r];
    members_[r].alive = true;
    members_[r].history.ended.assign(ranks_, false);
  }

  // Some ranks that are in the middle of nothing find each other.
  void Form() {
    Attempt attempt{{0, -1, std::vector<bool>(ranks_)}, std::vector<bool>(ranks_), {}, lives_};
    attempt.histories.resize(ranks_);
    const double share = rng_.Chance(0.6) ? 1 : rng_.Uniform();
    for (size_t r = 0; r < ranks_; ++r) {
      const Member& m = members_[r];
      if (!m.alive || m.attempt.has_value() || !rng_.Chance(share)) continue;
      attempt.view.members[r] = true;
      attempt.view.generation = std::max(attempt.view.generation, m.generation);
      if (m.stayed && attempt.view.first < 0) attempt.view.first = static_cast<int32_t>(r);
    }
    if (attempt.view.first < 0) return;
    ++attempt.view.generation;
    for (size_t r = 0; r < ranks_; ++r) {
      if (!attempt.view.members[r]) continue;
      // Hears of it or not, and then tries again.
      if (rng_.Chance(0.03)) continue;
      members_[r].generation = attempt.view.generation;
      if (rng_.Chance(0.03)) continue;
      members_[r].attempt = attempts_.size();
    }
    attempts_.push_back(std::move(attempt));
  }

  // A rank goes on with what it is in the middle of.
  void Resolve(size_t r) {
    Member& m = members_[r];
    if (!m.attempt.has_value()) return;
    Attempt& attempt = attempts_[*m.attempt];
    if (!attempt.entered[r]) {
      attempt.entered[r] = true;
      m.last = m.attempt;
      if (!m.stayed) return;
      attempt.histories[r] = m.history;
      m.history.Enter(attempt.view);
    } else if (attempt.entered == attempt.view.members && rng_.Chance(0.6)) {
      m.attempt.reset();
      Decide(r, attempt);
    } else if (rng_.Chance(0.15)) {
      m.attempt.reset();  // in vain
    }
  }

  void Decide(size_t r, const Attempt& attempt) {
    std::vector<const ViewHistory*> histories(ranks_);
    for (size_t i = 0; i < ranks_; ++i) {
      if (attempt.histories[i].has_value()) histories[i] = &*attempt.histories[i];
    }
    const QuorumDecision decision = DecideQuorum(histories);
    if (!decision.may_go_on) {
      const bool leaves = decision.outdated.empty() ||
                          std::count(decision.outdated.begin(), decision.outdated.end(),
                                     static_cast<int32_t>(r)) > 0;
      if (leaves && members_[r].stayed) Die(r);  // for good
      return;
    }
    Member& m = members_[r];
    m.stayed = true;
    m.history.Establish(attempt.view);
    Group group{attempt.view, std::vector<bool>(ranks_), attempt.lives};
    for (size_t i = 0; i < ranks_; ++i) group.asked[i] = attempt.histories[i].has_value();
    const auto [at, is_new] = worked_.emplace(attempt.view.generation, group);
    ASSERT_EQ(at->second.view, attempt.view) << "two groups of one generation";
    if (!is_new) return;
    // Late news: others may have gone on from it already.
    ExpectFollows(std::prev(at)->second, at->second);
    if (std::next(at) != worked_.end()) ExpectFollows(at->second, std::next(at)->second);
  }

  // No two sets of ranks could follow `before` as `after` does.
  void ExpectFollows(const Group& before, const Group& after) {
    int here = 0;
    int members = 0;
    bool rest_is_dead = true;
    for (size_t r = 0; r < ranks_; ++r) {
      if (!before.view.members[r]) continue;
      ++members;
      here += after.asked[r];
      const bool lives = members_[r].alive && lives_[r] == before.lives[r];
      rest_is_dead = rest_is_dead && (after.asked[r] || !lives);
    }
    const bool has_first = after.asked[static_cast<size_t>(before.view.first)];
    ASSERT_TRUE(2 * here > members || (2 * here == members && (has_first || rest_is_dead)))
        << "generation " << after.view.generation << " beside " << before.view.generation;
  }

  Rng rng_;
  const size_t ranks_;
  std::vector<Member> members_;
  std::vector<Attempt> attempts_;
  std::vector<int> lives_;  // of each rank
  std::map<uint64_t, Group> worked_;
};

TEST(GroupQuorumPropertyTest, TwoGroupsNeverGoOn) {
  size_t groups = 0;
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    GroupLife life(seed, 2 + seed % 7);
    for (int step = 0; step < 600; ++step) life.Step();
    if (HasFatalFailure()) return;
    groups += life.groups();
  }
  EXPECT_GT(groups, 1000u);  // the lives are not all short
}

}  // namespace
}  // namespace baton::scheduler
