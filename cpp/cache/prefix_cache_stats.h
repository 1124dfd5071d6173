// What the prefix cache tells of itself. Plain data.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace taco {

enum class CacheTier : uint8_t { kDevice, kHost, kDisk };
constexpr int kNumCacheTiers = 3;

struct PrefixCacheStats {
  // Now.
  int64_t entries = 0;  // blocks of tokens that some tier holds
  // That hold an entry, by tier; one entry may have several. On disk: those that a restart would find.
  std::array<int64_t, kNumCacheTiers> blocks{};
  std::array<int64_t, kNumCacheTiers>
      capacity{};                 // blocks that the tier has (the device's serve sequences, too)
  int64_t idle_blocks = 0;        // on the device, held by nobody else
  int64_t clean_idle_blocks = 0;  // of these, with a copy below, or not worth one
  int64_t loading_blocks = 0;     // on the device, not there yet
  int64_t fetches = 0;            // under way
  int64_t transfers = 0;          // under way

  // Since the start. Lookups are those of attach(); a preempted request counts once. Hits are counted by the
  // tier from which the block came: one that was fetched is a hit of its lower tier the first time it is
  // used.
  uint64_t lookups = 0;
  uint64_t tokens_queried = 0;
  std::array<uint64_t, kNumCacheTiers> tokens_hit{};
  uint64_t blocks_queried = 0;  // full blocks
  std::array<uint64_t, kNumCacheTiers> blocks_hit{};
  uint64_t published = 0;                                  // blocks
  uint64_t exchanged = 0;                                  // blocks of which the cache had another already
  std::array<uint64_t, kNumCacheTiers> evicted{};          // blocks that left the tier for want of room
  uint64_t dropped = 0;                                    // entries that no tier holds any more
  uint64_t stored = 0, loaded = 0, written = 0, read = 0;  // blocks, by transfers
  uint64_t stored_by_steps = 0;                            // blocks, in steps that needed their room at once
  uint64_t failed = 0;                                     // blocks, in any transfer
  uint64_t fetches_started = 0, fetches_declined = 0;      // declined: computing was faster
  uint64_t resets = 0;

  // Measured, in bytes (tokens) a second; 0: not yet.
  double store_speed = 0, load_speed = 0, write_speed = 0, read_speed = 0, prefill_speed = 0;
};

struct HotPrefix {
  std::string digest;  // of all tokens up to its end, in hex: block_key
  int64_t tokens = 0;
  int64_t accesses = 0;
  CacheTier tier = CacheTier::kDevice;  // the highest that holds its last block
};

}  // namespace taco
