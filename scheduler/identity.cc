#include "scheduler/identity.h"

#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace baton::scheduler {
namespace {

void Compare(const char* field, const std::string& mine, const std::string& theirs,
             std::string* differences) {
  if (mine.empty() || theirs.empty() || mine == theirs) return;
  absl::StrAppend(differences, "; ", field, " is '", mine, "' here and '", theirs, "' there");
}

void Compare(const char* field, int32_t mine, int32_t theirs, std::string* differences) {
  if (mine == 0 || theirs == 0 || mine == theirs) return;
  absl::StrAppend(differences, "; ", field, " is ", mine, " here and ", theirs, " there");
}

}  // namespace

absl::Status CheckCompatible(const WorkerIdentity& mine, const WorkerIdentity& theirs) {
  std::string differences;
  Compare("model name", mine.model_name, theirs.model_name, &differences);
  Compare("model hash", mine.model_hash, theirs.model_hash, &differences);
  Compare("KV format", mine.kv_format, theirs.kv_format, &differences);
  Compare("page size in tokens", mine.page_tokens, theirs.page_tokens, &differences);
  Compare("layer count", mine.layers, theirs.layers, &differences);
  Compare("expert dispatch", mine.expert_dispatch, theirs.expert_dispatch, &differences);
  Compare("software revision", mine.revision, theirs.revision, &differences);
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      mine.role, " ", mine.instance, " cannot work with ", theirs.role, " ", theirs.instance,
      differences, ": give both the same checkpoint, KV and expert settings and version of baton"));
}

void Adopt(const WorkerIdentity& theirs, WorkerIdentity& mine) {
  const auto adopt = [](auto& field, const auto& value) {
    if (field == std::decay_t<decltype(field)>()) field = value;
  };
  adopt(mine.model_name, theirs.model_name);
  adopt(mine.model_hash, theirs.model_hash);
  adopt(mine.kv_format, theirs.kv_format);
  adopt(mine.page_tokens, theirs.page_tokens);
  adopt(mine.layers, theirs.layers);
  adopt(mine.revision, theirs.revision);
  adopt(mine.expert_dispatch, theirs.expert_dispatch);
}

}  // namespace baton::scheduler
