#include "tests/sim/stub_runner.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "base/check.h"

namespace baton::sim {
namespace {

constexpr uint64_t Mix(uint64_t a, uint64_t b) {
  return Rng(a ^ (b * 0xD6E8FEB86659FD93ull)).Next();
}

// The "latent" of one token in one layer. Like a real one it depends on the form that computed it.
uint64_t LatentOf(TokenId token, int32_t position, int32_t layer, scheduler::Form form,
                  uint64_t model_seed) {
  return Mix(Mix(model_seed + static_cast<uint64_t>(layer), static_cast<uint64_t>(position)),
             static_cast<uint64_t>(token) * 2 + static_cast<uint64_t>(form));
}

// What a latent adds to the hash of its sequence when it is read from the place for `position` of
// `layer`: latents that changed places give another sum.
uint64_t Contribution(uint64_t latent, int32_t position, int32_t layer) {
  return Mix(latent, static_cast<uint64_t>(position) * kLayers + static_cast<uint64_t>(layer));
}

TokenId NextToken(uint64_t latent_sum, int32_t position, uint64_t seed) {
  const uint64_t hash = Mix(Mix(latent_sum, static_cast<uint64_t>(position)), seed);
  return static_cast<TokenId>(hash % kVocabulary);
}

uint64_t Checksum(std::span<const std::byte> bytes) {
  uint64_t sum = bytes.size();
  for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min(sizeof(word), bytes.size() - i));
    sum = Mix(sum, word);
  }
  return sum;
}

}  // namespace

StubRunner::StubRunner(const StubRunnerOptions& options, ManualClock* clock)
    : options_(options), clock_(clock), faults_(options.fault_seed) {
  info_.model_name = "stub";
  info_.model_hash = std::to_string(options.model_seed);
  info_.kv_format = "u64";
  info_.layers = kLayers;
  info_.page_tokens = kPageTokens;
  info_.entry_bytes = sizeof(uint64_t);
  info_.total_pages = options.total_pages;
  info_.max_positions = kMaxPositions;
  info_.vocab_size = kVocabulary;
  // Fresh memory holds garbage.
  pages_.resize(static_cast<size_t>(kLayers) * static_cast<size_t>(options.total_pages) *
                kPageTokens);
  Rng garbage(options.fault_seed ^ 0xBADull);
  for (uint64_t& entry : pages_) entry = garbage.Next();
}

uint64_t& StubRunner::Entry(int32_t layer, PageId page, int32_t offset) {
  BATON_CHECK_LT(page.value(), static_cast<uint32_t>(options_.total_pages));
  return pages_[(static_cast<size_t>(layer) * static_cast<size_t>(options_.total_pages) +
                 page.value()) *
                    kPageTokens +
                static_cast<size_t>(offset)];
}

// What the planner promises of a plan.
void StubRunner::CheckPlan(const scheduler::BatchPlan& plan) const {
  BATON_CHECK(!plan.slices.empty());
  std::set<RequestKey> keys;
  std::set<PageId> read;  // cached pages may be read by several slices
  std::set<PageId> written;
  int32_t rows = 0;
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    BATON_CHECK(keys.insert(slice.key).second);
    const auto first_written = static_cast<size_t>(slice.first_position / kPageTokens);
    for (size_t i = 0; i < slice.pages.size(); ++i) {
      const PageId page = slice.pages[i];
      if (i < first_written) {
        read.insert(page);
      } else {
        BATON_CHECK(written.insert(page).second);
      }
    }
    BATON_CHECK_GT(slice.row_count, 0);
    rows += slice.row_count;
    const int32_t end = slice.first_position + slice.row_count;
    BATON_CHECK_EQ(slice.sequence.size(), static_cast<size_t>(end));
    BATON_CHECK_LE(static_cast<size_t>(end), slice.pages.size() * kPageTokens);
    BATON_CHECK_LE(end, kMaxPositions);
    BATON_CHECK(!slice.sample || slice.sampling != nullptr);
    if (plan.form == scheduler::Form::kPrefill) {
      BATON_CHECK_LE(end, slice.prompt_tokens);
    } else {
      BATON_CHECK_GE(slice.first_position, slice.prompt_tokens);
    }
  }
  for (const PageId page : written) BATON_CHECK(!read.contains(page));
  BATON_CHECK_EQ(plan.total_rows, rows);
}

absl::Status StubRunner::Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                             scheduler::StepOutput* output) {
  CheckPlan(plan);
  ++passes_;
  max_rows_ = std::max(max_rows_, plan.total_rows);
  if (clock_ != nullptr) clock_->Advance(options_.pass_cost + options_.row_cost * plan.total_rows);
  if (options_.failure_chance > 0 && faults_.Chance(options_.failure_chance)) {
    return absl::InternalError("simulated failure of a pass");
  }
  std::vector<uint64_t> sums(plan.slices.size(), 0);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (size_t s = 0; s < plan.slices.size(); ++s) {
      const scheduler::SequenceSlice& slice = plan.slices[s];
      const auto end = static_cast<int32_t>(slice.sequence.size());
      for (int32_t p = slice.first_position; p < end; ++p) {
        Entry(layer, slice.pages[static_cast<size_t>(p / kPageTokens)], p % kPageTokens) = LatentOf(
            slice.sequence[static_cast<size_t>(p)], p, layer, plan.form, options_.model_seed);
      }
      for (int32_t p = 0; p < end && slice.sample; ++p) {
        const PageId page = slice.pages[static_cast<size_t>(p / kPageTokens)];
        sums[s] += Contribution(Entry(layer, page, p % kPageTokens), p, layer);
      }
    }
    if (observer != nullptr) observer->OnLayerWritten(layer);
  }
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const scheduler::SequenceSlice& slice = plan.slices[s];
    if (options_.slice_failure_chance > 0 && faults_.Chance(options_.slice_failure_chance)) {
      output->failures.push_back({slice.key, absl::InternalError("simulated failure of a slice")});
      continue;
    }
    if (!slice.sample) continue;
    scheduler::SampledToken token;
    token.key = slice.key;
    token.token =
        NextToken(sums[s], static_cast<int32_t>(slice.sequence.size()), slice.sampling->seed);
    output->tokens.push_back(token);
  }
  return absl::OkStatus();
}

uint64_t StubRunner::PackPages(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                               std::span<std::byte> out) {
  BATON_CHECK_EQ(out.size(), static_cast<size_t>(token_count) * sizeof(uint64_t));
  for (int32_t t = 0; t < token_count; ++t) {
    const uint64_t entry =
        Entry(layer, pages[static_cast<size_t>(t / kPageTokens)], t % kPageTokens);
    std::memcpy(out.data() + static_cast<size_t>(t) * sizeof(entry), &entry, sizeof(entry));
  }
  return Checksum(out);
}

absl::Status StubRunner::UnpackPages(int32_t layer, std::span<const PageId> pages,
                                     int32_t token_count, std::span<const std::byte> bytes,
                                     uint64_t checksum) {
  BATON_CHECK_EQ(bytes.size(), static_cast<size_t>(token_count) * sizeof(uint64_t));
  if (Checksum(bytes) != checksum) return absl::DataLossError("checksum differs");
  for (int32_t t = 0; t < token_count; ++t) {
    uint64_t& entry = Entry(layer, pages[static_cast<size_t>(t / kPageTokens)], t % kPageTokens);
    std::memcpy(&entry, bytes.data() + static_cast<size_t>(t) * sizeof(entry), sizeof(entry));
  }
  return absl::OkStatus();
}

OracleOutput OracleTokens(const std::vector<TokenId>& prompt,
                          const scheduler::SamplingParams& sampling, uint64_t model_seed) {
  OracleOutput output;
  uint64_t sum = 0;
  int32_t position = 0;
  const auto extend = [&](TokenId token) {
    const scheduler::Form form = position < static_cast<int32_t>(prompt.size())
                                     ? scheduler::Form::kPrefill
                                     : scheduler::Form::kDecode;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      sum += Contribution(LatentOf(token, position, layer, form, model_seed), position, layer);
    }
    ++position;
  };
  for (const TokenId token : prompt) extend(token);
  const auto limit =
      std::min(sampling.max_tokens, kMaxPositions - static_cast<int32_t>(prompt.size()));
  while (static_cast<int32_t>(output.tokens.size()) < limit) {
    const TokenId token = NextToken(sum, position, sampling.seed);
    const auto& stops = sampling.stop_token_ids;
    if ((token == kEos && !sampling.ignore_eos) ||
        std::find(stops.begin(), stops.end(), token) != stops.end()) {
      output.reason = scheduler::FinishReason::kStop;
      return output;
    }
    output.tokens.push_back(token);
    extend(token);
  }
  return output;
}

}  // namespace baton::sim
