#ifndef BATON_BASE_CHECK_H_
#define BATON_BASE_CHECK_H_

// Assertions for bugs: on in every build type, never for input or environment (those get an
// absl::Status). A failed check prints file, line and expression to stderr and aborts, so that a
// supervisor restarts the worker instead of letting it serve from a broken state. Callable from any
// thread.

#include <sstream>
#include <string>

namespace baton::internal {

[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              const std::string& message);

template <typename A, typename B>
[[noreturn]] void CheckOpFailed(const char* file, int line, const char* expression, const A& a,
                                const B& b) {
  std::ostringstream message;
  message << a << " vs. " << b;
  CheckFailed(file, line, expression, message.str());
}

}  // namespace baton::internal

#define BATON_CHECK(condition)  \
  (static_cast<bool>(condition) \
       ? static_cast<void>(0)   \
       : ::baton::internal::CheckFailed(__FILE__, __LINE__, #condition, std::string()))

// As BATON_CHECK, with a std::string that says more.
#define BATON_CHECK_MSG(condition, message) \
  (static_cast<bool>(condition)             \
       ? static_cast<void>(0)               \
       : ::baton::internal::CheckFailed(__FILE__, __LINE__, #condition, (message)))

#define BATON_CHECK_OP_(a, op, b)                                                            \
  do {                                                                                       \
    const auto& baton_check_a = (a);                                                         \
    const auto& baton_check_b = (b);                                                         \
    if (!(baton_check_a op baton_check_b)) {                                                 \
      ::baton::internal::CheckOpFailed(__FILE__, __LINE__, #a " " #op " " #b, baton_check_a, \
                                       baton_check_b);                                       \
    }                                                                                        \
  } while (false)

#define BATON_CHECK_EQ(a, b) BATON_CHECK_OP_(a, ==, b)
#define BATON_CHECK_NE(a, b) BATON_CHECK_OP_(a, !=, b)
#define BATON_CHECK_LT(a, b) BATON_CHECK_OP_(a, <, b)
#define BATON_CHECK_LE(a, b) BATON_CHECK_OP_(a, <=, b)
#define BATON_CHECK_GT(a, b) BATON_CHECK_OP_(a, >, b)
#define BATON_CHECK_GE(a, b) BATON_CHECK_OP_(a, >=, b)

#endif  // BATON_BASE_CHECK_H_
