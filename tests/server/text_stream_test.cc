#include "server/text_stream.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/server/stub_cluster.h"

namespace baton::server {
namespace {

class TextStreamTest : public ::testing::Test {
 protected:
  // Feeds `text` byte by byte, as one token each; returns the pieces, Flush's last.
  std::vector<std::string> Pieces(const std::string& text, std::vector<std::string> stops) {
    TextStream stream(*tokenizer_, std::move(stops));
    std::vector<std::string> pieces;
    const absl::StatusOr<std::vector<TokenId>> ids = tokenizer_->Encode(text, false);
    for (TokenId id : *ids) {
      pieces.push_back(stream.Feed(id));
      if (stream.stopped()) break;
    }
    pieces.push_back(stream.Flush());
    stop_ = stream.stopped() ? stream.stop_string() : "";
    return pieces;
  }
  std::string Text(const std::string& text, std::vector<std::string> stops) {
    std::string all;
    for (const std::string& piece : Pieces(text, std::move(stops))) all += piece;
    return all;
  }

  std::shared_ptr<const model::Tokenizer> tokenizer_ = ByteTokenizer();
  std::string stop_;
};

TEST_F(TextStreamTest, WithoutStopsEveryCharacterComesAtOnce) {
  EXPECT_EQ(Pieces("ab\xC3\xA9", {}), (std::vector<std::string>{"a", "b", "", "\xC3\xA9", ""}));
}

TEST_F(TextStreamTest, HalfACharacterAtTheEndIsReplaced) {
  EXPECT_EQ(Text("a\xC3\xA9", {}).size(), 3u);
  TextStream stream(*tokenizer_, {});
  const TokenId lead = tokenizer_->Encode("\xC3\xA9", false)->front();
  EXPECT_EQ(stream.Feed(lead), "");
  EXPECT_EQ(stream.Flush(), "\xEF\xBF\xBD");
}

TEST_F(TextStreamTest, HoldsBackWhatMayBecomeAStopString) {
  EXPECT_EQ(Pieces("xabac", {"abad"}), (std::vector<std::string>{"x", "", "", "", "abac", ""}));
  EXPECT_EQ(stop_, "");
}

TEST_F(TextStreamTest, NothingOfAStopStringLeaks) {
  EXPECT_EQ(Text("one two three", {" two"}), "one");
  EXPECT_EQ(stop_, " two");
  EXPECT_EQ(Text("aab", {"ab"}), "a");
  EXPECT_EQ(Text("stop", {"stop"}), "");
}

TEST_F(TextStreamTest, TheStopThatIsCompleteFirstWins) {
  EXPECT_EQ(Text("abcd", {"abcd", "bc"}), "a");
  EXPECT_EQ(stop_, "bc");
  EXPECT_EQ(Text("xabc", {"bc", "abc"}), "x");  // both end together: the longer
  EXPECT_EQ(stop_, "abc");
}

TEST_F(TextStreamTest, WhatWasHeldBackComesAtTheEnd) {
  EXPECT_EQ(Text("the en", {"end"}), "the en");
  EXPECT_EQ(stop_, "");
}

TEST_F(TextStreamTest, SpecialTokensHaveNoText) {
  TextStream stream(*tokenizer_, {});
  EXPECT_EQ(stream.Feed(0), "");
  EXPECT_EQ(stream.Feed(1), "a");
}

// Against the obvious rule, on texts that are full of near misses.
TEST_F(TextStreamTest, AgreesWithSearchingTheWholeText) {
  Rng rng(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text, stop;
    for (uint64_t i = rng.Below(20); i > 0; --i) text += static_cast<char>('a' + rng.Below(2));
    for (uint64_t i = 1 + rng.Below(4); i > 0; --i) stop += static_cast<char>('a' + rng.Below(2));
    SCOPED_TRACE(text + " / " + stop);
    ASSERT_EQ(Text(text, {stop}), text.substr(0, text.find(stop)));
    ASSERT_EQ(stop_.empty(), text.find(stop) == std::string::npos);
  }
}

}  // namespace
}  // namespace baton::server
