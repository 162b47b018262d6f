#ifndef BATON_BASE_SHARED_LIBRARY_H_
#define BATON_BASE_SHARED_LIBRARY_H_

// A shared library that is opened when it is first needed, by a program that does not link it: so
// one binary starts on machines with and without it. Never closed. Thread-safe once constructed.

#include <span>
#include <string>

#include "absl/status/status.h"

namespace baton {

class SharedLibrary {
 public:
  // Opens the first of `names` that can be: file names that the dynamic linker searches for, or
  // paths. `fix` ends the message when none can.
  SharedLibrary(std::span<const char* const> names, const std::string& fix);
  SharedLibrary(const SharedLibrary&) = delete;

  // FAILED_PRECONDITION, with the linker's words about each name and the fix, when it is not there.
  const absl::Status& status() const { return status_; }
  // The address of a function; null when the library, or this version of it, does not have it.
  void* Find(const char* function) const;
  // That it has all of these; else FAILED_PRECONDITION that names the missing ones.
  absl::Status Has(std::span<const char* const> functions) const;

 private:
  void* handle_ = nullptr;
  std::string name_;  // what was opened
  absl::Status status_;
};

}  // namespace baton

#endif  // BATON_BASE_SHARED_LIBRARY_H_
