// The plan of a step's attention, made on the host once for all layers of one kind: which kernel computes
// which rows, how the keys are split, and which thread block reads what.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention/prefill_sm90.h"

namespace taco::cuda {

// Rows that one thread block computes over a range of keys, for each KV head alike. The query rows of one
// sequence and KV head are packed as row = j * group + g (j: new token, g: query head of the KV head's
// group).
struct WorkItem {
  int32_t seq, row0, q_len, kv_len;  // row0: of the sequence's first new token; q_len, kv_len: the sequence's
  int32_t first_row, num_rows;       // packed
  int32_t kv_begin, kv_end;          // positions in the cache; an empty range gives rows of zeros
  int32_t split, num_splits;         // 1: no merge
  int32_t part_row;                  // first row of the item's group in the partial results
  int32_t semaphore;                 // of the group, times num_kv_heads
};
static_assert(sizeof(WorkItem) == 48);

inline constexpr int kMaxChunks = 1086;    // that a header has room for
inline constexpr int kMaxChunkItems = 24;  // a thread block keeps the items of its chunk in shared memory

// A chunk is what a thread block does in one go: a run of items, for one KV head.
struct WorkHeader {
  int32_t num_chunks;
  int32_t chunked;  // 0: each item is a chunk, and chunk_start is not read
  int32_t chunk_start[kMaxChunks];
};
static_assert(sizeof(WorkHeader) % 16 == 0);

struct WorkList {
  WorkHeader header{};
  std::vector<WorkItem> items;
  void clear() {
    header.num_chunks = 0;
    header.chunked = 0;
    items.clear();
  }
};

// What the plan depends on beside the step's shape.
struct PlanKey {
  int num_heads, num_kv_heads, head_dim, window;
  bool plain;  // the float32 kernel computes everything
  bool sm90;   // long runs of rows go to the kernel of prefill_sm90.h
  bool operator==(const PlanKey&) const = default;
};

struct PlanLimits {
  int decode_rows;   // packed rows of the decode kernel's tile: 8 or 16
  int decode_slots;  // thread blocks of it that run at once
  int few_rows;      // ... of its tile for several new rows a sequence, 32; 0: there is none
  int few_slots;
  int tile_rows;  // packed rows of the tile kernel at most
  int num_sms;
  bool batch_invariant;
};

// Tokens of a split in the batch-invariant mode: boundaries stand at its multiples whatever the batch.
inline constexpr int kFixedSplit = 512;
// New tokens up to which a sequence counts as decoding in the batch-invariant mode; and up to which all of a
// step go to the decode kernel, if each sequence has that few.
inline constexpr int kFewRows = 64;
// Packed rows up to which a sequence goes to it beside sequences of many rows.
inline constexpr int kFewPacked = 128;
// Splits start at multiples of this (but for the first one of a window).
inline constexpr int kSplitStep = 16;

// Packed rows of the tile kernel where no sequence has more.
inline constexpr int kSmallTile = 64;

struct Plan {
  WorkList decode, tile, plain;
  std::vector<PrefillSm90Item> sm90;
  int decode_rows = 0;     // of the decode kernel's tile: the limits' decode_rows or few_rows
  int tile_rows = 0;       // of the tile kernel's blocks
  int64_t part_rows = 0;   // rows of partial results
  int64_t semaphores = 0;  // groups of splits
};

// Rows of partial results that no plan exceeds but one in the batch-invariant mode, or of so many sequences
// that their items alone fill the chunks.
int64_t usual_part_rows(const PlanKey& key, const PlanLimits& limits);

void make_plan(const StepShape& shape, const PlanKey& key, const PlanLimits& limits, Plan& plan);

}  // namespace taco::cuda
