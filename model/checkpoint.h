#ifndef BATON_MODEL_CHECKPOINT_H_
#define BATON_MODEL_CHECKPOINT_H_

// The safetensors files of a Hugging Face directory, memory-mapped and used in place:
// `model.safetensors`, or the shards that `model.safetensors.index.json` lists. Headers are
// untrusted input and are checked in full (lengths, offsets, overlaps, holes, dtypes, shape
// products) before a byte of data is touched. Immutable once open; any thread may read. Files must
// not be cut while mapped: the kernel answers a read behind the new end with SIGBUS.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace baton::model {

// A whole file mapped read-only; unmapped with the object.
class MappedFile {
 public:
  // NOT_FOUND or PERMISSION_DENIED from the system, with the path.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::string_view bytes() const { return {data_, size_}; }

 private:
  MappedFile(std::string path, const char* data, size_t size);

  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// Reads a small text file whole. NOT_FOUND when there is none, INVALID_ARGUMENT when it has more
// than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

// One tensor as its header describes it.
struct StoredTensor {
  std::string dtype;  // safetensors' name: "BF16", "F32", "F8_E4M3", ...
  std::vector<int64_t> shape;
  const char* data = nullptr;  // into the mapping
  size_t bytes = 0;
  int32_t file = 0;  // index into Checkpoint::files
};
// "F8_E4M3[256, 128]", for messages.
std::string DescribeTensor(const StoredTensor& tensor);

// Reads one file's header. INVALID_ARGUMENT lists every problem of the header. Public for tests.
absl::StatusOr<std::map<std::string, StoredTensor>> ParseSafetensors(std::string_view file,
                                                                     const std::string& source);

class Checkpoint {
 public:
  // Maps all files of `directory`. INVALID_ARGUMENT or NOT_FOUND, with every problem of every file
  // at once.
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  // Null when there is no such tensor. The pointer lives as long as the checkpoint.
  const StoredTensor* Find(const std::string& name) const;
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::string& file_name(const StoredTensor& tensor) const {
    return files_[tensor.file].path();
  }
  // Bytes of all tensors.
  size_t tensor_bytes() const;

  // 32 hex digits (XXH3, 128 bits) over `config_json`, every tensor's name, dtype and shape, and
  // the first bytes of 64 tensors spread evenly over the names, so that two trainings of one
  // architecture differ without reading all weights.
  std::string Hash(std::string_view config_json) const;

 private:
  std::vector<MappedFile> files_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_CHECKPOINT_H_
