// What a decode group's streams feel of it. Not a test:
//
//   ninja expert_group_bench && tests/decode_worker/expert_group_bench MODEL rebalance [trials]
//   tests/decode_worker/expert_group_bench MODEL deaths [trials]
//
// `rebalance`: threads of one process whose experts are placed anew while they step. A step's
// slowness is its time over the median of its neighbours': of the steps while copies are made, of
// the one that switches, and of steps in which nothing of the kind happens, which is what the
// machine does by itself.
//
// `deaths`: processes over UCX, one of which is killed or stopped. The time until a survivor has
// finished the pass that the others could not finish with it; for a stopped rank this holds the
// timeout of 2 s by which it is noticed.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "decode_worker/expert_group.h"
#include "model/model_runner.h"
#include "tests/model/model_harness.h"
#include "tests/transport/child_process.h"
#include "tests/transport/group_fabrics.h"

namespace baton::decode_worker {
namespace {

constexpr int32_t kSequences = 8;  // of each rank
constexpr int32_t kContext = 64;
constexpr int32_t kPageTokens = 64;
constexpr int kNeighbours = 12;  // on each side

double Millis(Duration d) { return d.seconds() * 1e3; }

double Percentile(std::vector<double> values, double share) {
  BATON_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

// A rank that decodes the newest token of the same sequences again and again: of one of two sets,
// which like other experts.
class BenchRank {
 public:
  BenchRank(const std::shared_ptr<const model::LoadedModel>& model, int32_t ranks, int32_t rank,
            int32_t redundant, std::unique_ptr<transport::Rendezvous> rendezvous)
      : rendezvous_(std::move(rendezvous)), seat_(ranks, rank) {
    ExpertGroupOptions options;
    options.group = transport::TestGroup(ranks, rank);
    options.steps_per_count = 4;
    options.half_life_steps = 4;
    options.rebalance.automatic = false;
    options.rebalance.keep_slack = 0;
    options.rebalance.survive_rank_loss = redundant > 0;
    options.rebalance.restore_retry = Duration::Millis(100);
    model::RunnerOptions runner;
    runner.device.threads = 1;
    runner.page_tokens = kPageTokens;
    runner.total_pages = 4 * kSequences;
    runner.group = {.collectives = &seat_,
                    .split = model::Split::kExpert,
                    .timeout = options.timeout,
                    .redundant_experts = redundant,
                    .stepped = true};
    runner_ = model::CreateRunner(model, runner).value();
    group_ = ExpertGroup::Create(options, clock_, *runner_, seat_, *rendezvous_, Log()).value();
    sampling_.temperature = 0;
    for (int32_t i = 0; i < 2 * kSequences; ++i) {
      // Few different tokens: each set has its favourites.
      Rng rng(static_cast<uint64_t>(1 + i / kSequences));
      std::vector<TokenId> words = model::RandomTokens(4, model->config.vocab_size, rng.Next());
      std::vector<TokenId>& tokens = sequences_.emplace_back();
      for (int32_t t = 0; t <= kContext; ++t) {
        tokens.push_back(words[Rng(static_cast<uint64_t>(t * 31 + i)).Below(words.size())]);
      }
      pages_.push_back(model::TestPages(kContext + 1, kPageTokens, static_cast<uint32_t>(2 * i)));
    }
  }

  ExpertGroup& group() { return *group_; }

  // The latents of all sequences, in passes that all ranks make together.
  void Prepare() {
    for (int32_t i = 0; i < 2 * kSequences; ++i) {
      const absl::Status status = Run(scheduler::Form::kPrefill, i, i + 1, 0);
      BATON_CHECK_MSG(status.ok(), status.ToString());
    }
  }
  absl::Status Step(int set) {
    return Run(scheduler::Form::kDecode, set * kSequences, (set + 1) * kSequences, kContext);
  }

 private:
  absl::Status Run(scheduler::Form form, int32_t begin, int32_t end, int32_t first) {
    scheduler::BatchPlan plan;
    plan.form = form;
    for (int32_t i = begin; i < end; ++i) {
      scheduler::SequenceSlice& slice = plan.slices.emplace_back();
      const size_t at = static_cast<size_t>(i);
      slice.key = {RequestId(at), 0};
      slice.sequence = sequences_[at];
      slice.prompt_tokens = kContext;
      slice.first_position = first;
      slice.row_count = form == scheduler::Form::kPrefill ? kContext : 1;
      slice.pages = pages_[at];
      slice.sample = form == scheduler::Form::kDecode;
      slice.sampling = &sampling_;
      plan.total_rows += slice.row_count;
    }
    scheduler::StepOutput output;
    return group_->Run(plan, nullptr, &output);
  }

  MonotonicClock clock_;
  std::unique_ptr<transport::Rendezvous> rendezvous_;
  transport::GroupSeat seat_;
  std::unique_ptr<model::Runner> runner_;
  std::unique_ptr<ExpertGroup> group_;
  scheduler::SamplingParams sampling_;
  std::vector<std::vector<TokenId>> sequences_;
  std::vector<std::vector<PageId>> pages_;
};

// --- rebalance ------------------------------------------------------------------------------

struct StepTime {
  double millis = 0;
  bool copying = false;   // a rebalance has been asked for and is not over
  bool switched = false;  // this step began with a switch
};

// Over the median of the quiet steps around it.
double Slowness(const std::vector<StepTime>& steps, size_t at) {
  std::vector<double> around;
  for (size_t i = at - kNeighbours; i <= at + kNeighbours; ++i) {
    if (i != at && !steps[i].switched) around.push_back(steps[i].millis);
  }
  return steps[at].millis / Percentile(around, 0.5);
}

void Print(const char* what, const std::vector<double>& slowness) {
  if (slowness.empty()) {
    std::printf("%-28s %6d\n", what, 0);
    return;
  }
  const auto above =
      std::count_if(slowness.begin(), slowness.end(), [](double s) { return s > 1.5; });
  std::printf("%-28s %6zu %7.2f %7.2f %7.2f %7.2f %8.2f%%\n", what, slowness.size(),
              Percentile(slowness, 0.5), Percentile(slowness, 0.9), Percentile(slowness, 0.99),
              Percentile(slowness, 1),
              100.0 * static_cast<double>(above) / static_cast<double>(slowness.size()));
}

int Rebalance(const std::shared_ptr<const model::LoadedModel>& model, int trials) {
  constexpr int32_t kRanks = 2;
  constexpr int kStepsPerTrial = 160;
  constexpr int kAskAt = 60;
  transport::InprocGroupFabric fabric;
  auto rendezvous = fabric.NewRendezvous(kRanks, true);
  std::vector<StepTime> steps;
  uint32_t copies = 0;
  transport::OnRanks(kRanks, [&](int rank) {
    BenchRank own(model, kRanks, rank, 0, std::move(rendezvous[static_cast<size_t>(rank)]));
    own.Prepare();
    MonotonicClock clock;
    for (int trial = 0; trial < trials; ++trial) {
      bool asked = false;
      for (int step = 0; step < kStepsPerTrial; ++step) {
        const uint64_t version = own.group().View()->active.version;
        if (rank == 0 && step == kAskAt) {
          own.group().RequestRebalance();
          asked = true;
        }
        const Tick start = clock.Now();
        BATON_CHECK(own.Step(trial % 2).ok());
        const Tick end = clock.Now();
        if (rank != 0) continue;
        StepTime time{Millis(end - start), asked, false};
        time.switched = own.group().View()->active.version != version;
        const ExpertsReport report = own.group().TakeReport().value_or(ExpertsReport());
        copies += report.copies;
        for (const uint32_t ended : report.ended) asked = asked && ended == 0;
        steps.push_back(time);
      }
    }
  });
  std::vector<double> quiet, copying, switching, times;
  for (size_t i = kNeighbours; i + kNeighbours < steps.size(); ++i) {
    times.push_back(steps[i].millis);
    (steps[i].switched  ? switching
     : steps[i].copying ? copying
                        : quiet)
        .push_back(Slowness(steps, i));
  }
  std::printf(
      "%d ranks, %d sequences each, median step %.3f ms, %d rebalances asked for, %u copies\n",
      kRanks, kSequences, Percentile(times, 0.5), trials, copies);
  std::printf("%-28s %6s %7s %7s %7s %7s %9s\n", "step over its neighbours", "steps", "median",
              "p90", "p99", "most", "over 1.5");
  Print("nothing happens", quiet);
  Print("placement, copies under way", copying);
  Print("the step that switches", switching);
  return 0;
}

// --- deaths ---------------------------------------------------------------------------------

// Says when it has finished its first pass among other ranks than before, which are live, and how
// many experts the loss of one more would uncover.
int ServeRank(const std::shared_ptr<const model::LoadedModel>& model, int32_t rank,
              const std::vector<std::string>& addresses, int32_t redundant) {
  transport::UcxGroupOptions ucx;
  ucx.addresses = addresses;
  ucx.listen_ip = "127.0.0.1";
  const std::string& own = addresses[static_cast<size_t>(rank)];
  ucx.listen_port = static_cast<uint16_t>(std::stoi(own.substr(own.rfind(':') + 1)));
  auto rendezvous = transport::CreateUcxRendezvous(ucx, std::make_shared<MonotonicClock>());
  BATON_CHECK_MSG(rendezvous.ok(), rendezvous.status().ToString());
  BenchRank bench(model, static_cast<int32_t>(addresses.size()), rank, redundant,
                  *std::move(rendezvous));
  bench.Prepare();
  MonotonicClock clock;
  std::string said;
  while (true) {  // until it is killed
    const absl::Status status = bench.Step(0);
    if (!status.ok()) {
      std::cout << "over " << status.message() << std::endl;
      return 1;
    }
    const auto view = bench.group().View();
    std::string now;
    for (const bool is_live : view->active.live) now += is_live ? '1' : '0';
    now += " " + std::to_string(view->on_one_rank);
    if (now == said) continue;
    said = now;
    std::cout << clock.Now().nanos() << " " << now << std::endl;
  }
}

class Processes {
 public:
  Processes(std::string program, std::string model, int32_t ranks, int32_t redundant)
      : program_(std::move(program)), model_(std::move(model)), redundant_(redundant) {
    transport::UcxGroupOptions any;
    any.listen_ip = "127.0.0.1";
    std::vector<std::unique_ptr<transport::UcxRendezvous>> ports;
    for (int32_t r = 0; r < ranks; ++r) {
      ports.push_back(
          transport::CreateUcxRendezvous(any, std::make_shared<MonotonicClock>()).value());
      addresses_ += (r > 0 ? "," : "") + ("127.0.0.1:" + std::to_string(ports.back()->port()));
    }
    ports.clear();
    children_.resize(static_cast<size_t>(ranks));
    for (int32_t r = 0; r < ranks; ++r) Start(r);
    AwaitLive(std::string(static_cast<size_t>(ranks), '1'));
  }

  transport::ChildProcess& at(int32_t r) { return *children_[static_cast<size_t>(r)]; }
  void Start(int32_t r) {
    children_[static_cast<size_t>(r)] = std::make_unique<transport::ChildProcess>(
        program_, std::vector<std::string>{model_, "rank", std::to_string(r), addresses_,
                                           std::to_string(redundant_)});
  }

  // The last of the live ranks to have passed among `live`; where all are, and can spare one.
  Tick AwaitLive(const std::string& live) {
    Tick last;
    for (size_t r = 0; r < live.size(); ++r) {
      if (live[r] != '1') continue;
      std::vector<std::string> words;
      do {
        const std::string line = at(static_cast<int32_t>(r)).ReadLine();
        words = absl::StrSplit(line, ' ');
        BATON_CHECK_MSG(words.size() == 3 && words[0] != "over", line);
      } while (words[1] != live || (live.find('0') == std::string::npos && words[2] != "0"));
      last = std::max(last, Tick::FromNanos(std::stoll(words[0])));
    }
    return last;
  }

 private:
  const std::string program_;
  const std::string model_;
  const int32_t redundant_;
  std::string addresses_;
  std::vector<std::unique_ptr<transport::ChildProcess>> children_;
};

int Deaths(const std::string& program, const std::string& model, int trials) {
  constexpr int32_t kRanks = 3;
  Processes processes(program, model, kRanks, 20);
  MonotonicClock clock;
  std::printf("%d processes over UCX on one host; ms until all others have passed without it\n",
              kRanks);
  std::printf("%-18s %6s %9s %9s %9s\n", "one rank is", "trials", "median", "p90", "most");
  const std::string all(kRanks, '1');
  for (const bool stopped : {false, true}) {
    std::vector<double> millis, back;
    for (int trial = 0; trial < trials; ++trial) {
      const int32_t victim = trial % kRanks;
      std::string others = all;
      others[static_cast<size_t>(victim)] = '0';
      const Tick start = clock.Now();
      processes.at(victim).Signal(stopped ? SIGSTOP : SIGKILL);
      millis.push_back(Millis(processes.AwaitLive(others) - start));
      processes.Start(victim);  // what is stopped is killed first
      const Tick started = clock.Now();
      back.push_back(Millis(processes.AwaitLive(all) - started));
    }
    std::printf("%-18s %6d %9.0f %9.0f %9.0f\n", stopped ? "stopped" : "killed", trials,
                Percentile(millis, 0.5), Percentile(millis, 0.9), Percentile(millis, 1));
    std::printf("%-18s %6d %9.0f %9.0f %9.0f\n", "  started again", trials, Percentile(back, 0.5),
                Percentile(back, 0.9), Percentile(back, 1));
  }
  return 0;
}

int Main(const std::vector<std::string>& words) {
  const std::string& mode = words[2];
  const int trials = words.size() == 4 ? std::stoi(words[3]) : 30;
  if (mode == "deaths") return Deaths(words[0], words[1], trials);
  const auto model = model::LoadModel(words[1]);
  BATON_CHECK_MSG(model.ok(), model.status().ToString());
  if (mode == "rank") {
    return ServeRank(*model, std::stoi(words[3]), absl::StrSplit(words[4], ','),
                     std::stoi(words[5]));
  }
  BATON_CHECK_MSG(mode == "rebalance", mode);
  return Rebalance(*model, trials);
}

}  // namespace
}  // namespace baton::decode_worker

int main(int argc, char** argv) {
  BATON_CHECK_MSG(argc >= 3, "usage: expert_group_bench MODEL rebalance|deaths [trials]");
  return baton::decode_worker::Main({argv, argv + argc});
}
