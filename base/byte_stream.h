#ifndef BATON_BASE_BYTE_STREAM_H_
#define BATON_BASE_BYTE_STREAM_H_

// Values as bytes and back, in the machine's own order: for messages between ranks of one revision
// on machines of one kind. A reader never reads behind its bytes and says at the end whether they
// were what was expected.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace baton {

class ByteWriter {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.resize(bytes_.size() + sizeof(T));
    std::memcpy(bytes_.data() + bytes_.size() - sizeof(T), &value, sizeof(T));
  }
  template <typename T>
  void PutAll(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    Put(static_cast<uint64_t>(values.size()));
    const auto bytes = std::as_bytes(values);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void PutString(std::string_view text) { PutAll(std::span<const char>(text.data(), text.size())); }

  // What was put, as one block; the writer is empty again.
  std::vector<std::byte> Take() { return std::exchange(bytes_, {}); }

 private:
  std::vector<std::byte> bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // T() once the bytes have run out; ok() is false from then on.
  template <typename T>
  T Take() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (bytes_.size() < sizeof(T)) {
      Fail();
    } else {
      std::memcpy(&value, bytes_.data(), sizeof(T));
      bytes_ = bytes_.subspan(sizeof(T));
    }
    return value;
  }
  template <typename T>
  std::vector<T> TakeAll() {
    const uint64_t count = Take<uint64_t>();
    std::vector<T> values;
    if (count > bytes_.size() / sizeof(T)) {
      Fail();
    } else if (count > 0) {
      values.resize(static_cast<size_t>(count));
      std::memcpy(values.data(), bytes_.data(), values.size() * sizeof(T));
      bytes_ = bytes_.subspan(values.size() * sizeof(T));
    }
    return values;
  }
  std::string TakeString() {
    const std::vector<char> text = TakeAll<char>();
    return std::string(text.begin(), text.end());
  }

  bool ok() const { return ok_; }
  // Nothing was missing and nothing is left.
  bool done() const { return ok_ && bytes_.empty(); }

 private:
  void Fail() {
    ok_ = false;
    bytes_ = {};
  }

  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

}  // namespace baton

#endif  // BATON_BASE_BYTE_STREAM_H_
