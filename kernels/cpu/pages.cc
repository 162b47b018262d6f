// Hand-off messages: copies between pages and one contiguous buffer.

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/page_entry.h"
#include "xxhash.h"

namespace baton::kernels::cpu {

absl::Status PagesPack(Device&, const PagesPackArgs& args) {
  uint8_t* to = args.message.as<uint8_t>();
  const int64_t entry = KvEntryBytes(args.pages.format, args.pages.kv_lora, args.pages.rope);
  for (const PageRange& range : args.ranges) {
    if (range.count == 0) continue;
    std::memcpy(to, EntryAt(args.pages, range.page, range.first),
                static_cast<size_t>(range.count * entry));
    to += range.count * entry;
  }
  *args.checksum = XXH3_64bits_withSeed(args.message.data, args.message.bytes(), args.seed);
  return absl::OkStatus();
}

absl::Status PagesUnpack(Device&, const PagesUnpackArgs& args) {
  const uint64_t checksum =
      XXH3_64bits_withSeed(args.message.data, args.message.bytes(), args.seed);
  if (checksum != args.checksum) {
    return absl::DataLossError(absl::StrCat("PagesUnpack: the message of ", args.message.bytes(),
                                            " bytes has checksum ", absl::Hex(checksum),
                                            ", expected ", absl::Hex(args.checksum)));
  }
  const uint8_t* from = args.message.as<const uint8_t>();
  const int64_t entry = KvEntryBytes(args.pages.format, args.pages.kv_lora, args.pages.rope);
  for (const PageRange& range : args.ranges) {
    if (range.count == 0) continue;
    std::memcpy(EntryAt(args.pages, range.page, range.first), from,
                static_cast<size_t>(range.count * entry));
    from += range.count * entry;
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
