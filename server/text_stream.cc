#include "server/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace baton::server {
namespace {

// Length of the longest suffix of `text` that is a proper prefix of `stop`.
size_t OpenSuffix(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(const model::Tokenizer& tokenizer, std::vector<std::string> stop_strings)
    : stop_strings_(std::move(stop_strings)),
      detokenizer_(tokenizer, /*skip_special_tokens=*/true) {}

std::string TextStream::Feed(TokenId token) {
  if (stopped_) return std::string();
  return Release(detokenizer_.Feed(token));
}

std::string TextStream::Flush() {
  if (stopped_) return std::string();
  std::string text = Release(detokenizer_.Flush());
  if (!stopped_) text += std::exchange(held_, std::string());
  return text;
}

std::string TextStream::Release(std::string fresh) {
  if (stop_strings_.empty()) return fresh;
  held_ += fresh;
  // `held_` is shorter than the longest stop string plus one token's text, so searching all of it
  // again is cheap. The stop that is complete first wins, as if the text came byte by byte; of two
  // that end together, the longer.
  size_t found_at = std::string::npos;
  size_t found_end = std::string::npos;
  for (const std::string& stop : stop_strings_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < found_end || (end == found_end && at < found_at)) {
      found_at = at;
      found_end = end;
      stop_string_ = stop;
    }
  }
  if (found_at != std::string::npos) {
    stopped_ = true;
    std::string text = held_.substr(0, found_at);
    held_.clear();
    return text;
  }
  size_t open = 0;
  for (const std::string& stop : stop_strings_) {
    open = std::max(open, OpenSuffix(held_, stop));
  }
  // A stop string is whole characters, so its open prefix may end inside one, but the text before
  // it never does.
  std::string text = held_.substr(0, held_.size() - open);
  held_.erase(0, held_.size() - open);
  return text;
}

}  // namespace baton::server
