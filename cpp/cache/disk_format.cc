#include "cache/disk_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checksum.h"
#include "base/error.h"
#include "cache/block_key.h"

namespace taco::disk_format {
namespace {

static_assert(std::endian::native == std::endian::little, "the index is little-endian");

constexpr std::array<uint8_t, 8> kMagic = {'T', 'A', 'C', 'O', 'K', 'V', 0, 0};
constexpr size_t header_bytes(uint32_t version) { return version == 1 ? 72 : 76; }
constexpr uint64_t kMaxSequence = uint64_t{1} << 62;

template <typename T>
void put(uint8_t* at, const T& value) {
  std::memcpy(at, &value, sizeof value);
}
template <typename T>
T get(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

std::array<uint8_t, kPage> encode(const Header& header) {
  std::array<uint8_t, kPage> page{};
  uint8_t* p = page.data();
  std::copy(kMagic.begin(), kMagic.end(), p);
  put(p + 8, kVersion);
  put(p + 12, static_cast<uint32_t>(header.block_size));
  put(p + 16, header.identity.bytes);
  put(p + 48, static_cast<uint64_t>(header.block_bytes));
  put(p + 56, static_cast<uint64_t>(header.num_slots));
  put(p + 64, static_cast<uint64_t>(header.segment_slots));
  put(p + 72, header.epoch);
  constexpr size_t kBytes = header_bytes(kVersion);
  put(p + kBytes, crc32c({p, kBytes}));
  return page;
}

std::optional<Header> decode_header(std::span<const uint8_t> page, uint32_t oldest) {
  if (page.size() < kPage) return std::nullopt;
  const uint8_t* p = page.data();
  const auto version = get<uint32_t>(p + 8);
  if (!std::equal(kMagic.begin(), kMagic.end(), p) || version < oldest || version > kVersion)
    return std::nullopt;
  const size_t bytes = header_bytes(version);
  if (get<uint32_t>(p + bytes) != crc32c({p, bytes})) return std::nullopt;
  auto block_size = get<uint32_t>(p + 12);
  auto block_bytes = get<uint64_t>(p + 48), num_slots = get<uint64_t>(p + 56),
       segment_slots = get<uint64_t>(p + 64);
  if (block_size < 1 || block_size > kMaxBlockSize || block_bytes < 1 || block_bytes > kMaxBlockBytes ||
      num_slots < 1 || num_slots > kMaxSlots || segment_slots < 1 || segment_slots > kMaxSlots) {
    return std::nullopt;
  }
  Header header;
  header.identity.bytes = get<std::array<uint8_t, 32>>(p + 16);
  header.block_size = static_cast<int>(block_size);
  header.block_bytes = block_bytes;
  header.num_slots = static_cast<int64_t>(num_slots);
  header.segment_slots = static_cast<int64_t>(segment_slots);
  if (version > 1) header.epoch = get<uint32_t>(p + 72);
  return header;
}

uint32_t record_seed(const Digest& identity, uint32_t epoch) {
  std::array<uint8_t, sizeof epoch> bytes;
  put(bytes.data(), epoch);
  return crc32c(bytes, crc32c(identity.bytes));
}

void encode(const SlotRecord& slot_record, int64_t slot, uint32_t seed, std::span<uint8_t> bytes) {
  const DiskRecord& record = slot_record.record;
  TACO_CHECK(bytes.size() == record_bytes(static_cast<int>(record.tokens.size())), "size of a record");
  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  uint8_t* p = bytes.data();
  put(p + 4, static_cast<uint32_t>(record.tokens.size()));
  put(p + 8, slot);
  put(p + 16, slot_record.sequence);
  put(p + 24, slot_record.payload_crc);
  put(p + 32, record.root.bytes);
  put(p + 64, record.parent.bytes);
  put(p + 96, record.key.bytes);
  std::memcpy(p + 128, record.tokens.data(), record.tokens.size() * sizeof(int32_t));
  put(p, crc32c(bytes.subspan(4), seed));
}

std::optional<SlotRecord> decode_record(std::span<const uint8_t> bytes, int64_t slot, int block_size,
                                        uint32_t seed) {
  if (bytes.size() != record_bytes(block_size)) return std::nullopt;
  const uint8_t* p = bytes.data();
  if (get<uint32_t>(p + 4) != static_cast<uint32_t>(block_size) || get<int64_t>(p + 8) != slot)
    return std::nullopt;
  if (get<uint32_t>(p) != crc32c(bytes.subspan(4), seed)) return std::nullopt;
  SlotRecord out;
  out.sequence = get<uint64_t>(p + 16);
  if (out.sequence > kMaxSequence) return std::nullopt;
  out.payload_crc = get<uint32_t>(p + 24);
  out.record.root.bytes = get<std::array<uint8_t, 32>>(p + 32);
  out.record.parent.bytes = get<std::array<uint8_t, 32>>(p + 64);
  out.record.key.bytes = get<std::array<uint8_t, 32>>(p + 96);
  out.record.tokens.resize(static_cast<size_t>(block_size));
  std::memcpy(out.record.tokens.data(), p + 128, out.record.tokens.size() * sizeof(int32_t));
  if (std::any_of(out.record.tokens.begin(), out.record.tokens.end(), [](int32_t t) { return t < 0; })) {
    return std::nullopt;
  }
  if (block_key(out.record.parent, out.record.tokens) != out.record.key) return std::nullopt;
  return out;
}

}  // namespace taco::disk_format
