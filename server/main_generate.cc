// baton generate: one prompt on one runner, without a server.

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <istream>
#include <iterator>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "model/generate.h"
#include "model/loaded_model.h"
#include "model/tokenizer.h"
#include "server/commands.h"
#include "server/main_model.h"

namespace baton::server {
namespace {

constexpr size_t kMaxPromptBytes = size_t{16} << 20;

absl::StatusOr<std::string> ReadAll(std::istream& in, const std::string& name) {
  std::string text;
  char buffer[1 << 16];
  while (in.read(buffer, sizeof buffer) || in.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxPromptBytes)
      return absl::InvalidArgumentError(name + " is longer than 16 MiB");
  }
  return text;
}

// The argument, the file, or standard input.
absl::StatusOr<std::string> ReadPrompt(const CommandContext& context) {
  const std::string file = context.flags.text("prompt-file");
  if (!context.arguments.empty() && !file.empty()) {
    return absl::InvalidArgumentError(
        "the prompt is given twice, as an argument and with --prompt-file; drop one");
  }
  if (!file.empty()) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return absl::NotFoundError("--prompt-file: cannot read " + file);
    return ReadAll(in, file);
  }
  if (context.arguments.empty() || context.arguments[0] == "-")
    return ReadAll(context.in, "standard input");
  return context.arguments[0];
}

absl::StatusOr<std::vector<TokenId>> Tokenize(const CommandContext& context,
                                              const model::Tokenizer& tokenizer) {
  BATON_ASSIGN_OR_RETURN(std::string prompt, ReadPrompt(context));
  const bool chat = context.flags.on("chat");
  if (chat) {
    const model::ChatMessage message{"user", prompt};
    BATON_ASSIGN_OR_RETURN(prompt, tokenizer.RenderChat({&message, 1}, {}));
  }
  BATON_ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                         tokenizer.Encode(prompt, /*add_special_tokens=*/!chat));
  if (ids.empty()) return absl::InvalidArgumentError("the prompt has no tokens; give some text");
  return ids;
}

// Flags, then the checkpoint's generation_config.json.
scheduler::SamplingParams Sampling(const FlagValues& flags,
                                   const model::GenerationDefaults& defaults) {
  scheduler::SamplingParams sampling;
  const auto number = [&](const char* name, float otherwise) {
    return flags.has(name) ? static_cast<float>(flags.number(name)) : otherwise;
  };
  sampling.temperature = number("temperature", defaults.temperature);
  sampling.top_p = number("top-p", defaults.top_p);
  sampling.min_p = number("min-p", 0);
  sampling.repetition_penalty = number("repetition-penalty", 1);
  sampling.top_k =
      flags.has("top-k") ? static_cast<int32_t>(flags.integer("top-k")) : defaults.top_k;
  sampling.max_tokens = static_cast<int32_t>(flags.integer("max-tokens"));
  sampling.ignore_eos = flags.on("ignore-eos");
  sampling.seed =
      flags.has("seed") ? static_cast<uint64_t>(flags.integer("seed")) : std::random_device{}();
  return sampling;
}

const char* FinishText(scheduler::FinishReason reason) {
  return reason == scheduler::FinishReason::kStop ? "stop" : "length";
}

void PrintStatistics(size_t prompt_tokens, Duration load, const scheduler::SamplingParams& sampling,
                     const model::GenerateResult& result, std::ostream& err) {
  const double ttft_ms = result.first_token.seconds() * 1e3;
  const size_t steps = result.tokens.size() - 1;
  char text[320];
  std::snprintf(text, sizeof text,
                "\nprompt %zu tokens, output %zu tokens (%s), loaded in %.0f ms\n"
                "TTFT %.1f ms (%.0f prompt tokens/s)",
                prompt_tokens, result.tokens.size(), FinishText(result.finish),
                load.seconds() * 1e3, ttft_ms,
                static_cast<double>(prompt_tokens) / std::max(result.first_token.seconds(), 1e-9));
  err << text;
  if (steps > 0) {
    const double decode_s = std::max(result.decode.seconds(), 1e-9);
    std::snprintf(text, sizeof text, ", TPOT %.2f ms, %.1f tokens/s",
                  decode_s * 1e3 / static_cast<double>(steps),
                  static_cast<double>(steps) / decode_s);
    err << text;
  }
  if (sampling.temperature > 0) err << ", seed " << sampling.seed;
  err << '\n';
}

// The runner with just the pages that this one request can fill.
absl::StatusOr<std::unique_ptr<model::Runner>> MakeRunner(
    const Config& config, std::shared_ptr<const model::LoadedModel> loaded, size_t prompt_tokens,
    int32_t max_tokens) {
  Config sized = config;
  const int64_t positions = std::min<int64_t>(loaded->config.max_positions,
                                              static_cast<int64_t>(prompt_tokens) + max_tokens);
  sized.mutable_prefill()->set_ranks(1);
  sized.mutable_prefill()->set_pages(
      static_cast<int32_t>(positions / config.model().page_tokens()) + 1);
  BATON_ASSIGN_OR_RETURN(const model::RunnerOptions options,
                         RunnerOptionsFor(sized, RunnerRole::kPrefill, *loaded));
  return model::CreateRunner(std::move(loaded), options);
}

absl::Status Generate(const CommandContext& context) {
  MonotonicClock clock;
  const Tick start = clock.Now();
  BATON_ASSIGN_OR_RETURN(const std::string directory, ModelDirectory(context.config()));
  BATON_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(directory));
  BATON_ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, Tokenize(context, *tokenizer));
  BATON_ASSIGN_OR_RETURN(std::shared_ptr<const model::LoadedModel> loaded,
                         model::LoadModel(directory));
  model::GenerateOptions options;
  options.sampling = Sampling(context.flags, loaded->generation);
  options.eos_token_ids = loaded->generation.eos_token_ids;
  options.chunk_tokens = context.config().prefill().chunk_tokens();
  BATON_ASSIGN_OR_RETURN(
      const std::unique_ptr<model::Runner> runner,
      MakeRunner(context.config(), loaded, prompt.size(), options.sampling.max_tokens));
  const Duration load = clock.Now() - start;

  const bool ids = context.flags.on("ids");
  model::StreamingDetokenizer text(*tokenizer, /*skip_special_tokens=*/true);
  if (context.flags.on("echo") && !ids) {
    BATON_ASSIGN_OR_RETURN(const std::string echoed,
                           tokenizer->Decode(prompt, /*skip_special_tokens=*/true));
    context.out << echoed;
  }
  bool first = true;
  const auto on_token = [&](const scheduler::SampledToken& token) {
    if (ids) {
      context.out << (first ? "" : " ") << token.token;
    } else {
      context.out << text.Feed(token.token);
    }
    first = false;
    context.out.flush();
    return static_cast<bool>(context.out);  // a closed pipe ends the generation
  };
  BATON_ASSIGN_OR_RETURN(const model::GenerateResult result,
                         model::Generate(*runner, clock, prompt, options, on_token));
  context.out << (ids ? "" : text.Flush()) << std::endl;
  PrintStatistics(prompt.size(), load, options.sampling, result, context.err);
  return absl::OkStatus();
}

int RunGenerate(const CommandContext& context) {
  const absl::Status status = Generate(context);
  if (status.ok()) return kExitOk;
  context.err << "error: " << status.message() << '\n';
  return kExitFailure;
}

}  // namespace

Command GenerateCommand() {
  return {
      .name = "generate",
      .summary = "one prompt, no server: prints the tokens as they come, then the timings",
      .description =
          "Continues one prompt on this machine, without a server, and prints the text as it "
          "comes; then, on "
          "standard error, TTFT, TPOT and tokens per second. Without a PROMPT it reads standard "
          "input. Sampling "
          "that no flag sets is as the checkpoint's generation_config.json says.",
      .arguments = "[PROMPT]",
      .max_arguments = 1,
      .flags =
          {
              {"prompt-file", FlagType::kText, "Read the prompt from this file.", ""},
              {"chat", FlagType::kSwitch,
               "Put the prompt into the model's chat template, as a user's message.", ""},
              {"echo", FlagType::kSwitch, "Print the prompt before the output.", ""},
              {"ids", FlagType::kSwitch, "Print token ids instead of text.", ""},
              {"max-tokens", FlagType::kInteger, "Output tokens at most.", "128", "tokens", 1, 1e7},
              {"temperature", FlagType::kNumber,
               "0 takes the most likely token; higher is more varied.", "", "", 0, 100},
              {"top-k", FlagType::kInteger, "Draw from the k most likely tokens; 0 is off.", "", "",
               0, 1e7},
              {"top-p", FlagType::kNumber,
               "Draw from the most likely tokens that hold this share; 1 is off.", "", "", 1e-6, 1},
              {"min-p", FlagType::kNumber,
               "Drop tokens less likely than this share of the best; 0 is off.", "", "", 0, 0.999},
              {"repetition-penalty", FlagType::kNumber,
               "Over 1 makes tokens that occurred less likely.", "", "", 0.01, 100},
              {"seed", FlagType::kInteger, "Same seed, same output. Not given: drawn, and printed.",
               "", "", 0, 9e15},
              {"ignore-eos", FlagType::kSwitch, "Go on to --max-tokens behind the end of the text.",
               ""},
          },
      .config = {"model", "prefill.threads", "prefill.chunk_tokens", "kernels"},
      .run = RunGenerate};
}

}  // namespace baton::server
