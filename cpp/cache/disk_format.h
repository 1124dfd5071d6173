// The bytes of the disk tier's index file. All of it may have been torn by a crash, damaged, or made by
// somebody else: decoding checks everything and allocates what the caller expects, never what the file says.
//
// An index is a page with the header and then a record of record_bytes(block_size) for each slot:
//
//   offset  bytes  header                         offset  bytes  record
//        0      8  "TACOKV" and zeros                  0      4  CRC-32C of the rest, begun with the header's
//        8      4  version                             4      4  number of tokens; 0: the slot is empty
//       12      4  tokens in a block                   8      8  slot
//       16     32  identity                           16      8  sequence: a later write has a larger one
//       48      8  bytes of a block                   24      4  CRC-32C of the block
//       56      8  slots                              28      4  zero
//       64      8  slots in a data file               32     32  root
//       72      4  epoch                              64     32  parent
//       76      4  CRC-32C of all before              96     32  key
//                                                    128   4 n   tokens
// All little-endian. The epoch counts the resets of the cache: records of another one do not count. A header
// of version 1 has none: its checksum stands at 72.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "cache/transfer.h"

namespace taco::disk_format {

inline constexpr uint32_t kVersion = 2;
inline constexpr size_t kPage = 4096;
inline constexpr size_t kEmptyBytes = 32;  // as many zeros at its beginning make a record empty
inline constexpr int64_t kMaxSlots = int64_t{1} << 22;
inline constexpr int kMaxBlockSize = 4096;
inline constexpr size_t kMaxBlockBytes = size_t{1} << 30;

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr size_t record_bytes(int block_size) {
  return round_up(128 + 4 * static_cast<size_t>(block_size), 64);
}
constexpr size_t stride(size_t block_bytes) { return round_up(block_bytes, kPage); }

struct Header {
  Digest identity;
  int block_size = 0;
  size_t block_bytes = 0;
  int64_t num_slots = 0, segment_slots = 0;
  uint32_t epoch = 0;
  friend bool operator==(const Header&, const Header&) = default;

  int64_t record_offset(int64_t slot) const {
    return static_cast<int64_t>(kPage) + slot * static_cast<int64_t>(record_bytes(block_size));
  }
  // Of all files together when every slot was written once.
  int64_t total_bytes() const {
    return record_offset(num_slots) + num_slots * static_cast<int64_t>(stride(block_bytes));
  }
};

std::array<uint8_t, kPage> encode(const Header& header);
// Nothing unless it is whole, within the limits above, and of a version from `oldest` to ours.
std::optional<Header> decode_header(std::span<const uint8_t> page, uint32_t oldest = kVersion);

struct SlotRecord {
  DiskRecord record;
  uint64_t sequence = 0;
  uint32_t payload_crc = 0;
};

// `seed`: CRC-32C over the header's identity and epoch, so that no record counts in another index, nor after
// a reset: of two epochs of an identity the seeds differ, and with them the checksums of a record.
uint32_t record_seed(const Digest& identity, uint32_t epoch);
void encode(const SlotRecord& record, int64_t slot, uint32_t seed, std::span<uint8_t> bytes);
// Nothing if it is empty, damaged, of another slot, or if its key is not block_key(parent, tokens): a chain
// of such records cannot be a cycle.
std::optional<SlotRecord> decode_record(std::span<const uint8_t> bytes, int64_t slot, int block_size,
                                        uint32_t seed);

}  // namespace taco::disk_format
