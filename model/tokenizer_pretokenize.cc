#include "model/tokenizer_pretokenize.h"

#include <algorithm>
#include <utility>

#include "base/status_macros.h"

namespace baton::model {
namespace {

void Append(std::string_view text, size_t begin, size_t end, std::vector<std::string_view>& out) {
  if (begin < end) out.push_back(text.substr(begin, end - begin));
}

// Joins spans by behaviours that look at neighbours. `spans` cover `text`.
void AppendMerged(std::string_view text, std::vector<Regex::Span>& spans, SplitBehavior behavior,
                  std::vector<std::string_view>& out) {
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(spans.begin(), spans.end());
  std::vector<Regex::Span> joined;
  bool previous_match = false;
  for (const Regex::Span& span : spans) {
    const bool joins = behavior == SplitBehavior::kContiguous ? span.is_match == previous_match
                                                              : span.is_match && !previous_match;
    previous_match = span.is_match;
    if (!joins || joined.empty()) {
      joined.push_back(span);
    } else if (backwards) {
      joined.back().begin = span.begin;
    } else {
      joined.back().end = span.end;
    }
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  for (const Regex::Span& span : joined) Append(text, span.begin, span.end, out);
}

absl::Status Split(const PreTokenizeStep& step, std::string_view text, bool modern,
                   std::vector<std::string_view>& out) {
  switch (step.behavior) {
    case SplitBehavior::kIsolated:
      return step.pattern->Cut(
          text, modern, [&](const Regex::Span& span) { Append(text, span.begin, span.end, out); });
    case SplitBehavior::kRemoved:
      return step.pattern->Cut(text, modern, [&](const Regex::Span& span) {
        if (span.is_match == step.invert) Append(text, span.begin, span.end, out);
      });
    default: {
      std::vector<Regex::Span> spans;
      BATON_RETURN_IF_ERROR(step.pattern->Cut(text, modern, [&](const Regex::Span& span) {
        spans.push_back({span.begin, span.end, span.is_match != step.invert});
      }));
      AppendMerged(text, spans, step.behavior, out);
      return absl::OkStatus();
    }
  }
}

}  // namespace

absl::Status PreTokenizer::Cut(std::string_view text, bool modern, Pieces& pieces) const {
  pieces.owned.clear();
  pieces.views.clear();
  if (text.empty()) return absl::OkStatus();
  pieces.views.push_back(text);
  std::vector<std::string_view> next;
  for (const PreTokenizeStep& step : steps_) {
    if (step.add_prefix_space) {
      for (std::string_view& piece : pieces.views) {
        if (!piece.starts_with(' ')) piece = pieces.owned.emplace_back(" " + std::string(piece));
      }
    }
    if (!step.pattern) continue;
    next.clear();
    for (const std::string_view piece : pieces.views) {
      BATON_RETURN_IF_ERROR(Split(step, piece, modern, next));
    }
    pieces.views.swap(next);
  }
  return absl::OkStatus();
}

}  // namespace baton::model
