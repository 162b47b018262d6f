#include "tests/server/stub_cluster.h"

#include <array>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "server/completion_service.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::server {
namespace {

void AppendUtf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else {  // all of the byte-level alphabet lies below U+0800
    out->push_back(static_cast<char>(0xC0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

// How byte-level BPE spells each byte: printable Latin-1 as itself, the others from U+0100 on.
std::array<std::string, 256> ByteAlphabet() {
  std::array<std::string, 256> alphabet;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    AppendUtf8(printable ? byte : next++, &alphabet[byte]);
  }
  return alphabet;
}

std::string JsonString(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out + "\"";
}

}  // namespace

std::shared_ptr<const model::Tokenizer> ByteTokenizer() {
  std::string first = "abcdefghijklmnopqrstuvwxyz .\xC3\xA9";
  std::vector<bool> used(256, false);
  for (const char c : first) used[static_cast<uint8_t>(c)] = true;
  for (int byte = 0; byte < 256; ++byte) {
    if (!used[static_cast<size_t>(byte)]) first.push_back(static_cast<char>(byte));
  }
  const std::array<std::string, 256> alphabet = ByteAlphabet();
  std::string vocab = "\"<eos>\": 0";
  for (size_t i = 0; i < first.size(); ++i) {
    absl::StrAppend(&vocab, ", ", JsonString(alphabet[static_cast<uint8_t>(first[i])]), ": ",
                    i + 1);
  }
  model::TokenizerFiles files;
  files.tokenizer_json = absl::StrCat(
      R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0,
      "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
      "normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": {"type":
      "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
      "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true,
      "trim_offsets": true, "use_regex": true}, "model": {"type": "BPE", "dropout": null,
      "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
      "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {)",
      vocab, R"(}, "merges": []}})");
  files.tokenizer_config_json = R"({"eos_token": "<eos>", "chat_template":
      "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}.{% endfor %}"})";
  absl::StatusOr<std::unique_ptr<const model::Tokenizer>> tokenizer =
      model::Tokenizer::Parse(files);
  BATON_CHECK_MSG(tokenizer.ok(), std::string(tokenizer.status().message()));
  return *std::move(tokenizer);
}

ModelDescription StubModel() {
  ModelDescription model;
  model.name = "stub";
  model.hash = "0123456789abcdef";
  model.architecture = "hash";
  model.kv_format = "bf16";
  model.layers = sim::kLayers;
  model.vocab_size = sim::kVocabulary;
  model.context_tokens = sim::kMaxPositions;
  model.eos_token_ids = {sim::kEos};
  return model;
}

EmbeddedParts StubParts(Gate& prefill, Gate& decode, int32_t pages) {
  EmbeddedParts parts;
  parts.model = StubModel();
  parts.tokenizer = ByteTokenizer();
  const sim::StubRunnerOptions runner{.total_pages = pages};
  parts.prefill_ranks.resize(1);
  parts.decode_ranks.resize(1);
  parts.prefill_ranks[0].runner =
      std::make_unique<GatedRunner>(std::make_unique<sim::StubRunner>(runner, nullptr), prefill);
  parts.decode_ranks[0].runner =
      std::make_unique<GatedRunner>(std::make_unique<sim::StubRunner>(runner, nullptr), decode);
  transport::InprocFabric fabric;
  parts.prefill_ranks[0].transport = fabric.NewEndpoint("prefill-0");
  parts.decode_ranks[0].transport = fabric.NewEndpoint("decode-0");
  parts.prefill.planner.chunk_tokens = 64;
  parts.decode.planner.eos_token_ids = {sim::kEos};
  parts.decode.planner.reserve_output_tokens = 32;
  parts.router.router.reserve_output_tokens = 32;
  parts.router.revision = "test";
  return parts;
}

StubCluster::StubCluster(EmbeddedParts parts)
    : metrics({.version = "0", .revision = "test", .model_name = "stub", .kv_format = "bf16"}) {
  absl::StatusOr<std::unique_ptr<Embedded>> started =
      Embedded::Start(std::move(parts), clock, metrics, Log());
  BATON_CHECK_MSG(started.ok(), std::string(started.status().message()));
  embedded = *std::move(started);
  stub_ = v1::Completion::NewStub(embedded->Channel());
  BATON_CHECK(WaitFor([this] { return embedded->Summary().ready; }));
}

StubCluster::~StubCluster() {
  prefill_gate.Open();
  decode_gate.Open();
  embedded.reset();
}

double StubCluster::Metric(const std::string& series) const {
  const std::string text = "\n" + metrics.Render();
  const size_t at = text.find("\n" + series + " ");
  if (at == std::string::npos) return 0;
  return std::stod(text.substr(at + series.size() + 2));
}

bool StubCluster::WaitForMetric(const std::string& series, double value) const {
  return WaitFor([&] { return Metric(series) == value; });
}

bool StubCluster::WaitFor(const std::function<bool()>& done) {
  for (int i = 0; i < 2000; ++i) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

v1::GenerateRequest IdRequest(const std::vector<TokenId>& prompt, int32_t max_tokens,
                              uint64_t seed) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

std::vector<TokenId> Prompt(int32_t length, uint64_t seed) {
  Rng rng(seed);
  std::vector<TokenId> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(static_cast<TokenId>(1 + rng.Below(49)));
  return ids;
}

v1::GenerateRequest Endless(int32_t prompt_tokens, int32_t max_tokens, uint64_t seed) {
  v1::GenerateRequest request = IdRequest(Prompt(prompt_tokens), max_tokens, seed);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

sim::OracleOutput Expected(const v1::GenerateRequest& request) {
  const auto& ids = request.token_ids().ids();
  scheduler::SamplingParams sampling;
  sampling.max_tokens = request.sampling().max_tokens();
  sampling.seed = request.sampling().seed();
  sampling.ignore_eos = request.sampling().ignore_eos();
  sampling.stop_token_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  return sim::OracleTokens({ids.begin(), ids.end()}, sampling, /*model_seed=*/1);
}

Streamed Generate(v1::Completion::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  Streamed out;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    out.request_id = response.request_id();
    if (response.has_chunk()) {
      out.chunks.push_back(response.chunk());
      out.text += response.chunk().text();
      out.ids.insert(out.ids.end(), response.chunk().token_ids().begin(),
                     response.chunk().token_ids().end());
    } else {
      out.finished = response.finished();
      out.has_finished = true;
    }
  }
  out.status = reader->Finish();
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto hint = trailers.find(kRetryAfterKey);
  if (hint != trailers.end()) out.retry_after = {hint->second.data(), hint->second.size()};
  return out;
}

}  // namespace baton::server
