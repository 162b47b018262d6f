// What two parts of a pass that take turns (RankGroup::overlap_rows) save when rows travel slowly:
// the ranks are threads, and a link of so many bytes per second lies between them. Not a test:
// `ninja group_bench && tests/model/group_bench MODEL_DIRECTORY`.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/clock.h"
#include "model/decoder.h"
#include "tests/model/model_harness.h"
#include "tests/transport/group_fabrics.h"

namespace baton::model {
namespace {

constexpr int kRanks = 2;
constexpr int32_t kRows = 64;
constexpr int32_t kContext = 64;
constexpr int kPasses = 30;

// Passes everything on; what leaves for other ranks takes its time first.
class SlowLink final : public transport::Collectives {
 public:
  SlowLink(transport::Collectives& inner, double bytes_per_second)
      : inner_(inner), bytes_per_second_(bytes_per_second) {}

  int world_size() const override { return inner_.world_size(); }
  int rank() const override { return inner_.rank(); }
  absl::Status AllReduceSum(std::span<std::byte> data, transport::ReduceType type,
                            Duration timeout) override {
    return inner_.AllReduceSum(data, type, timeout);
  }
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override {
    Travel(mine.size());
    return inner_.AllGather(mine, all, timeout);
  }
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override {
    return inner_.Broadcast(data, root, timeout);
  }
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override {
    Travel(send.size() - send_bytes[static_cast<size_t>(rank())]);
    return inner_.AllToAllV(send, send_bytes, recv, recv_bytes, timeout);
  }
  absl::Status Barrier(Duration timeout) override { return inner_.Barrier(timeout); }
  bool is_present(int rank) const override { return inner_.is_present(rank); }
  uint64_t generation() const override { return inner_.generation(); }
  absl::Status health() const override { return inner_.health(); }
  std::vector<int> lost_ranks() const override { return inner_.lost_ranks(); }
  std::vector<int> gone_ranks() const override { return inner_.gone_ranks(); }
  void MoveOn() override { inner_.MoveOn(); }
  void Abort(const absl::Status& why) override { inner_.Abort(why); }
  void SetWakeup(std::function<void()> wakeup) override { inner_.SetWakeup(std::move(wakeup)); }
  void Ring() override { inner_.Ring(); }
  bool PeerWaits() const override { return inner_.PeerWaits(); }

 private:
  void Travel(size_t bytes) {
    if (bytes_per_second_ <= 0) return;
    nothing_.WaitFor(Duration::Seconds(static_cast<double>(bytes) / bytes_per_second_));
  }

  transport::Collectives& inner_;
  const double bytes_per_second_;  // 0: no limit
  BoundedQueue<int> nothing_{1};
};

// Milliseconds of a decode pass of kRows sequences on each rank; the median.
double PassMillis(const std::shared_ptr<const LoadedModel>& model, Dispatch dispatch, int32_t parts,
                  double bytes_per_second) {
  transport::InprocGroupFabric fabric;
  transport::TestGroupOf group(&fabric, kRanks);
  double median = 0;
  transport::OnRanks(kRanks, [&](int rank) {
    SlowLink link(group.at(rank), bytes_per_second);
    RunnerOptions options;
    options.device.threads = 1;
    options.total_pages = 2 * kRows;
    options.group = {.collectives = &link,
                     .split = Split::kExpert,
                     .timeout = Duration::Seconds(20),
                     .dispatch = dispatch,
                     .overlap_rows = kRows};
    ModelHarness harness(model, options);
    harness.set_parts(parts);
    std::vector<TestSequence> sequences;
    for (uint32_t i = 0; i < kRows; ++i) {
      sequences.push_back({RandomTokens(kContext + kPasses, model->config.vocab_size,
                                        1000 * static_cast<uint64_t>(rank) + i),
                           TestPages(kContext + kPasses, 64, 2 * i)});
    }
    MonotonicClock clock;
    std::vector<double> millis;
    for (int pass = 0; pass < kPasses; ++pass) {
      std::vector<TestSlice> slices;
      for (const TestSequence& sequence : sequences) {
        slices.push_back({&sequence, kContext + pass, kContext + pass + 1, true});
      }
      const Tick start = clock.Now();
      harness.SampledLogits(scheduler::Form::kDecode, slices);
      millis.push_back((clock.Now() - start).seconds() * 1e3);
    }
    if (rank > 0) return;
    std::nth_element(millis.begin(), millis.begin() + kPasses / 2, millis.end());
    median = millis[kPasses / 2];
  });
  return median;
}

int Main(const std::string& directory) {
  const auto model = LoadModel(directory);
  BATON_CHECK_MSG(model.ok(), model.status().ToString());
  std::printf("%-14s %-12s %10s %10s %7s\n", "link", "dispatch", "one ms", "two ms", "ratio");
  for (const double mb_per_second : {0.0, 1000.0, 200.0, 100.0, 50.0, 20.0}) {
    for (const Dispatch dispatch : {Dispatch::kActivations, Dispatch::kFp8}) {
      const double one = PassMillis(*model, dispatch, 1, mb_per_second * 1e6);
      const double two = PassMillis(*model, dispatch, 2, mb_per_second * 1e6);
      std::printf("%-14s %-12s %10.2f %10.2f %7.2f\n",
                  mb_per_second > 0
                      ? (std::to_string(static_cast<int>(mb_per_second)) + " MB/s").c_str()
                      : "no limit",
                  DispatchName(dispatch), one, two, two / one);
    }
  }
  return 0;
}

}  // namespace
}  // namespace baton::model

int main(int argc, char** argv) {
  BATON_CHECK_MSG(argc == 2, "usage: group_bench MODEL_DIRECTORY");
  return baton::model::Main(argv[1]);
}
