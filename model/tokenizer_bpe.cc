#include "model/tokenizer_bpe.h"

#include <algorithm>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

// Debian's Abseil has a string_view of its own.
absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

std::optional<TokenId> Find(const Vocabulary& vocab, std::string_view token) {
  const auto it = vocab.find(ToAbsl(token));
  return it == vocab.end() ? std::nullopt : std::optional<TokenId>(it->second);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const BytePairEncoder>> BytePairEncoder::Create(BpeSpec spec) {
  std::unique_ptr<BytePairEncoder> encoder(new BytePairEncoder(std::move(spec)));
  const BpeSpec& own = encoder->spec_;
  BATON_RETURN_IF_ERROR(encoder->IndexMerges());
  for (size_t byte = 0; byte < 256; ++byte) {
    encoder->byte_ids_[byte] = Find(own.vocab, ByteAlphabet()[byte]);
    encoder->fallback_ids_[byte] = Find(own.vocab, absl::StrFormat("<0x%02X>", byte));
  }
  if (own.unk_token) {
    encoder->unk_id_ = Find(own.vocab, *own.unk_token);
    if (!encoder->unk_id_) {
      return absl::InvalidArgumentError(absl::StrCat("key 'model.unk_token' is \"", *own.unk_token,
                                                     "\", which key 'model.vocab' lacks"));
    }
  }
  return std::unique_ptr<const BytePairEncoder>(std::move(encoder));
}

absl::Status BytePairEncoder::IndexMerges() {
  merges_.reserve(spec_.merges.size());
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const auto& [left, right] = spec_.merges[rank];
    const std::string joined = left + right;
    for (const std::string* token : {&left, &right, &joined}) {
      if (spec_.vocab.contains(*token)) continue;
      return absl::InvalidArgumentError(absl::StrCat("key 'model.merges[", rank,
                                                     "]' needs the token \"", *token,
                                                     "\", which key 'model.vocab' lacks"));
    }
    const uint64_t key = static_cast<uint64_t>(spec_.vocab.at(left)) << 32 |
                         static_cast<uint64_t>(spec_.vocab.at(right));
    merges_[key] = {static_cast<uint32_t>(rank), spec_.vocab.at(joined)};
  }
  spec_.merges = {};
  return absl::OkStatus();
}

const BytePairEncoder::Merge* BytePairEncoder::FindMerge(TokenId left, TokenId right) const {
  const auto it = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BytePairEncoder::Encode(std::string_view piece, std::vector<TokenId>& out) const {
  if (piece.size() > kLongestCachedWord) return EncodeUncached(piece, out);
  CacheShard& shard = cache_[absl::Hash<absl::string_view>()(ToAbsl(piece)) % kShards];
  if (const std::unique_lock lock(shard.mutex, std::try_to_lock); lock.owns_lock()) {
    if (const auto it = shard.words.find(ToAbsl(piece)); it != shard.words.end()) {
      out.insert(out.end(), it->second.begin(), it->second.end());
      return;
    }
  }
  const size_t begin = out.size();
  EncodeUncached(piece, out);
  if (const std::unique_lock lock(shard.mutex, std::try_to_lock); lock.owns_lock()) {
    if (shard.words.size() >= kWordsPerShard) shard.words.clear();
    shard.words[std::string(piece)].assign(out.begin() + static_cast<ptrdiff_t>(begin), out.end());
  }
}

void BytePairEncoder::EncodeUncached(std::string_view piece, std::vector<TokenId>& out) const {
  if (spec_.ignore_merges) {
    std::string spelled;
    if (spec_.byte_level) {
      for (const char byte : piece) spelled += ByteAlphabet()[static_cast<uint8_t>(byte)];
    }
    if (const std::optional<TokenId> id = Find(spec_.vocab, spec_.byte_level ? spelled : piece)) {
      out.push_back(*id);
      return;
    }
  }
  const size_t begin = out.size();
  AppendSymbols(piece, out);
  MergeAll(out, begin);
}

// The ids of the single characters of `piece`. One that the vocabulary lacks becomes its bytes'
// fallback tokens, or else unk (neighbouring ones fused on request), or else nothing.
void BytePairEncoder::AppendSymbols(std::string_view piece, std::vector<TokenId>& out) const {
  bool unk_pending = false;
  while (!piece.empty()) {
    const uint8_t byte = static_cast<uint8_t>(piece[0]);
    const size_t bytes = spec_.byte_level ? 1 : DecodeUtf8(piece).bytes;
    const std::string_view character =
        spec_.byte_level ? std::string_view(ByteAlphabet()[byte]) : piece.substr(0, bytes);
    piece.remove_prefix(bytes);
    if (const std::optional<TokenId> id =
            spec_.byte_level ? byte_ids_[byte] : Find(spec_.vocab, character)) {
      if (unk_pending) out.push_back(*unk_id_);
      unk_pending = false;
      out.push_back(*id);
      continue;
    }
    // A pending unk stays pending here, and so comes after the bytes: that is what the oracle does.
    if (spec_.byte_fallback && AppendByteFallback(character, out)) continue;
    if (!unk_id_) continue;
    if (unk_pending && !spec_.fuse_unk) out.push_back(*unk_id_);
    unk_pending = true;
  }
  if (unk_pending) out.push_back(*unk_id_);
}

bool BytePairEncoder::AppendByteFallback(std::string_view character,
                                         std::vector<TokenId>& out) const {
  for (const char byte : character) {
    if (!fallback_ids_[static_cast<uint8_t>(byte)]) return false;
  }
  for (const char byte : character) out.push_back(*fallback_ids_[static_cast<uint8_t>(byte)]);
  return true;
}

// Merges the symbols ids[begin..] in place, with a heap of candidate pairs. A candidate may be
// stale when it comes up; it is then dropped, because the pairs that replaced it were pushed when
// they arose. At most 3n pushes.
void BytePairEncoder::MergeAll(std::vector<TokenId>& ids, size_t begin) const {
  const int32_t count = static_cast<int32_t>(ids.size() - begin);
  if (count < 2) return;
  std::vector<Symbol> symbols(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)] = {ids[begin + static_cast<size_t>(i)], i - 1,
                                       i + 1 < count ? i + 1 : -1, true};
  }
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::vector<Candidate> heap;
  const auto candidate = [&](int32_t left) -> std::optional<Candidate> {
    const int32_t right = left < 0 ? -1 : at(left).next;
    const Merge* merge = right < 0 ? nullptr : FindMerge(at(left).id, at(right).id);
    if (merge == nullptr) return std::nullopt;
    return Candidate{merge->rank, left, merge->result};
  };
  for (int32_t i = 0; i + 1 < count; ++i) {
    if (const auto found = candidate(i)) heap.push_back(*found);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = at(top.position);
    if (!left.alive) continue;
    const auto current = candidate(top.position);
    if (!current || current->result != top.result) continue;
    Symbol& right = at(left.next);
    right.alive = false;
    left.id = top.result;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = top.position;
    for (const int32_t position : {left.previous, top.position}) {
      if (const auto found = candidate(position)) {
        heap.push_back(*found);
        std::push_heap(heap.begin(), heap.end(), later);
      }
    }
  }
  size_t kept = begin;
  for (int32_t i = 0; i >= 0; i = at(i).next) ids[kept++] = at(i).id;
  ids.resize(kept);
}

}  // namespace baton::model
