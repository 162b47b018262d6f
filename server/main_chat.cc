// baton complete and baton chat: clients of a running server.

#include <atomic>
#include <cstdio>
#include <istream>
#include <ostream>

#include "base/status_macros.h"
#include "base/thread.h"
#include "server/client.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/termination.h"

namespace baton::server {
namespace {

std::vector<CommandFlag> ClientFlags() {
  return {
      {"server", FlagType::kAddress, "The server to talk to.", "localhost:50051"},
      {"max-tokens", FlagType::kInteger, "Output tokens at most.", "128", "tokens", 1, 1e7},
      {"temperature", FlagType::kNumber, "0 takes the likeliest token; higher is more varied.", "",
       "", 0, 100},
      {"top-p", FlagType::kNumber, "Draw from the likeliest tokens that hold this share; 1 is off.",
       "", "", 1e-6, 1},
      {"top-k", FlagType::kInteger, "Draw from the k likeliest tokens; 0 is off.", "", "", 0, 1e7},
      {"seed", FlagType::kInteger, "Same seed, same output. Not given: the server draws one.", "",
       "", 0, 9e15},
  };
}

ClientRequest RequestFromFlags(const FlagValues& flags) {
  ClientRequest request;
  request.max_tokens = static_cast<int32_t>(flags.integer("max-tokens"));
  if (flags.has("temperature")) {
    request.temperature = static_cast<float>(flags.number("temperature"));
  }
  if (flags.has("top-p")) request.top_p = static_cast<float>(flags.number("top-p"));
  if (flags.has("top-k")) request.top_k = static_cast<int32_t>(flags.integer("top-k"));
  if (flags.has("seed")) request.seed = static_cast<uint64_t>(flags.integer("seed"));
  return request;
}

// One completion, printed as it comes; Ctrl-C cancels it alone.
absl::StatusOr<ClientResult> Stream(const CommandContext& context, CompletionClient& client,
                                    TerminationSignals& signals, const ClientRequest& request) {
  std::atomic<bool> over{false};
  Thread watcher("signals", [&] {
    while (!over.load()) {
      if (signals.WaitFor(Duration::Millis(50))) client.Cancel();
    }
  });
  const bool ids = context.flags.on("ids");
  bool printed = false;
  absl::StatusOr<ClientResult> result =
      client.Generate(request, [&](const std::string& text, const std::vector<TokenId>& tokens) {
        if (ids) {
          for (TokenId token : tokens) context.out << token << ' ';
        } else {
          context.out << text;
        }
        context.out.flush();
        printed = true;
        return static_cast<bool>(context.out);  // a closed pipe ends the request
      });
  over.store(true);
  if (result.ok() || printed) context.out << std::endl;
  return result;
}

absl::StatusOr<int> Complete(const CommandContext& context) {
  TerminationSignals signals;
  const std::string address = context.flags.text("server");
  const std::unique_ptr<CompletionClient> client = ConnectCompletionClient(address);
  ClientRequest request = RequestFromFlags(context.flags);
  request.text = context.arguments[0];
  if (context.flags.on("chat")) request.chat = {{"user", request.text}};
  const absl::StatusOr<ClientResult> result = Stream(context, *client, signals, request);
  if (!result.ok()) return result.status();
  const double decode_s = (result->total_ms - result->first_token_ms) / 1e3;
  char line[160];
  std::snprintf(line, sizeof line,
                "\nprompt %d tokens (%d cached), output %d tokens (%s), TTFT %.1f ms",
                result->prompt_tokens, result->cached_tokens, result->completion_tokens,
                result->finish.c_str(), result->first_token_ms);
  context.err << line;
  if (result->completion_tokens > 1 && decode_s > 0) {
    std::snprintf(line, sizeof line, ", %.1f tokens/s", (result->completion_tokens - 1) / decode_s);
    context.err << line;
  }
  context.err << ", seed " << result->seed << std::endl;
  return kExitOk;
}

// The conversation as one request: by the model's chat template, or as plain text to be continued.
ClientRequest ConversationRequest(const FlagValues& flags, bool has_template,
                                  const std::vector<std::pair<std::string, std::string>>& turns) {
  ClientRequest request = RequestFromFlags(flags);
  if (has_template) {
    request.chat = turns;
    return request;
  }
  for (const auto& [role, content] : turns) request.text += content;
  return request;
}

constexpr char kChatHelp[] =
    "Type a message. /reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an "
    "answer.\n";

absl::StatusOr<int> Chat(const CommandContext& context) {
  TerminationSignals signals;
  const std::string address = context.flags.text("server");
  const std::unique_ptr<CompletionClient> client = ConnectCompletionClient(address);
  absl::StatusOr<ClientModelInfo> model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  context.err << "Connected to " << model->name << " at " << address << ". " << kChatHelp;
  if (!model->has_chat_template) {
    context.err << "The model has no chat template: it continues your text.\n";
  }
  std::vector<std::pair<std::string, std::string>> turns;
  std::string line;
  while (true) {
    context.err << "> " << std::flush;
    {
      const TerminationSignals::Uncaught ctrl_c_leaves;
      if (!std::getline(context.in, line)) break;
    }
    if (line == "/quit" || line == "/exit") break;
    if (line == "/reset") {
      turns.clear();
      context.err << "(forgotten)" << std::endl;
      continue;
    }
    if (line == "/help") {
      context.err << kChatHelp;
      continue;
    }
    if (line.empty()) continue;
    turns.emplace_back("user", line);
    const absl::StatusOr<ClientResult> answer =
        Stream(context, *client, signals,
               ConversationRequest(context.flags, model->has_chat_template, turns));
    if (answer.ok()) {
      turns.emplace_back("assistant", answer->text);
      continue;
    }
    turns.pop_back();
    if (absl::IsCancelled(answer.status())) {
      context.err << "(stopped; not part of the conversation)" << std::endl;
    } else {
      context.err << "error: " << answer.status().message() << std::endl;
    }
  }
  return kExitOk;
}

}  // namespace

Command CompleteCommand() {
  std::vector<CommandFlag> flags = ClientFlags();
  flags.push_back({"chat", FlagType::kSwitch,
                   "Put the prompt into the model's chat template, as a user's message.", ""});
  flags.push_back({"ids", FlagType::kSwitch, "Print token ids instead of text.", ""});
  return {
      .name = "complete",
      .summary = "one prompt to a running server, streamed",
      .description =
          "Sends one prompt to a running server and prints the completion as it comes; then, on "
          "standard error, usage and timings. Sampling that no flag sets is as the model's "
          "generation_config.json says.",
      .arguments = "PROMPT",
      .min_arguments = 1,
      .max_arguments = 1,
      .flags = flags,
      .run = [](const CommandContext& context) { return ExitCode(context, Complete(context)); }};
}

Command ChatCommand() {
  std::vector<CommandFlag> flags = ClientFlags();
  flags.push_back({"ids", FlagType::kSwitch, "Print token ids instead of text.", ""});
  return {.name = "chat",
          .summary = "talk with the model of a running server",
          .description =
              "A conversation with a running server, streamed; it remembers what was "
              "said. Ctrl-C stops a running answer, /reset begins anew, /quit leaves.",
          .flags = flags,
          .run = [](const CommandContext& context) { return ExitCode(context, Chat(context)); }};
}

}  // namespace baton::server
