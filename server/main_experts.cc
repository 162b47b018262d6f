// baton experts: where the experts of a running decode group lie, and how loaded they are.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "proto/baton/v1/worker.grpc.pb.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/grpc_status.h"

namespace baton::server {
namespace {

constexpr int64_t kTimeoutSeconds = 5;
constexpr size_t kBusiest = 4;  // experts that are shown of each layer

std::string RanksWithout(const google::protobuf::RepeatedField<bool>& flags) {
  std::string ranks;
  for (int r = 0; r < flags.size(); ++r) {
    if (!flags[r]) absl::StrAppend(&ranks, ranks.empty() ? "" : ", ", r);
  }
  return ranks;
}

void PrintSummary(const v1::ExpertsReply& reply, std::ostream& out) {
  const int ranks = reply.live_size();
  const int64_t slots = int64_t{reply.slots_per_rank()} * ranks;
  out << absl::StrFormat("%d ranks of %d slots (%d in a layer); rank %d leads\n", ranks,
                         reply.slots_per_rank(), slots, reply.leader())
      << absl::StrFormat("placement %d, %.0f s old; balancedness %.3f\n", reply.version(),
                         static_cast<double>(reply.placement_age_ns()) * 1e-9,
                         reply.balancedness());
  const std::string masked = RanksWithout(reply.live()), absent = RanksWithout(reply.present());
  if (!masked.empty()) {
    out << "masked, so that no tokens go there: rank " << masked
        << (absent.empty() ? " (back, and copying its experts)" : "") << "\n";
  }
  if (!absent.empty()) out << "absent: rank " << absent << "\n";
  out << "experts without a replica: " << reply.uncovered()
      << "; on one rank alone, lost with it: " << reply.on_one_rank() << "\n";
  if (!reply.last_rebalance().empty()) {
    out << "last rebalance: " << reply.last_rebalance() << "\n";
  }
}

// Replicas of an expert on live ranks.
int Replicas(const v1::ExpertsReply& reply, const v1::ExpertLayer& layer, int expert) {
  int count = 0;
  for (int slot = 0; slot < layer.slot_experts_size(); ++slot) {
    const int rank = slot / std::max(reply.slots_per_rank(), 1);
    count += layer.slot_experts(slot) == expert && rank < reply.live_size() && reply.live(rank);
  }
  return count;
}

void PrintLayer(const v1::ExpertsReply& reply, int i, std::ostream& out) {
  const v1::ExpertLayer& layer = reply.layers(i);
  const double sum = std::accumulate(layer.loads().begin(), layer.loads().end(), 0.0);
  std::vector<int> experts(static_cast<size_t>(layer.loads_size()));
  std::iota(experts.begin(), experts.end(), 0);
  std::stable_sort(experts.begin(), experts.end(),
                   [&](int a, int b) { return layer.loads(a) > layer.loads(b); });
  experts.resize(std::min(experts.size(), kBusiest));
  std::string busiest;
  for (const int expert : experts) {
    absl::StrAppendFormat(&busiest, "  %4d: %4.1f%% on %d", expert,
                          sum > 0 ? 100 * layer.loads(expert) / sum : 0.0,
                          Replicas(reply, layer, expert));
  }
  out << absl::StrFormat("%5d  %12.3f  %9.0f%s\n", i, layer.balancedness(), sum, busiest);
}

absl::StatusOr<int> ShowExperts(const CommandContext& context) {
  const std::string address = context.flags.text("server");
  const auto stub =
      v1::Experts::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext call;
  call.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                 gpr_time_from_seconds(kTimeoutSeconds, GPR_TIMESPAN)));
  v1::ExpertsRequest request;
  request.set_rebalance(context.flags.on("rebalance"));
  v1::ExpertsReply reply;
  const grpc::Status status = stub->Describe(&call, request, &reply);
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
    return absl::FailedPreconditionError(
        absl::StrCat(address,
                     " has no decode group of several ranks; name a decode rank, or a "
                     "baton serve with decode.ranks above 1"));
  }
  if (!status.ok()) return FromGrpc(status);
  PrintSummary(reply, context.out);
  context.out
      << "\nlayer  balancedness  tokens     busiest experts: share of the tokens, replicas\n";
  for (int i = 0; i < reply.layers_size(); ++i) PrintLayer(reply, i, context.out);
  if (request.rebalance()) {
    context.err << "A rebalance was asked for: ask again in a while to see how it ended."
                << std::endl;
  }
  return kExitOk;
}

}  // namespace

Command ExpertsCommand() {
  return {
      .name = "experts",
      .summary = "where a decode group's experts lie, and their load",
      .description =
          "Asks a decode rank, or a baton serve with several, where its group's experts lie: for "
          "each MoE layer the balancedness (mean over maximum of the ranks' load) and the busiest "
          "experts, with their share of recent tokens and their replicas.",
      .flags = {{"server", FlagType::kAddress, "The decode rank or server to ask.",
                 "localhost:50051"},
                {"rebalance", FlagType::kSwitch,
                 "Also ask for a better placement now, whatever it gains.", ""}},
      .run = [](const CommandContext& context) { return ExitCode(context, ShowExperts(context)); }};
}

}  // namespace baton::server
