#include "tests/model/golden.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "model/checkpoint.h"

namespace baton::model {
namespace {

std::vector<int32_t> Integers(const StoredTensor& tensor) {
  BATON_CHECK(tensor.dtype == "I64");
  std::vector<int32_t> values;
  for (size_t i = 0; i < tensor.bytes; i += sizeof(int64_t)) {
    int64_t value = 0;
    std::memcpy(&value, tensor.data + i, sizeof(value));
    values.push_back(static_cast<int32_t>(value));
  }
  return values;
}

std::vector<std::vector<float>> Rows(const StoredTensor& tensor) {
  BATON_CHECK(tensor.dtype == "F32" && tensor.shape.size() == 2);
  const size_t row_bytes = static_cast<size_t>(tensor.shape[1]) * sizeof(float);
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < tensor.bytes; i += row_bytes) {
    std::vector<float>& row = rows.emplace_back(static_cast<size_t>(tensor.shape[1]));
    std::memcpy(row.data(), tensor.data + i, row_bytes);
  }
  return rows;
}

}  // namespace

std::vector<GoldenCase> ReadGolden(const std::string& path) {
  const auto file = MappedFile::Open(path);
  BATON_CHECK_MSG(file.ok(), file.status().ToString());
  const auto tensors = ParseSafetensors(file->bytes(), path);
  BATON_CHECK_MSG(tensors.ok(), tensors.status().ToString());
  std::vector<GoldenCase> cases;
  for (const auto& [name, prompt] : *tensors) {
    if (name.rfind("prompt_", 0) != 0) continue;
    const std::string length = name.substr(name.find('_'));
    cases.push_back({.prompt = Integers(prompt),
                     .greedy = Integers(tensors->at("greedy" + length)),
                     .rows = Integers(tensors->at("rows" + length)),
                     .logits = Rows(tensors->at("logits" + length))});
  }
  std::sort(cases.begin(), cases.end(), [](const GoldenCase& a, const GoldenCase& b) {
    return a.prompt.size() < b.prompt.size();
  });
  BATON_CHECK(!cases.empty());
  return cases;
}

}  // namespace baton::model
