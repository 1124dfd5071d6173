// Moves of whole KV blocks between tiers (device, host memory, disk), beside the steps. Plain data: made by
// the prefix cache, carried out by an executor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/digest.h"
#include "cache/block_id.h"

namespace taco {

enum class TransferKind : uint8_t {
  kStore,  // device -> host
  kLoad,   // host -> device
  kWrite,  // host -> disk
  kRead,   // disk -> host
};
constexpr int kNumTransferKinds = 4;

struct DiskMove {
  BlockId host;
  int64_t slot;
};

// What a slot on disk holds: a block's tokens, and its key (cache/block_key.h) made from the one before,
// which is the root digest for a first block.
struct DiskRecord {
  Digest root, parent, key;
  std::vector<int32_t> tokens;
  uint64_t resets = 0;  // of the disk tier (disk_tier.h) before it was made; not on disk
};

// A block that is to be read from disk.
struct BlockRead {
  int64_t slot = 0;
  Digest key;                  // of the block that is expected there
  std::span<uint8_t> payload;  // of a block's bytes
  bool done = false;           // else payload holds anything
};

// Stores and loads begin after all steps that were submitted before them. Those of one kind are carried out
// in the order in which they were begun, of different kinds in any order. Nothing that a transfer writes is
// in another unfinished one, and nothing that it reads is written meanwhile, but for device blocks that a
// step overtakes (StepPlan::wait_for).
struct Transfer {
  uint64_t id = 0;  // from 1; no two in an executor's life are equal
  TransferKind kind = TransferKind::kStore;
  std::vector<BlockMove> moves = {};     // kStore, kLoad
  std::vector<DiskMove> disk = {};       // kWrite, kRead
  std::vector<DiskRecord> records = {};  // of `disk`: to write, or the keys that are expected
  uint64_t after = 0;  // begins when that transfer has finished, whatever became of it; 0: at once
};

struct TransferResult {
  uint64_t id = 0;
  // That the copies took: from the first to the last; of the disk's, while no earlier transfer of the kind
  // was under way.
  double seconds = 0;
  std::vector<uint8_t> failed;  // per move: 1 if it was not made; empty: all were
};

}  // namespace taco
