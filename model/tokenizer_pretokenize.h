#ifndef BATON_MODEL_TOKENIZER_PRETOKENIZE_H_
#define BATON_MODEL_TOKENIZER_PRETOKENIZE_H_

// The pre_tokenizer of a tokenizer.json: cuts text into the pieces inside which BPE may merge.
// Internal to the tokenizer. Immutable once built: callable from any thread.

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model/tokenizer_regex.h"

namespace baton::model {

// What becomes of the matches of a split and of the text between them, as the `tokenizers` package
// defines it.
enum class SplitBehavior {
  kRemoved,             // matches vanish
  kIsolated,            // every match and every stretch between is a piece
  kMergedWithPrevious,  // a match joins the piece before it
  kMergedWithNext,      // a match joins the piece after it
  kContiguous,          // neighbouring matches form one piece
};

struct PreTokenizeStep {
  // Set: every piece gets a leading space unless it has one (ByteLevel's add_prefix_space).
  bool add_prefix_space = false;
  // Set: the pattern to split by.
  std::optional<Regex> pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // matches and the text between them change places
};

// The pieces of a text in order; none is empty. Views into the text, or into `owned`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;
};

class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<PreTokenizeStep> steps) : steps_(std::move(steps)) {}

  // `text` is valid UTF-8; `modern` is HasModernCodePoint of it. Replaces what `pieces` held.
  absl::Status Cut(std::string_view text, bool modern, Pieces& pieces) const;

 private:
  std::vector<PreTokenizeStep> steps_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_PRETOKENIZE_H_
