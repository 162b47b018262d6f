#ifndef BATON_TESTS_SANITIZED_H_
#define BATON_TESTS_SANITIZED_H_

// The one place where tests learn that a sanitizer slows them down. They then run fewer rounds or
// shorter requests, and wait longer; they assert the same.

#if defined(__SANITIZE_THREAD__)
#define BATON_SANITIZED_TEST_SCALE 8
#elif defined(__SANITIZE_ADDRESS__)
#define BATON_SANITIZED_TEST_SCALE 4
#else
#define BATON_SANITIZED_TEST_SCALE 1
#endif

namespace baton {

// Divide amounts of work by it, multiply time limits with it.
inline constexpr int kSanitizedTestScale = BATON_SANITIZED_TEST_SCALE;

}  // namespace baton

#endif  // BATON_TESTS_SANITIZED_H_
