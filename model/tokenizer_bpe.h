#ifndef BATON_MODEL_TOKENIZER_BPE_H_
#define BATON_MODEL_TOKENIZER_BPE_H_

// Byte pair encoding of one piece: start from single characters (or bytes in the byte-level
// alphabet), and again and again merge the pair of the lowest rank, leftmost first (Sennrich et al.
// 2016, as in the `tokenizers` package). Internal to the tokenizer. Thread-safe: only the word
// cache changes, under locks that are never waited for.

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"

namespace baton::model {

using Vocabulary = absl::flat_hash_map<std::string, TokenId>;

struct BpeSpec {
  Vocabulary vocab;  // ids are unique
  // By rank. Every part, and the two joined, is in the vocabulary.
  std::vector<std::pair<std::string, std::string>> merges;
  std::optional<std::string> unk_token;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  bool byte_level = false;  // pieces are spelled in the byte-level alphabet first
};

class BytePairEncoder {
 public:
  // INVALID_ARGUMENT names the merge or the unk_token that the vocabulary lacks.
  static absl::StatusOr<std::unique_ptr<const BytePairEncoder>> Create(BpeSpec spec);

  // Appends the ids of `piece` (valid UTF-8) to `out`. O(n log n).
  void Encode(std::string_view piece, std::vector<TokenId>& out) const;

  const Vocabulary& vocab() const { return spec_.vocab; }

 private:
  struct Merge {
    uint32_t rank;
    TokenId result;
  };
  // A linked list of the piece's symbols, in an array.
  struct Symbol {
    TokenId id;
    int32_t previous;  // index or -1
    int32_t next;      // index or -1
    bool alive;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    TokenId result;
  };
  // A std::mutex: ThreadSanitizer can't see a TryLock of absl::Mutex in a library built without it.
  struct CacheShard {
    std::mutex mutex;
    absl::flat_hash_map<std::string, absl::InlinedVector<TokenId, 6>> words;  // under mutex
  };

  explicit BytePairEncoder(BpeSpec spec) : spec_(std::move(spec)) {}
  absl::Status IndexMerges();
  void EncodeUncached(std::string_view piece, std::vector<TokenId>& out) const;
  void AppendSymbols(std::string_view piece, std::vector<TokenId>& out) const;
  bool AppendByteFallback(std::string_view character, std::vector<TokenId>& out) const;
  void MergeAll(std::vector<TokenId>& ids, size_t begin) const;
  const Merge* FindMerge(TokenId left, TokenId right) const;

  static constexpr size_t kShards = 16;
  static constexpr size_t kWordsPerShard = 4096;
  static constexpr size_t kLongestCachedWord = 64;  // bytes

  BpeSpec spec_;
  absl::flat_hash_map<uint64_t, Merge> merges_;           // left << 32 | right
  std::array<std::optional<TokenId>, 256> byte_ids_;      // tokens of the byte-level alphabet
  std::array<std::optional<TokenId>, 256> fallback_ids_;  // tokens <0x00> to <0xFF>
  std::optional<TokenId> unk_id_;
  mutable std::array<CacheShard, kShards> cache_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_BPE_H_
