#ifndef BATON_TESTS_SIMT_RACE_H_
#define BATON_TESTS_SIMT_RACE_H_

// Which accesses to memory are ordered: vector clocks of the threads of a block (joined by barriers
// and transactions) and, for each word of memory, the accesses that a later one could race with.
// Threads of different blocks of a grid are never ordered.

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace baton::simt {

// clock[t]: how much of thread t's past is also this one's.
using VectorClock = std::vector<uint32_t>;
void Join(VectorClock& into, const VectorClock& other);

struct AccessRecord {
  uint32_t block = 0;
  uint16_t thread = 0;
  uint8_t bytes = 0;  // a bit for each byte of the word
  bool atomic = false;
  uint32_t clock = 0;
  const void* site = nullptr;
};

// The accesses of one launch (global memory; thread-safe) or, of a range of addresses known
// beforehand, of one block (shared memory; for one OS thread).
class RaceMap {
 public:
  RaceMap() = default;
  RaceMap(size_t address, size_t bytes) : first_word_(address / 4), flat_(bytes / 4) {}

  // Notes an access of up to 16 bytes; the earlier one it races with, if there is one.
  std::optional<AccessRecord> Note(size_t address, int bytes, bool write, bool atomic,
                                   uint32_t block, int thread, const VectorClock& clock,
                                   const void* site);
  // The same without noting it.
  std::optional<AccessRecord> Check(size_t address, int bytes, bool write, uint32_t block,
                                    int thread, const VectorClock& clock);
  void Clear();

 private:
  struct Word {
    std::vector<AccessRecord> writes;
    std::vector<AccessRecord> reads;
    bool many_blocks_read = false;  // `reads` are then those of the first block alone, and of one
                                    // other
  };
  struct Shard {
    std::mutex mutex;
    std::unordered_map<size_t, Word> words;
  };
  static std::optional<AccessRecord> FindRace(const Word& word, const AccessRecord& access,
                                              bool write, const VectorClock& clock);
  static std::optional<AccessRecord> NoteWord(Word& word, const AccessRecord& access, bool write,
                                              const VectorClock& clock);

  std::array<Shard, 64> shards_;
  size_t first_word_ = 0;
  std::vector<Word> flat_;  // of a known range
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_RACE_H_
