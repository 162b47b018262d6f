#include "tests/simt/race.h"

#include <algorithm>

namespace baton::simt {

void Join(VectorClock& into, const VectorClock& other) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], other[i]);
}

namespace {

// Of a word at a time.
uint8_t BytesOf(size_t word, size_t address, int bytes) {
  uint8_t mask = 0;
  for (size_t byte = 0; byte < 4; ++byte) {
    const size_t at = word * 4 + byte;
    if (at >= address && at < address + static_cast<size_t>(bytes)) {
      mask |= static_cast<uint8_t>(1u << byte);
    }
  }
  return mask;
}

}  // namespace

std::optional<AccessRecord> RaceMap::Note(size_t address, int bytes, bool write, bool atomic,
                                          uint32_t block, int thread, const VectorClock& clock,
                                          const void* site) {
  AccessRecord access{.block = block,
                      .thread = static_cast<uint16_t>(thread),
                      .atomic = atomic,
                      .clock = clock[static_cast<size_t>(thread)],
                      .site = site};
  for (size_t word = address / 4; word <= (address + static_cast<size_t>(bytes) - 1) / 4; ++word) {
    access.bytes = BytesOf(word, address, bytes);
    std::optional<AccessRecord> race;
    if (!flat_.empty()) {
      race = NoteWord(flat_[word - first_word_], access, write, clock);
    } else {
      Shard& shard = shards_[word % shards_.size()];
      const std::lock_guard<std::mutex> lock(shard.mutex);
      race = NoteWord(shard.words[word], access, write, clock);
    }
    if (race.has_value()) return race;
  }
  return std::nullopt;
}

std::optional<AccessRecord> RaceMap::Check(size_t address, int bytes, bool write, uint32_t block,
                                           int thread, const VectorClock& clock) {
  AccessRecord access{.block = block, .thread = static_cast<uint16_t>(thread)};
  for (size_t word = address / 4; word <= (address + static_cast<size_t>(bytes) - 1) / 4; ++word) {
    access.bytes = BytesOf(word, address, bytes);
    const std::optional<AccessRecord> race =
        FindRace(flat_[word - first_word_], access, write, clock);
    if (race.has_value()) return race;
  }
  return std::nullopt;
}

std::optional<AccessRecord> RaceMap::FindRace(const Word& word, const AccessRecord& access,
                                              bool write, const VectorClock& clock) {
  const auto races = [&](const AccessRecord& earlier) {
    if ((earlier.bytes & access.bytes) == 0 || (earlier.atomic && access.atomic)) return false;
    if (earlier.block != access.block) return true;
    return earlier.clock > clock[earlier.thread];
  };
  for (const AccessRecord& earlier : word.writes) {
    if (races(earlier)) return earlier;
  }
  for (size_t i = 0; write && i < word.reads.size(); ++i) {
    if (races(word.reads[i])) return word.reads[i];
  }
  return std::nullopt;
}

std::optional<AccessRecord> RaceMap::NoteWord(Word& word, const AccessRecord& access, bool write,
                                              const VectorClock& clock) {
  const std::optional<AccessRecord> race = FindRace(word, access, write, clock);
  if (race.has_value()) return race;
  std::vector<AccessRecord>& own = write ? word.writes : word.reads;
  if (write) {
    // What came before is ordered before this write, and so before whatever is ordered behind it.
    const auto hidden = [&](const AccessRecord& r) { return (r.bytes & ~access.bytes) == 0; };
    std::erase_if(word.reads, hidden);
    std::erase_if(word.writes, hidden);
  } else {
    if (!own.empty() && own.front().block != access.block) {
      if (word.many_blocks_read) return std::nullopt;  // two blocks are enough to race with anyone
      word.many_blocks_read = true;
    }
    std::erase_if(own, [&](const AccessRecord& r) {
      return r.block == access.block && r.thread == access.thread && r.atomic == access.atomic &&
             (r.bytes & ~access.bytes) == 0;
    });
  }
  own.push_back(access);
  return std::nullopt;
}

void RaceMap::Clear() {
  for (Shard& shard : shards_) shard.words.clear();
  for (Word& word : flat_) {
    word.writes.clear();
    word.reads.clear();
    word.many_blocks_read = false;
  }
}

}  // namespace baton::simt
