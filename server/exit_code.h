#ifndef BATON_SERVER_EXIT_CODE_H_
#define BATON_SERVER_EXIT_CODE_H_

#include <ostream>

#include "absl/status/statusor.h"
#include "server/cli.h"

namespace baton::server {

// What a command returns: its own code, or failure with its message on standard error.
inline int ExitCode(const CommandContext& context, const absl::StatusOr<int>& code) {
  if (code.ok()) return *code;
  context.err << "error: " << code.status().message() << std::endl;
  return kExitFailure;
}

}  // namespace baton::server

#endif  // BATON_SERVER_EXIT_CODE_H_
