// Split patterns mean what they mean to the `tokenizers` package, for every code point.

#include "model/tokenizer_regex.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer_utf8.h"
#include "tests/model/tokenizer_testing.h"

namespace baton::model {
namespace {

// Every code point of the blocks that have characters once, in chunks so small that few need the
// slower, modern form.
std::vector<std::string> EveryCodePoint() {
  std::vector<std::string> chunks;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c == 0x32400) c = 0xE0000;
    if (c == 0xE1000) break;
    if (c % 0x400 == 0) chunks.emplace_back();
    if (c < 0xD800 || c > 0xDFFF) AppendUtf8(c, chunks.back());
  }
  return chunks;
}

void AppendCodePoints(std::string_view text, std::vector<TokenId>& out) {
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    out.push_back(static_cast<TokenId>(step.code_point));
    text.remove_prefix(step.bytes);
  }
}

TEST(TokenizerRegex, ClassesHoldTheSameCodePoints) {
  const std::vector<std::string> chunks = EveryCodePoint();
  for (const nlohmann::json& golden : ReadGolden("golden_properties.json")) {
    const std::string pattern = golden["pattern"].get<std::string>();
    SCOPED_TRACE(pattern);
    const absl::StatusOr<Regex> regex = Regex::FromOniguruma(pattern + "+");
    ASSERT_TRUE(regex.ok()) << regex.status();
    std::vector<TokenId> members;
    for (const std::string& chunk : chunks) {
      const bool modern = HasModernCodePoint(chunk);
      const absl::Status status = regex->Cut(chunk, modern, [&](const Regex::Span& span) {
        if (span.is_match)
          AppendCodePoints(std::string_view(chunk).substr(span.begin, span.end - span.begin),
                           members);
      });
      ASSERT_TRUE(status.ok()) << status;
    }
    Fnv hash;
    hash.AddIds(members);
    EXPECT_EQ(members.size(), golden["count"].get<size_t>());
    EXPECT_EQ(hash.Hex(), golden["hash"].get<std::string>());
  }
}

TEST(TokenizerRegex, FastAndModernFormsAgreeOnTextWithoutNewCodePoints) {
  const GoldenTexts texts;
  const absl::StatusOr<Regex> regex = Regex::FromOniguruma("\\w+|[\\p{P}\\p{S}]+|\\p{N}");
  ASSERT_TRUE(regex.ok());
  int compared = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const std::string text = texts.Random(seed);
    if (text.empty() || HasModernCodePoint(text)) continue;
    std::vector<size_t> cuts[2];
    for (const bool modern : {false, true}) {
      ASSERT_TRUE(regex
                      ->Cut(text, modern,
                            [&](const Regex::Span& span) { cuts[modern].push_back(span.end); })
                      .ok());
    }
    EXPECT_EQ(cuts[0], cuts[1]) << text;
    ++compared;
  }
  EXPECT_GT(compared, 100);
}

TEST(TokenizerUtf8, IncompleteSuffixIsWhatMoreBytesMayComplete) {
  const struct {
    const char* text;
    size_t suffix;
  } cases[] = {{"", 0},
               {"a", 0},
               {"\xC3", 1},
               {"a\xE4\xB8", 2},
               {"\xF0\x9F\x91", 3},
               {"\xE4\xB8\xAD", 0},
               {"\x80", 0},
               {"\x80\x80\x80", 0},
               {"\xC0", 0},
               {"\xE0\x80", 0},
               {"\xED\xA0", 0},
               {"\xF4\x90", 0},
               {"\xF5", 0},
               {"\xF0\x90", 2},
               {"\xC3\xA9\xC3", 1}};
  for (const auto& [text, suffix] : cases)
    EXPECT_EQ(IncompleteUtf8Suffix(text), suffix) << testing::PrintToString(text);
}

}  // namespace
}  // namespace baton::model
