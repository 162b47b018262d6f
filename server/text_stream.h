#ifndef BATON_SERVER_TEXT_STREAM_H_
#define BATON_SERVER_TEXT_STREAM_H_

// Turns one request's output tokens into the text that its client may see: whole UTF-8 characters,
// nothing of special tokens, and nothing of a stop string, not even its first half. Text that may
// still become a stop string is held back (less than the longest one's bytes). One thread.

#include <string>
#include <vector>

#include "base/ids.h"
#include "model/tokenizer.h"

namespace baton::server {

class TextStream {
 public:
  // `tokenizer` must outlive this. No stop string is empty.
  TextStream(const model::Tokenizer& tokenizer, std::vector<std::string> stop_strings);

  // The text that `token` sets free; often empty. After a stop string was completed nothing more
  // comes: the caller ends the request and feeds no further token.
  std::string Feed(TokenId token);

  // The request is over: all that is still held back. Empty when a stop string ended it.
  std::string Flush();

  bool stopped() const { return stopped_; }
  // The stop string that was complete first; valid when stopped().
  const std::string& stop_string() const { return stop_string_; }

 private:
  std::string Release(std::string fresh);

  const std::vector<std::string> stop_strings_;
  model::StreamingDetokenizer detokenizer_;
  std::string held_;  // ends in what may be the beginning of a stop string
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace baton::server

#endif  // BATON_SERVER_TEXT_STREAM_H_
