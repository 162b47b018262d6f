#include "model/batch.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using scheduler::BatchPlan;
using scheduler::SamplingParams;
using scheduler::SequenceSlice;

constexpr int32_t kMaxTopLogprobs = 20;  // kernels::SampleParams::top_logprobs

std::string CheckSampling(const SequenceSlice& slice, int32_t end, const PlanLimits& limits) {
  if (slice.sampling == nullptr) return "is to be sampled but has no sampling parameters";
  if (slice.prompt_tokens < 0 || slice.prompt_tokens > end) {
    return absl::StrCat("says ", slice.prompt_tokens, " of its ", end, " tokens are the prompt");
  }
  const SamplingParams& sampling = *slice.sampling;
  // The ranges of kernels::SampleParams, which refuses a whole batch for one row.
  const auto within = [](float value, float low, float high) {
    return value >= low && value <= high;  // NaN is not
  };
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kAboveZero = std::numeric_limits<float>::denorm_min();
  if (!within(sampling.temperature, 0, kMax) || sampling.top_k < 0 ||
      !within(sampling.top_p, kAboveZero, 1) || !within(sampling.min_p, 0, 1) ||
      !within(sampling.repetition_penalty, kAboveZero, kMax) ||
      !within(sampling.presence_penalty, -kMax, kMax) ||
      !within(sampling.frequency_penalty, -kMax, kMax)) {
    return absl::StrCat(
        "is to be sampled with temperature ", sampling.temperature, ", top_k ", sampling.top_k,
        ", top_p ", sampling.top_p, ", min_p ", sampling.min_p, " and penalties ",
        sampling.repetition_penalty, ", ", sampling.presence_penalty, ", ",
        sampling.frequency_penalty,
        "; expected temperature >= 0, top_k >= 0, top_p in (0, 1], min_p in [0, 1], repetition "
        "penalty > 0, all finite");
  }
  if (sampling.top_logprobs < -1 || sampling.top_logprobs > kMaxTopLogprobs) {
    return absl::StrCat("asks for ", sampling.top_logprobs, " top_logprobs, expected -1..",
                        kMaxTopLogprobs);
  }
  for (const TokenId id : sampling.stop_token_ids) {
    if (id < 0 || id >= limits.vocab_size) {
      return absl::StrCat("has the stop token ", id, ", expected [0, ", limits.vocab_size, ")");
    }
  }
  return "";
}

// Empty when the slice can be run.
std::string ProblemOf(const SequenceSlice& slice, const PlanLimits& limits) {
  if (slice.row_count < 1 || slice.row_count > limits.max_rows) {
    return absl::StrCat("has ", slice.row_count, " rows, expected 1..", limits.max_rows);
  }
  if (slice.first_position < 0 || slice.first_position > limits.max_positions - slice.row_count) {
    return absl::StrCat("has rows at positions ", slice.first_position, " and on, ",
                        slice.row_count, " of them, but positions end at ", limits.max_positions);
  }
  const int32_t end = slice.first_position + slice.row_count;
  if (slice.sequence.size() < static_cast<size_t>(end)) {
    return absl::StrCat("gives ", slice.sequence.size(), " tokens, needs ", end);
  }
  const size_t pages_needed =
      static_cast<size_t>((end + limits.page_tokens - 1) / limits.page_tokens);
  if (slice.pages.size() < pages_needed) {
    return absl::StrCat("has a page table of ", slice.pages.size(), ", needs ", pages_needed,
                        " for ", end, " positions");
  }
  for (size_t i = 0; i < pages_needed; ++i) {
    if (slice.pages[i].value() >= static_cast<uint32_t>(limits.total_pages)) {
      return absl::StrCat("names page ", slice.pages[i].value(), ", expected [0, ",
                          limits.total_pages, ")");
    }
  }
  for (const TokenId id : slice.sequence.subspan(slice.first_position, slice.row_count)) {
    if (id < 0 || id >= limits.vocab_size) {
      return absl::StrCat("holds the token ", id, ", expected [0, ", limits.vocab_size, ")");
    }
  }
  return slice.sample ? CheckSampling(slice, end, limits) : "";
}

}  // namespace

absl::Status CheckSlice(const SequenceSlice& slice, const PlanLimits& limits) {
  const std::string problem = ProblemOf(slice, limits);
  if (problem.empty()) return absl::OkStatus();
  std::ostringstream key;
  key << slice.key;
  return absl::InvalidArgumentError(absl::StrCat("request ", key.str(), " ", problem));
}

absl::Status CheckPlan(const BatchPlan& plan, const PlanLimits& limits) {
  int64_t rows = 0;
  for (const SequenceSlice& slice : plan.slices) {
    BATON_RETURN_IF_ERROR(CheckSlice(slice, limits));
    rows += slice.row_count;
  }
  if (rows != plan.total_rows || rows > limits.max_rows) {
    return absl::InvalidArgumentError(absl::StrCat("step ", plan.step, " has ", rows,
                                                   " rows, says ", plan.total_rows, ", at most ",
                                                   limits.max_rows, " fit"));
  }
  return absl::OkStatus();
}

void BuildBatch(const BatchPlan& plan, int32_t page_tokens, Batch& batch) {
  batch.form = plan.form;
  batch.rows = plan.total_rows;
  batch.sequences = static_cast<int32_t>(plan.slices.size());
  batch.sequence_pages = 1;
  for (auto* values :
       {&batch.ids, &batch.positions, &batch.query_start, &batch.context_len, &batch.page_table}) {
    values->clear();
  }
  batch.slots.clear();
  batch.query_start.push_back(0);
  for (const SequenceSlice& slice : plan.slices) {
    const int32_t end = slice.first_position + slice.row_count;
    for (int32_t position = slice.first_position; position < end; ++position) {
      batch.ids.push_back(slice.sequence[position]);
      batch.positions.push_back(position);
      batch.slots.push_back(int64_t{slice.pages[position / page_tokens].value()} * page_tokens +
                            position % page_tokens);
    }
    batch.query_start.push_back(static_cast<int32_t>(batch.ids.size()));
    batch.context_len.push_back(end);
    batch.sequence_pages = std::max(batch.sequence_pages, (end + page_tokens - 1) / page_tokens);
  }
  batch.page_table.assign(static_cast<size_t>(batch.sequences) * batch.sequence_pages, 0);
  for (int32_t s = 0; s < batch.sequences; ++s) {
    const int32_t used = (batch.context_len[s] + page_tokens - 1) / page_tokens;
    for (int32_t i = 0; i < used; ++i) {
      batch.page_table[static_cast<size_t>(s) * batch.sequence_pages + i] =
          static_cast<int32_t>(plan.slices[s].pages[i].value());
    }
  }
}

void PadBatch(int32_t rows, int32_t sequence_pages, Batch& batch) {
  BATON_CHECK_GE(batch.rows, 1);
  BATON_CHECK_EQ(batch.sequences, batch.rows);
  BATON_CHECK_GE(rows, batch.rows);
  BATON_CHECK_GE(sequence_pages, batch.sequence_pages);
  const size_t width = static_cast<size_t>(batch.sequence_pages);
  const size_t padded_width = static_cast<size_t>(sequence_pages);
  std::vector<int32_t> table(static_cast<size_t>(rows) * padded_width, 0);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    const size_t like = row < static_cast<size_t>(batch.rows) ? row : 0;
    std::copy_n(batch.page_table.begin() + static_cast<int64_t>(like * width), width,
                table.begin() + static_cast<int64_t>(row * padded_width));
  }
  batch.page_table = std::move(table);
  batch.ids.resize(static_cast<size_t>(rows), batch.ids[0]);
  batch.positions.resize(static_cast<size_t>(rows), batch.positions[0]);
  batch.slots.resize(static_cast<size_t>(rows), -1);
  batch.context_len.resize(static_cast<size_t>(rows), batch.context_len[0]);
  for (int32_t row = batch.rows; row < rows; ++row) batch.query_start.push_back(row + 1);
  batch.rows = batch.sequences = rows;
  batch.sequence_pages = sequence_pages;
}

}  // namespace baton::model
