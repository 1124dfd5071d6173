// A bounded hash table from contexts to what followed them: key -> cell of up to cell_max_size continuations.
//
// Buckets of eight keys lie in segments of 64 KiB. A segment that fills is split in two (extendible hashing),
// so that the table grows by one segment at a time and never rehashes as a whole. When the memory budget or
// max_keys forbids growth, a key gives way to the new one within its bucket: one that was not used since the
// last look (CLOCK), the rarest of those. A cell of one continuation lives in its bucket; a bigger one in a
// slab of 2, 4, 8, ... entries. A key is known by 49 bits of its hash: a false match costs a bad draft.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "spec/lookahead/memory_budget.h"

namespace taco {

// Frequencies are counted in sixteenths, up to 4095.
constexpr int kFreqOne = 16;
constexpr int kMaxCell = 64;

struct CellEntry {
  uint32_t value;
  uint16_t freq;
  uint16_t tag;
};

struct CellTableOptions {
  int cell_max_size = 16;
  float threshold = 2.0f, decay = 0.5f;
  bool same_by_tag = false;  // entries with equal tags are the same continuation, whatever their values
  int64_t max_keys = 0;      // 0: as many as fit
};

class CellTable {
 public:
  // Takes its first segment at once; throws kInvalidArgument if the budget has no room for it.
  CellTable(const CellTableOptions& options, MemoryBudget* budget);
  ~CellTable();
  CellTable(const CellTable&) = delete;

  void prefetch(uint64_t key) const { __builtin_prefetch(&bucket_of(key)); }
  // All that add reads.
  void prefetch_to_add(uint64_t key) const {
    const Place& place = directory_[index_of(print_of(key))];
    const auto* bucket = reinterpret_cast<const std::byte*>(place.buckets + row_of(key));
    __builtin_prefetch(bucket);
    __builtin_prefetch(bucket + 64);
    __builtin_prefetch(place.segment);
  }
  // What lies behind the bucket, which should have been fetched.
  void prefetch_cell(uint64_t key) const {
    const Bucket& bucket = bucket_of(key);
    const int way = find_way(bucket, key);
    if (way >= 0 && bucket.meta[way].slab_class > 0) __builtin_prefetch(slab(bucket.payload[way].slab), 1);
  }
  // The key's continuations, the newest first; empty if it has none. Valid until the next change.
  std::span<const CellEntry> find(uint64_t key) const;
  // Counts a continuation of the key once more, with the value given.
  void add(uint64_t key, uint32_t value, uint16_t tag = 0);
  // Gives a segment's memory back by joining two segments; false if there is only one.
  bool shrink();
  void clear();

  int64_t num_keys() const { return num_keys_; }
  int64_t evictions() const { return evictions_; }
  // Segments split and joined so far: each has cost as much time as adding some 200 keys.
  int64_t moves() const { return moves_; }
  size_t bytes() const { return bytes_; }

  // For saving, a segment at a time while the table lives on. fn(stem, entries) for each key of the segment
  // that holds `cursor`, and the cursor of the next one; 0 after the last.
  template <typename Fn>
  uint64_t visit_segment(uint64_t cursor, Fn&& fn) const;
  // Restores a key that visit_segment told: a stem has 49 bits. False if there is no room.
  bool restore(uint64_t stem, std::span<const CellEntry> entries);

 private:
  static constexpr int kWays = 8;
  static constexpr int kBuckets = 512;
  static constexpr size_t kChunk = size_t{64} << 10;
  static constexpr int kSlabClasses = 7;  // 1 (in the bucket), 2, 4, ... 64 entries
  static constexpr int kSlabUnit = 16;    // bytes

  struct Meta {
    uint8_t more;  // further bits of the hash
    uint8_t size;  // 0: free
    uint8_t slab_class;
    uint8_t used;  // since the last look of the clock
  };
  union Payload {
    CellEntry entry;
    uint32_t slab;
  };
  struct alignas(64) Bucket {
    uint32_t print[kWays];
    Meta meta[kWays];
    Payload payload[kWays];
  };
  static_assert(sizeof(Bucket) * kBuckets == kChunk);
  struct Segment {
    Bucket* buckets;
    int used = 0;
    int depth = 0;
    uint32_t place = 0;  // in segments_
  };
  struct Place {
    Bucket* buckets;
    Segment* segment;
  };

  static uint32_t print_of(uint64_t key) { return static_cast<uint32_t>(key); }
  static int row_of(uint64_t key) { return static_cast<int>(key >> 32) & (kBuckets - 1); }
  static uint8_t more_of(uint64_t key) { return static_cast<uint8_t>(key >> 41); }
  size_t index_of(uint32_t print) const { return depth_ == 0 ? 0 : print >> (32 - depth_); }
  const Bucket& bucket_of(uint64_t key) const {
    return directory_[index_of(print_of(key))].buckets[row_of(key)];
  }
  static int find_way(const Bucket& bucket, uint64_t key);
  const CellEntry* entries(const Bucket& bucket, int way) const {
    return bucket.meta[way].slab_class == 0 ? &bucket.payload[way].entry : slab(bucket.payload[way].slab);
  }
  CellEntry* entries(Bucket& bucket, int way) {
    return const_cast<CellEntry*>(static_cast<const CellTable*>(this)->entries(bucket, way));
  }
  CellEntry* slab(uint32_t ref) const {
    return reinterpret_cast<CellEntry*>(slab_chunks_[ref >> 12] + (ref & 4095) * kSlabUnit);
  }
  void decay(CellEntry* cell, int size) const;

  int take_way(uint64_t key);  // a free way in the key's bucket
  int victim(Bucket& bucket);
  void drop(Segment& segment, Bucket& bucket, int way);
  bool sweep(int slab_class);
  bool split(size_t index);
  bool grow_cell(Bucket& bucket, int way);
  bool take_slab(int slab_class, uint32_t* ref);
  void free_slab(int slab_class, uint32_t ref);
  void* take_chunk();
  void free_chunk(void* chunk);
  bool charge(size_t bytes);

  CellTableOptions options_;
  MemoryBudget* budget_;
  uint16_t threshold_;
  std::vector<Place> directory_;
  int depth_ = 0;
  std::vector<std::unique_ptr<Segment>> segments_;
  std::vector<std::byte*> slab_chunks_;
  uint32_t free_slabs_[kSlabClasses];  // a list through the slabs themselves
  size_t hand_ = 0;                    // of the clock: a row of the directory's segments
  uint32_t next_join_ = 0;             // print at which shrink looks first
  int64_t num_keys_ = 0, evictions_ = 0, moves_ = 0;
  size_t bytes_ = 0;
};

template <typename Fn>
uint64_t CellTable::visit_segment(uint64_t cursor, Fn&& fn) const {
  const size_t index = index_of(static_cast<uint32_t>(cursor));
  const Segment& segment = *directory_[index].segment;
  for (int row = 0; row < kBuckets; ++row) {
    const Bucket& bucket = segment.buckets[row];
    for (int way = 0; way < kWays; ++way) {
      const Meta& meta = bucket.meta[way];
      if (meta.size == 0) continue;
      const uint64_t stem = static_cast<uint64_t>(meta.more) << 41 | static_cast<uint64_t>(row) << 32 |
                            static_cast<uint64_t>(bucket.print[way]);
      fn(stem, std::span<const CellEntry>(entries(bucket, way), meta.size));
    }
  }
  // The segment holds all prints with the same first `depth` bits.
  const uint64_t span = uint64_t{1} << (32 - segment.depth);
  const uint64_t next = (cursor / span + 1) * span;
  return next >> 32 ? 0 : next;
}

}  // namespace taco
