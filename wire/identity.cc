#include "wire/identity.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace baton::wire {
namespace {

// The two ends as a reader of the message knows them: "decode worker 127.0.0.1:7001".
std::string Name(const scheduler::WorkerIdentity& identity) {
  const char* kind = identity.role == "router" ? " " : " worker ";
  return absl::StrCat(identity.role, kind, identity.instance);
}

}  // namespace

absl::Status CheckIdentity(const scheduler::WorkerIdentity& own,
                           const scheduler::WorkerIdentity& peer) {
  std::string differences;
  const auto compare = [&](const char* field, const auto& own_value, const auto& peer_value) {
    if (own_value == peer_value) return;
    absl::StrAppend(&differences, differences.empty() ? "" : "; ", field, " is ", own_value, " at ",
                    Name(own), " but ", peer_value, " at ", Name(peer));
  };
  compare("model_hash", own.model_hash, peer.model_hash);
  compare("kv_format", own.kv_format, peer.kv_format);
  compare("page_tokens", own.page_tokens, peer.page_tokens);
  compare("layers", own.layers, peer.layers);
  compare("revision", own.revision, peer.revision);
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("workers do not match: ", differences,
                   "; start both with the same binary, --model and KV settings"));
}

}  // namespace baton::wire
