#ifndef BATON_SERVER_COMPLETION_STATE_H_
#define BATON_SERVER_COMPLETION_STATE_H_

// What one completion has become so far, in the client's terms: text, token ids, logprobs, and in
// the end why it stopped and what it took. Shared by Generate and Complete. One thread at a time.

#include <string>
#include <utility>
#include <vector>

#include "proto/baton/v1/completion.pb.h"
#include "scheduler/router.h"
#include "server/request_parser.h"
#include "server/text_stream.h"

namespace baton::server {

class CompletionState {
 public:
  CompletionState(const model::Tokenizer& tokenizer, const ModelDescription& model,
                  ParsedRequest request);

  // The parsed request's prompt is moved out by its one caller, who submits it.
  std::vector<TokenId> TakePrompt() { return std::move(request_.prompt); }
  const scheduler::SamplingParams& sampling() const { return request_.sampling; }
  const std::string& cache_salt() const { return request_.cache_salt; }

  // Appends `tokens` to `chunk`. True when they completed a stop string: the request is to be
  // cancelled; whatever still comes is ignored.
  bool Add(const scheduler::EmitTokens& tokens, v1::Chunk* chunk);

  // The status for the client: OK also for a request cancelled because of its stop string. When OK,
  // appends held back text to `chunk` and fills `finished`.
  absl::Status Finish(const scheduler::RequestResult& result, v1::Chunk* chunk,
                      v1::Finished* finished);

 private:
  ParsedRequest request_;
  std::string model_name_;
  TextStream text_;
  int32_t output_tokens_ = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_COMPLETION_STATE_H_
