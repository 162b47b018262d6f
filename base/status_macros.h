#ifndef BATON_BASE_STATUS_MACROS_H_
#define BATON_BASE_STATUS_MACROS_H_

// The two macros that propagate absl::Status; Debian's Abseil ships none.

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define BATON_CONCAT_INNER_(a, b) a##b
#define BATON_CONCAT_(a, b) BATON_CONCAT_INNER_(a, b)

#define BATON_RETURN_IF_ERROR(expression)          \
  do {                                             \
    absl::Status baton_status_ = (expression);     \
    if (!baton_status_.ok()) return baton_status_; \
  } while (false)

#define BATON_ASSIGN_OR_RETURN(lhs, expression) \
  BATON_ASSIGN_OR_RETURN_IMPL_(BATON_CONCAT_(baton_statusor_, __LINE__), lhs, expression)

#define BATON_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expression) \
  auto statusor = (expression);                                 \
  if (!statusor.ok()) return std::move(statusor).status();      \
  lhs = std::move(statusor).value()

#endif  // BATON_BASE_STATUS_MACROS_H_
