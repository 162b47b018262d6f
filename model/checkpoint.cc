#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/json_fields.h"
#include "xxhash.h"

namespace baton::model {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr size_t kMaxTensors = 10'000'000;
constexpr size_t kMaxShards = 10'000;
constexpr size_t kHashSamples = 64;
constexpr size_t kHashSampleBytes = 4096;

absl::Status SystemError(const std::string& path, const char* what) {
  const int code = errno;
  return absl::ErrnoToStatus(code, absl::StrCat(path, ": cannot ", what));
}

// Bytes of one element, 0 for a name the format does not know.
size_t StoredBytes(std::string_view dtype) {
  struct Entry {
    std::string_view name;
    size_t bytes;
  };
  static constexpr Entry kDTypes[] = {{"BOOL", 1},    {"U8", 1},      {"I8", 1},  {"F8_E5M2", 1},
                                      {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2},
                                      {"F16", 2},     {"BF16", 2},    {"I32", 4}, {"U32", 4},
                                      {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8}};
  for (const Entry& entry : kDTypes) {
    if (entry.name == dtype) return entry.bytes;
  }
  return 0;
}

// Elements of `shape`; false when it holds something else than sizes or the product overflows 2^62.
bool ReadShape(const nlohmann::json& shape, std::vector<int64_t>& dims, uint64_t& elements) {
  if (!shape.is_array() || shape.size() > 16) return false;
  elements = 1;
  bool empty = false;
  for (const nlohmann::json& dim : shape) {
    if (!dim.is_number_unsigned()) return false;
    const uint64_t size = dim.get<uint64_t>();
    if (size > (uint64_t{1} << 62)) return false;
    dims.push_back(static_cast<int64_t>(size));
    if (size == 0) empty = true;
    if (size > 0 && __builtin_mul_overflow(elements, size, &elements)) return false;
    if (elements > (uint64_t{1} << 62)) return false;
  }
  if (empty) elements = 0;
  return true;
}

// One entry of the header; empty text when it is sound.
std::string ReadEntry(const nlohmann::json& entry, std::string_view data, StoredTensor& tensor) {
  if (!entry.is_object()) return "is not an object";
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(field)) return absl::StrCat("has no ", field);
  }
  const nlohmann::json& dtype = entry["dtype"];
  const size_t element_bytes =
      dtype.is_string() ? StoredBytes(dtype.get_ref<const std::string&>()) : 0;
  if (element_bytes == 0) return absl::StrCat("has the unknown dtype ", JsonShown(dtype));
  tensor.dtype = dtype.get<std::string>();

  uint64_t elements = 0;
  if (!ReadShape(entry["shape"], tensor.shape, elements)) {
    return absl::StrCat("has the impossible shape ", JsonShown(entry["shape"]));
  }
  const nlohmann::json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return absl::StrCat("has the data_offsets ", JsonShown(offsets), ", expected [begin, end]");
  }
  const uint64_t begin = offsets[0].get<uint64_t>();
  const uint64_t end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size()) {
    return absl::StrCat("lies at bytes [", begin, ", ", end, ") of a data section of ", data.size(),
                        " bytes (truncated file?)");
  }
  uint64_t expected = 0;
  if (__builtin_mul_overflow(elements, uint64_t{element_bytes}, &expected) ||
      expected != end - begin) {
    return absl::StrCat("is ", DescribeTensor(tensor), ", ", elements, " elements of ",
                        element_bytes, " bytes, but its data_offsets span ", end - begin, " bytes");
  }
  tensor.data = data.data() + begin;
  tensor.bytes = end - begin;
  return "";
}

// The format wants the data section filled by the tensors, each byte once.
void CheckCoverage(const std::map<std::string, StoredTensor>& tensors, std::string_view data,
                   std::vector<std::string>& problems) {
  std::vector<std::pair<const char*, const std::pair<const std::string, StoredTensor>*>> order;
  order.reserve(tensors.size());
  for (const auto& named : tensors) {
    if (named.second.bytes > 0) order.emplace_back(named.second.data, &named);
  }
  std::sort(order.begin(), order.end());
  const char* covered = data.data();
  std::string before = "the header";
  for (const auto& [begin, named] : order) {
    if (begin < covered) {
      problems.push_back(absl::StrCat("tensor ", named->first, " overlaps ", before));
    } else if (begin > covered) {
      problems.push_back(absl::StrCat(begin - covered, " bytes between ", before, " and tensor ",
                                      named->first, " belong to no tensor"));
    }
    covered = std::max(covered, begin + named->second.bytes);
    before = absl::StrCat("tensor ", named->first);
  }
  const char* end = data.data() + data.size();
  if (covered != end) {
    problems.push_back(
        absl::StrCat(end - covered, " bytes after ", before, " belong to no tensor"));
  }
}

// Parses the header's JSON; names that stand there twice become problems.
nlohmann::json ParseHeader(std::string_view text, std::vector<std::string>& problems) {
  std::set<std::string> names;
  const auto on_event = [&](int depth, nlohmann::json::parse_event_t event,
                            nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !names.insert(parsed.get<std::string>()).second) {
      problems.push_back(absl::StrCat("tensor ", parsed.get<std::string>(), " is listed twice"));
    }
    return true;
  };
  return nlohmann::json::parse(text, on_event, /*allow_exceptions=*/false);
}

// Shard names of an index file, each once, in name order, with the tensors that each must hold.
absl::StatusOr<std::map<std::string, std::set<std::string>>> ReadIndex(const std::string& text,
                                                                       const std::string& source) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json object,
                         ParseJsonObject(text, source, kMaxHeaderBytes));
  const auto weight_map = object.find("weight_map");
  if (weight_map == object.end() || !weight_map->is_object() || weight_map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": weight_map is missing or empty"));
  }
  std::vector<std::string> problems;
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, file] : weight_map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      problems.push_back(absl::StrCat("weight_map.", tensor, " is ", JsonShown(file),
                                      ", expected the name of a file in the same directory"));
      continue;
    }
    shards[name].insert(tensor);
  }
  if (shards.size() > kMaxShards) {
    problems.push_back(
        absl::StrCat("lists ", shards.size(), " files; at most ", kMaxShards, " are opened"));
  }
  BATON_RETURN_IF_ERROR(ProblemsToStatus(source, problems));
  return shards;
}

}  // namespace

MappedFile::MappedFile(std::string path, const char* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open");
  struct stat info;
  if (fstat(fd, &info) != 0) {
    const absl::Status status = SystemError(path, "stat");
    close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    close(fd);
    return MappedFile(path, nullptr, 0);
  }
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const absl::Status status = data == MAP_FAILED ? SystemError(path, "map") : absl::OkStatus();
  close(fd);
  if (!status.ok()) return status;
  return MappedFile(path, static_cast<const char*>(data), size);
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  BATON_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", file.bytes().size(), " bytes, expected at most ", max_bytes));
  }
  return std::string(file.bytes());
}

std::string DescribeTensor(const StoredTensor& tensor) {
  return absl::StrCat(tensor.dtype, "[", absl::StrJoin(tensor.shape, ", "), "]");
}

absl::StatusOr<std::map<std::string, StoredTensor>> ParseSafetensors(std::string_view file,
                                                                     const std::string& source) {
  const auto fail = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", parts...));
  };
  if (file.size() < kLengthBytes)
    return fail("has ", file.size(), " bytes; not a safetensors file");
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<uint64_t>(static_cast<uint8_t>(file[i])) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes) {
    return fail("says its header has ", header_bytes, " bytes; at most ", kMaxHeaderBytes,
                " are allowed (not a safetensors file?)");
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return fail("says its header has ", header_bytes, " bytes, but the file has only ", file.size(),
                " (truncated?)");
  }
  std::vector<std::string> problems;
  const nlohmann::json header = ParseHeader(file.substr(kLengthBytes, header_bytes), problems);
  if (header.is_discarded() || !header.is_object()) return fail("header is no valid JSON object");
  if (header.size() > kMaxTensors) return fail("lists ", header.size(), " tensors");

  const std::string_view data = file.substr(kLengthBytes + header_bytes);
  std::map<std::string, StoredTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    StoredTensor tensor;
    const std::string problem = ReadEntry(entry, data, tensor);
    if (problem.empty()) {
      tensors.emplace(name, std::move(tensor));
    } else {
      problems.push_back(absl::StrCat("tensor ", name, " ", problem));
    }
  }
  // With entries left out, holes would be reported that are not there.
  if (problems.empty()) CheckCoverage(tensors, data, problems);
  BATON_RETURN_IF_ERROR(ProblemsToStatus(source, problems));
  return tensors;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  const std::string single = "model.safetensors";
  const std::string index_path = directory + "/model.safetensors.index.json";
  std::map<std::string, std::set<std::string>> shards;
  absl::StatusOr<std::string> index = ReadTextFile(index_path, kMaxHeaderBytes);
  if (index.ok()) {
    BATON_ASSIGN_OR_RETURN(shards, ReadIndex(*index, index_path));
  } else if (absl::IsNotFound(index.status())) {
    shards[single];  // one file: its own header says what it holds
  } else {
    return index.status();
  }

  Checkpoint checkpoint;
  std::vector<std::string> problems;
  for (const auto& [name, wanted] : shards) {
    const std::string path = absl::StrCat(directory, "/", name);
    absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    if (!file.ok() && !index.ok() && absl::IsNotFound(file.status())) {
      return absl::NotFoundError(absl::StrCat(directory, ": holds neither ", single, " nor ",
                                              single, ".index.json; copy the weights there"));
    }
    if (!file.ok()) {
      problems.push_back(std::string(file.status().message()));
      continue;
    }
    auto tensors = ParseSafetensors(file->bytes(), path);
    if (!tensors.ok()) {
      problems.push_back(std::string(tensors.status().message()));
      continue;
    }
    for (const std::string& tensor : wanted) {
      if (!tensors->contains(tensor)) {
        problems.push_back(
            absl::StrCat(path, ": tensor ", tensor, " is missing; the index says it is here"));
      }
    }
    for (auto& [tensor, stored] : *tensors) {
      stored.file = static_cast<int32_t>(checkpoint.files_.size());
      if (index.ok() && !wanted.contains(tensor)) {
        problems.push_back(absl::StrCat(path, ": tensor ", tensor, " is not in the index"));
      }
      checkpoint.tensors_.insert_or_assign(tensor, std::move(stored));
    }
    checkpoint.files_.push_back(std::move(*file));
  }
  BATON_RETURN_IF_ERROR(ProblemsToStatus(directory, problems));
  return checkpoint;
}

const StoredTensor* Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

size_t Checkpoint::tensor_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += tensor.bytes;
  return bytes;
}

std::string Checkpoint::Hash(std::string_view config_json) const {
  XXH3_state_t* state = XXH3_createState();
  BATON_CHECK(state != nullptr);
  XXH3_128bits_reset(state);
  const auto add = [state](std::string_view bytes) {
    const uint64_t length = bytes.size();  // so that "ab" + "c" differs from "a" + "bc"
    XXH3_128bits_update(state, &length, sizeof(length));
    XXH3_128bits_update(state, bytes.data(), bytes.size());
  };
  add(config_json);
  const size_t stride = std::max<size_t>(1, tensors_.size() / kHashSamples);
  size_t i = 0;
  for (const auto& [name, tensor] : tensors_) {
    add(name);
    add(DescribeTensor(tensor));
    if (i++ % stride == 0) add({tensor.data, std::min(tensor.bytes, kHashSampleBytes)});
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16),
                      absl::Hex(hash.low64, absl::kZeroPad16));
}

}  // namespace baton::model
