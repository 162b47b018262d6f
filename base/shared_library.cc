#include "base/shared_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace baton {

SharedLibrary::SharedLibrary(std::span<const char* const> names, const std::string& fix) {
  std::string problems;
  for (const char* name : names) {
    handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      name_ = name;
      return;
    }
    const char* const why = dlerror();
    absl::StrAppend(&problems, problems.empty() ? "" : "; ", why == nullptr ? name : why);
  }
  status_ = absl::FailedPreconditionError(absl::StrCat(problems, "; ", fix));
}

void* SharedLibrary::Find(const char* function) const {
  return handle_ == nullptr ? nullptr : dlsym(handle_, function);
}

absl::Status SharedLibrary::Has(std::span<const char* const> functions) const {
  if (!status_.ok()) return status_;
  std::string missing;
  for (const char* function : functions) {
    if (Find(function) == nullptr) absl::StrAppend(&missing, missing.empty() ? "" : ", ", function);
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(name_, " has no ", missing, "; install the version that Baton was built for"));
}

}  // namespace baton
