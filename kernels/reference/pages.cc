// Hand-off messages, byte by byte. The checksum is the library's on every backend: its definition
// (XXH3) is long, and messages travel between backends.

#include "absl/strings/str_cat.h"
#include "kernels/page_entry.h"
#include "kernels/reference/reference_ops.h"
#include "xxhash.h"

namespace baton::kernels::reference {
namespace {

// Calls body(byte of the pages, index of the byte in the message) for each byte of the message.
template <typename Body>
void ForEachByte(const KvPages& pages, absl::Span<const PageRange> ranges, const Body& body) {
  const int64_t entry_bytes = KvEntryBytes(pages.format, pages.kv_lora, pages.rope);
  int64_t at = 0;
  for (const PageRange& range : ranges) {
    for (int64_t token = range.first; token < int64_t{range.first} + range.count; ++token) {
      uint8_t* page = pages.data.row<uint8_t>(range.page);
      for (int64_t i = 0; i < entry_bytes; ++i) body(page[token * entry_bytes + i], at++);
    }
  }
}

}  // namespace

absl::Status PagesPack(Device&, const PagesPackArgs& args) {
  uint8_t* message = args.message.as<uint8_t>();
  ForEachByte(args.pages, args.ranges, [&](uint8_t byte, int64_t at) { message[at] = byte; });
  *args.checksum = XXH3_64bits_withSeed(message, args.message.bytes(), args.seed);
  return absl::OkStatus();
}

absl::Status PagesUnpack(Device&, const PagesUnpackArgs& args) {
  const uint8_t* message = args.message.as<const uint8_t>();
  const uint64_t checksum = XXH3_64bits_withSeed(message, args.message.bytes(), args.seed);
  if (checksum != args.checksum) {
    return absl::DataLossError(absl::StrCat("PagesUnpack: checksum ", absl::Hex(checksum),
                                            ", expected ", absl::Hex(args.checksum)));
  }
  ForEachByte(args.pages, args.ranges, [&](uint8_t& byte, int64_t at) { byte = message[at]; });
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
