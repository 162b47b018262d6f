#ifndef BATON_TESTS_MODEL_TOKENIZER_TESTING_H_
#define BATON_TESTS_MODEL_TOKENIZER_TESTING_H_

// What the tokenizer's tests share: golden files, and the random texts that
// tools/make_golden/tokenizer.py makes too.

#include <cstdint>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/ids.h"
#include "model/tokenizer_utf8.h"
#include "nlohmann/json.hpp"

namespace baton::model {

inline std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A file of tests/data/tokenizer.
inline std::string ReadData(const std::string& name) {
  std::string text = ReadWhole(std::string(BATON_SOURCE_DIR "/tests/data/tokenizer/") + name);
  BATON_CHECK_MSG(!text.empty(), name);
  return text;
}
inline nlohmann::json ReadGolden(const std::string& name) {
  return nlohmann::json::parse(ReadData(name));
}

// SplitMix64, as the golden maker's.
class GoldenRandom {
 public:
  explicit GoldenRandom(uint64_t seed) : state_(seed) {}
  uint64_t Below(uint64_t n) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) % n;
  }

 private:
  uint64_t state_;
};

// FNV-1a, 64 bits.
class Fnv {
 public:
  void Add(std::string_view bytes) {
    for (const char c : bytes) value_ = (value_ ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  }
  void AddInt(uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8)
      value_ = (value_ ^ (value >> shift & 0xFF)) * 0x100000001B3u;
  }
  void AddIds(std::span<const TokenId> ids) {
    for (const TokenId id : ids) AddInt(static_cast<uint32_t>(id));
    AddInt(0xFFFFFFFFu);
  }
  std::string Hex() const {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value_));
    return text;
  }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

// The texts of texts.json.
class GoldenTexts {
 public:
  GoldenTexts() : recipe_(ReadGolden("texts.json")) {
    for (const nlohmann::json& form : recipe_["texts"]) {
      std::string text = form.value("text", "");
      if (form.contains("hex")) text = FromHex(form["hex"].get<std::string>());
      for (int i = 0; i < form.value("count", 0); ++i) text += form["repeat"].get<std::string>();
      repeated_.push_back(form.contains("repeat"));
      hard_.push_back(std::move(text));
    }
    fragments_ = recipe_["fragments"].get<std::vector<std::string>>();
    ranges_ = recipe_["ranges"].get<std::vector<std::vector<uint64_t>>>();
  }

  const std::vector<std::string>& hard() const { return hard_; }
  bool repeated(size_t i) const { return repeated_[i]; }
  uint64_t count(const char* name) const { return recipe_[name].get<uint64_t>(); }

  std::string Random(uint64_t seed) const {
    GoldenRandom random(seed);
    std::string text;
    for (uint64_t n = 1 + random.Below(24); n > 0; --n) {
      if (random.Below(4) > 0) {
        text += fragments_[random.Below(fragments_.size())];
        continue;
      }
      const std::vector<uint64_t>& range = ranges_[random.Below(ranges_.size())];
      const uint32_t c = static_cast<uint32_t>(range[0] + random.Below(range[1] - range[0] + 1));
      AppendUtf8(c >= 0xD800 && c <= 0xDFFF ? '?' : c, text);
    }
    return text;
  }

 private:
  static std::string FromHex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
  }

  nlohmann::json recipe_;
  std::vector<std::string> hard_;
  std::vector<bool> repeated_;
  std::vector<std::string> fragments_;
  std::vector<std::vector<uint64_t>> ranges_;
};

}  // namespace baton::model

#endif  // BATON_TESTS_MODEL_TOKENIZER_TESTING_H_
