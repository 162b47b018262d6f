#include "decode_worker/step_exchange.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::decode_worker {
namespace {

// No mail is near this: it bounds what a rank of another mind could make this one allocate.
constexpr uint64_t kMaxMailBytes = uint64_t{1} << 28;

}  // namespace

StepExchange::StepExchange(transport::Collectives& collectives, Duration timeout)
    : collectives_(collectives),
      timeout_(timeout),
      headers_(static_cast<size_t>(collectives.world_size())),
      receive_bytes_(headers_.size()) {}

absl::Status StepExchange::Run(const StepHeader& mine,
                               const std::vector<std::vector<std::byte>>& mail) {
  BATON_CHECK_EQ(mail.size(), headers_.size());
  BATON_CHECK(mail[static_cast<size_t>(collectives_.rank())].empty());
  StepHeader header = mine;
  for (const std::vector<std::byte>& of_rank : mail) header.has_mail |= !of_rank.empty();
  collectives_.Ring();
  BATON_RETURN_IF_ERROR(collectives_.AllGather(
      std::as_bytes(std::span(&header, 1)), std::as_writable_bytes(std::span(headers_)), timeout_));
  BATON_RETURN_IF_ERROR(CheckHeaders(header));
  rows_ = 0;
  most_rows_ = 0;
  any_mail_ = false;
  for (const StepHeader& of_rank : headers_) {
    rows_ += of_rank.rows;
    most_rows_ = std::max(most_rows_, of_rank.rows);
    any_mail_ = any_mail_ || of_rank.has_mail != 0;
  }
  return any_mail_ ? ExchangeMail(mail) : absl::OkStatus();
}

absl::Status StepExchange::Break(absl::Status why) {
  collectives_.Abort(why);
  return why;
}

absl::Status StepExchange::CheckHeaders(const StepHeader& mine) {
  for (size_t rank = 0; rank < headers_.size(); ++rank) {
    const StepHeader& theirs = headers_[rank];
    if (!collectives_.is_present(static_cast<int>(rank))) continue;
    if (theirs.step == mine.step && theirs.version == mine.version && theirs.rows >= 0) continue;
    return Break(absl::InternalError(
        absl::StrCat("rank ", rank, " begins step ", theirs.step, " with expert placement ",
                     theirs.version, " and ", theirs.rows, " rows, rank ", collectives_.rank(),
                     " step ", mine.step, " with ", mine.version)));
  }
  return absl::OkStatus();
}

absl::Status StepExchange::ExchangeMail(const std::vector<std::vector<std::byte>>& mail) {
  const size_t ranks = mail.size();
  std::vector<uint64_t> send_sizes;
  std::vector<size_t> send_bytes;
  sent_.clear();
  for (const std::vector<std::byte>& to_rank : mail) {
    send_sizes.push_back(to_rank.size());
    send_bytes.push_back(to_rank.size());
    sent_.insert(sent_.end(), to_rank.begin(), to_rank.end());
  }
  sizes_.resize(ranks * ranks);
  BATON_RETURN_IF_ERROR(collectives_.AllGather(
      std::as_bytes(std::span(send_sizes)), std::as_writable_bytes(std::span(sizes_)), timeout_));
  size_t received = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    const uint64_t bytes = sizes_[rank * ranks + static_cast<size_t>(collectives_.rank())];
    if (bytes > kMaxMailBytes) {
      return Break(
          absl::InternalError(absl::StrCat("rank ", rank, " announced ", bytes,
                                           " bytes of mail, expected at most ", kMaxMailBytes)));
    }
    received += receive_bytes_[rank] = static_cast<size_t>(bytes);
  }
  received_.resize(received);
  return collectives_.AllToAllV(sent_, send_bytes, received_, receive_bytes_, timeout_);
}

std::span<const std::byte> StepExchange::mail_from(int32_t rank) const {
  if (!any_mail_) return {};
  size_t begin = 0;
  for (int32_t r = 0; r < rank; ++r) begin += receive_bytes_[static_cast<size_t>(r)];
  return std::span(received_).subspan(begin, receive_bytes_[static_cast<size_t>(rank)]);
}

}  // namespace baton::decode_worker
