#ifndef BATON_TESTS_MODEL_MODEL_HARNESS_H_
#define BATON_TESTS_MODEL_MODEL_HARNESS_H_

// A decoder with its device and pages, open to tests: plans are written by hand and every row's
// logits can be read.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/decoder.h"
#include "model/loaded_model.h"
#include "model/model_runner.h"
#include "model/rank_weights.h"

namespace baton::model {

// Where the committed checkpoints lie ("bf16-lora-yarn", ...).
std::string TestModelDirectory(const std::string& name);
const std::vector<std::string>& TestModelNames();

// Dies when the model does not load: a test can do nothing without it.
std::shared_ptr<const LoadedModel> LoadTestModel(const std::string& name);

// One logit row as bits that compare with ==.
using LogitRow = std::vector<float>;

// A sequence that lives in a harness's pages.
struct TestSequence {
  std::vector<TokenId> tokens;
  std::vector<PageId> pages;
};

// Rows [begin, end) of a sequence, as part of one pass.
struct TestSlice {
  const TestSequence* sequence = nullptr;
  int32_t begin = 0;
  int32_t end = 0;
  bool sample = false;  // its last row, for SampledLogits
};

class ModelHarness {
 public:
  // With `uploads` the weights are copied also to a device that could read the mapped files.
  ModelHarness(std::shared_ptr<const LoadedModel> model, const RunnerOptions& options,
               bool uploads = false);

  // The error of a pass, whose logits nobody wants.
  absl::Status Try(scheduler::Form form, const std::vector<TestSlice>& slices);
  // Runs one pass and returns the logits of all its rows, slice after slice; none where another
  // rank of the group gets them. Dies on an error.
  std::vector<LogitRow> Forward(scheduler::Form form, const std::vector<TestSlice>& slices);
  // The same for the last rows of the slices with `sample` alone, as a runner does.
  std::vector<LogitRow> SampledLogits(scheduler::Form form, const std::vector<TestSlice>& slices);
  // Feeds `sequence` in chunks of `chunk` prompt-form rows up to `prompt`, then one decode-form row
  // at a time: the logits of every row.
  std::vector<LogitRow> RunSequence(const TestSequence& sequence, int32_t prompt, int32_t chunk);

  // In which the passes that follow go through the layers: see Decoder::Forward.
  void set_parts(int32_t parts) { parts_ = parts; }
  void set_most_rows(int32_t rows) { most_rows_ = rows; }

  // Installs a placement whose experts it brings to this rank before.
  void Install(const scheduler::ActiveExperts& active);

  Decoder& decoder() { return *decoder_; }
  RankWeights& weights() { return *weights_; }
  kernels::Device& device() { return *device_; }
  KvCache& cache() { return *cache_; }
  const ModelConfig& config() const { return model_->config; }

 private:
  std::vector<LogitRow> Run(scheduler::Form form, const std::vector<TestSlice>& slices,
                            LogitRows logit_rows);
  // Adds to `wanted` the rows whose logits `logit_rows` asks for.
  scheduler::BatchPlan PlanOf(scheduler::Form form, const std::vector<TestSlice>& slices,
                              LogitRows logit_rows, std::vector<int32_t>* wanted);

  std::shared_ptr<const LoadedModel> model_;
  const RankGroup group_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<RankWeights> weights_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Decoder> decoder_;
  uint64_t step_ = 0;
  int32_t parts_ = 1;
  int32_t most_rows_ = 0;
};

// Pages first, first + stride, ... for `tokens` tokens.
std::vector<PageId> TestPages(int32_t tokens, int32_t page_tokens, uint32_t first = 0,
                              uint32_t stride = 1);

// Deterministic tokens in [2, vocab_size).
std::vector<TokenId> RandomTokens(int32_t count, int32_t vocab_size, uint64_t seed);

}  // namespace baton::model

#endif  // BATON_TESTS_MODEL_MODEL_HARNESS_H_
