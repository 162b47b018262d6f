#include "transport/group/group.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace baton::transport {
namespace {

constexpr size_t kMaxTextBytes = 1024;

std::string Quoted(const std::string& text) { return absl::StrCat("'", text, "'"); }

std::string Ranks(const std::vector<int>& ranks) {
  return ranks.empty() ? "none" : absl::StrJoin(ranks, ",");
}

}  // namespace

absl::Status CheckGroupOptions(const GroupOptions& options) {
  if (options.world_size < 1 || options.world_size > kMaxGroupRanks) {
    return absl::InvalidArgumentError(absl::StrCat("group ", Quoted(options.group_id),
                                                   ": world_size is ", options.world_size,
                                                   "; it must be in [1, ", kMaxGroupRanks, "]"));
  }
  if (options.rank < 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(absl::StrCat("group ", Quoted(options.group_id), ": rank is ",
                                                   options.rank, "; it must be in [0, ",
                                                   options.world_size, ")"));
  }
  const std::vector<int>& absent = options.absent_ranks;
  const bool is_ascending =
      std::adjacent_find(absent.begin(), absent.end(), std::greater_equal<>()) == absent.end();
  if (!is_ascending || IsAbsent(options, options.rank) ||
      (!absent.empty() && (absent.front() < 0 || absent.back() >= options.world_size))) {
    return absl::InvalidArgumentError(
        absl::StrCat("group ", Quoted(options.group_id), ": absent_ranks are ", Ranks(absent),
                     "; they must ascend within [0, ", options.world_size, ") and leave out rank ",
                     options.rank, ", which joins"));
  }
  if (options.reduce_part_bytes < 4 || options.reduce_part_bytes % 4 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("group ", Quoted(options.group_id), ": reduce_part_bytes is ",
                     options.reduce_part_bytes, "; it must be a positive multiple of 4"));
  }
  for (const std::string* text :
       {&options.group_id, &options.revision, &options.model_hash, &options.name}) {
    if (text->size() <= kMaxTextBytes) continue;
    return absl::InvalidArgumentError(absl::StrCat("group: an id, revision, model hash or name of ",
                                                   text->size(), " bytes; at most ", kMaxTextBytes,
                                                   " are allowed"));
  }
  return absl::OkStatus();
}

absl::Status CheckSameGroup(const GroupOptions& ours, const GroupOptions& theirs) {
  std::vector<std::string> differences;
  const auto compare = [&](const char* what, const std::string& a, const std::string& b) {
    if (a != b) differences.push_back(absl::StrCat(what, " is ", b, " there and ", a, " here"));
  };
  compare("the group id", Quoted(ours.group_id), Quoted(theirs.group_id));
  compare("the group's size", absl::StrCat(ours.world_size), absl::StrCat(theirs.world_size));
  if (!IsAbsent(ours, theirs.rank)) {
    compare("the list of absent ranks", Ranks(ours.absent_ranks), Ranks(theirs.absent_ranks));
  }
  compare("the software revision", Quoted(ours.revision), Quoted(theirs.revision));
  compare("the model hash", Quoted(ours.model_hash), Quoted(theirs.model_hash));
  compare("reduce_part_bytes", absl::StrCat(ours.reduce_part_bytes),
          absl::StrCat(theirs.reduce_part_bytes));
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      RankName(theirs.rank, theirs.name), " does not fit ", RankName(ours.rank, ours.name),
      ", the host of group ", Quoted(ours.group_id), ": ", absl::StrJoin(differences, "; "),
      "; start all ranks of a group from one configuration, revision and model"));
}

bool IsAbsent(const GroupOptions& options, int rank) {
  return std::find(options.absent_ranks.begin(), options.absent_ranks.end(), rank) !=
         options.absent_ranks.end();
}

int HostRank(const GroupOptions& options) {
  int rank = 0;
  while (IsAbsent(options, rank)) ++rank;
  return rank;
}

std::string RankName(int rank, const std::string& name) {
  return name.empty() ? absl::StrCat("rank ", rank) : absl::StrCat("rank ", rank, " (", name, ")");
}

std::string RankNames(std::span<const int> ranks, std::span<const std::string> names) {
  std::string out;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) out += i + 1 == ranks.size() ? " and " : ", ";
    out += RankName(ranks[i], names[static_cast<size_t>(ranks[i])]);
  }
  return out;
}

absl::Status MissingRanksError(const GroupOptions& options, std::span<const int> missing,
                               std::span<const std::string> names, const std::string& refused) {
  return absl::DeadlineExceededError(absl::StrCat(
      "group ", Quoted(options.group_id), " of ", options.world_size, " ranks did not form within ",
      options.timeout.millis(), " ms: missing ", RankNames(missing, names),
      "; start them, with the same group id, size and addresses",
      refused.empty() ? "" : absl::StrCat(" (turned away: ", refused, ")")));
}

}  // namespace baton::transport
