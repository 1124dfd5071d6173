// The prefix cache: KV blocks that are kept for the tokens in them, in up to three tiers (device, host
// memory, disk).
//
// It is a tree. An entry is one full block of tokens, a child of the entry of the block before; what stands
// first in a sequence is a child of a root, which is named by a digest of all else that K and V depend on
// (model, LoRA, tenant, ...). An entry exists for as long as some tier holds its block. The cache is one more
// holder of device blocks (BlockKeeper); blocks that only it holds are idle, and given up in the order in
// which their last users left.
//
// What the invariants rest on:
// * An entry's parent exists; on the device, too, if the entry is on the device.
// * Who is attached to an entry holds the cache's own device blocks for it and for all entries above it. So
//   everything below an idle block is idle. Tables are released from their end (release_table does).
// * Device blocks of an entry are never written. A sequence that ends in the middle of one (the tail)
//   gets a copy (make_writable) before it writes.
//
// The order of calls, by the engine thread alone:
//
//   finished, fetch                before a step is planned, or at any time without one
//   maintain, take_transfers       and Executor::begin of these, in order: an attach may take blocks
//                                  whose load was begun, and names it to the step
//   match                          while the step is planned
//   [ attach of all admitted, then every other allocation of the step; take_evictions ]   in this order: an
//                                  allocation before an attach may give up what the match had counted on
//   submit to the executor, or rolled_back(step)
//   stepped(step), publish         when the step was collected
//
// Between the brackets nothing else of this class is called but match().
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "cache/block_key.h"
#include "cache/block_pool.h"
#include "cache/block_table.h"
#include "cache/disk_tier.h"
#include "cache/prefix_cache_stats.h"
#include "cache/prefix_tree.h"
#include "cache/tier_slots.h"
#include "cache/transfer.h"

namespace taco {

struct PrefixCacheConfig {
  int block_size = 16;  // tokens
  // Bytes of one block in all layers: what a transfer moves.
  size_t block_bytes = 0;
  // The host tier: blocks [first_host_block, first_host_block + num_host_blocks) of the executor's; 0: there
  // is none.
  int64_t first_host_block = 0;
  int64_t num_host_blocks = 0;
  // The disk tier: slots [0, num_disk_blocks); 0: there is none. It needs a host tier.
  int64_t num_disk_blocks = 0;
  // Is told which slots are used; null: nobody is.
  std::shared_ptr<DiskTier> disk = {};
  // Blocks that fewer requests used are not worth a copy in a lower tier.
  int min_accesses = 1;
  // At most so many idle blocks stay on the device; -1: as many as there is room for. Held at each
  // maintain().
  int64_t max_idle_blocks = -1;
  // For the scheduler: a request may be admitted while its fetch is still loading (see attach).
  bool lazy = true;
  // For tests: the keys of the tree's hash (0: random), and which of its bits count.
  uint64_t seed = 0, hash_mask = ~uint64_t{0};
};

class PrefixCache final : public BlockKeeper {
 public:
  // `device` must outlive the cache. Throws kInvalidArgument.
  PrefixCache(const PrefixCacheConfig& config, BlockPool& device);
  ~PrefixCache() override;
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;
  const PrefixCacheConfig& config() const { return config_; }

  // -- Looking

  struct Match {
    int32_t device_blocks = 0;   // full blocks on the device, from the first on
    int32_t loading_blocks = 0;  // after these: on their way to the device (attach takes them if told to)
    int32_t lower_blocks = 0;    // after these: on the host or on disk only (see fetch)
    int32_t tail_tokens =
        0;  // after device_blocks: tokens of one more block on the device, which is to be shared
    // Of device_blocks, loading_blocks and the tail: those that are idle. An attach takes so many (without
    // those of loading_blocks, `loading_idle`, if it is not told to take them) out of
    // BlockPool::num_available(). The tail's is available again only when the step has been submitted; its
    // copy takes one more.
    int32_t idle_blocks = 0;
    int32_t loading_idle = 0;
    // Tokens that an attach spares the sequence: with loading ones, and without.
    int32_t tokens(int block_size, bool loading) const {
      return (device_blocks + (loading ? loading_blocks : 0)) * block_size +
             (loading && loading_blocks > 0 ? 0 : tail_tokens);
    }
  };
  // What is there of the first `max_tokens` of `tokens` (prompt_len - 1: one must be computed). Changes
  // nothing.
  Match match(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens) const;

  // -- Using

  // A sequence's place in the tree: the entries of the first `blocks` blocks in its table. Copied when a
  // sequence forks (its sibling must hold the same blocks).
  struct Attachment {
    Digest root;
    EntryId last = kNoEntry;
    uint32_t generation = 0;
    int32_t blocks = 0;
    uint64_t epoch = 0;
    bool detached = true;  // publishes nothing
    bool counted =
        false;  // its lookup is in the statistics; stays when it is attached again after a preemption
  };
  // Appends the blocks that match() found to the (empty) table and holds them: the full ones on the device,
  // then the loading ones if `loading` (their transfers are appended to wait_for: the step must wait for
  // them), else the tail. Returns the tokens that need not be computed, which is num_computed of the
  // sequence. Counts the lookup and an access of each entry, the first time. With max_tokens = 0 it takes
  // nothing (prompt logprobs are wanted: all must be computed), but the sequence will publish.
  int32_t attach(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens, bool loading,
                 BlockTable& table, Attachment& attachment, std::vector<uint64_t>& wait_for);
  // The first `full_blocks` blocks of the table are full of committed tokens, which are the first of
  // `tokens`: enters those that the sequence is not attached to yet. Where the cache has a block of the same
  // tokens on the device, the table gets that one in exchange. Cheap when there is nothing new.
  void publish(std::span<const int32_t> tokens, int32_t full_blocks, BlockTable& table,
               Attachment& attachment);
  // Forgets everything, and has the disk tier do so. Blocks in use stay with their sequences, which publish
  // nothing more.
  void reset();

  // -- Fetching: from lower tiers to the device

  enum class Fetch {
    kNone,     // nothing to fetch, or computing is faster
    kNoRoom,   // not now: ask again after another step
    kStarted,  // `id` says which
  };
  // Starts to bring the blocks behind the device's to the device, as many as are worth it. Takes only device
  // blocks that are free or idle with a copy in a lower tier, and leaves `spare` blocks available. Holds what
  // it takes, and what is above on the device, until it is done; then these are the newest of the idle
  // blocks. If others fetch the same blocks, it waits with them.
  Fetch fetch(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens, int64_t spare,
              double now, uint64_t& id);
  // Seconds until the fetch is done, as estimated; 0: it is done, or failed, or was cancelled: the request
  // computes what match() does not find then. Infinity while something must still be read from disk: only
  // then an attach with `loading` would not get all of it.
  double remaining(uint64_t id, double now) const;
  // The request has ended: what has not begun does not begin any more.
  void cancel_fetch(uint64_t id);

  // -- Moving

  // What this step's allocations gave up and is worth keeping: the step (number `step`) stores it before all
  // else. Transfers that still read blocks that were given up: the step waits for them.
  void take_evictions(uint64_t step, std::vector<BlockMove>& swap_out, std::vector<uint64_t>& wait_for);
  // The step was rolled back after take_evictions, and was not submitted.
  void rolled_back(uint64_t step);
  // The step, and all before it, have been collected: what they stored may be written to disk.
  void stepped(uint64_t step);
  // Once for each step, and when a transfer has finished: makes transfers ahead (stores of idle blocks that
  // would be given up next, writes, the next stages of fetches), and trims idle blocks.
  void maintain(double now);
  // Transfers to be begun now, in this order.
  void take_transfers(std::vector<Transfer>& transfers);
  void finished(const TransferResult& result, double now);
  // Whether a transfer is out: blocks may still be held by it when no request is left.
  bool busy() const;
  // A step that was made of little else computed so many tokens of prompts in so many seconds: what a fetch
  // competes with.
  void measured_prefill(int64_t tokens, double seconds);
  // The mean over such steps; 0: none was measured yet.
  double seconds_per_prompt_token() const { return prefill_seconds_; }
  // At start, before anything else: what the disk has. Untrusted: records that are not whole, come twice,
  // have no parent, or whose keys are not those of their tokens are ignored (their slots are overwritten in
  // time). Those that were unused for longest come first. Returns how many were taken.
  int64_t restore(std::span<const std::pair<int64_t, DiskRecord>> records);
  // No more writes and reads: the disk failed. Entries that were only there are dropped.
  void drop_disk();
  // No more writes: the disk is full. What it has stays.
  void stop_disk_writes();

  // -- Reporting

  PrefixCacheStats stats() const;
  // The most used prefixes, the deepest entry of each. O(entries).
  std::vector<HotPrefix> hottest(int count) const;
  // Throws kInternal if an invariant does not hold. O(entries): for tests, and TACO_CHECK_STEPS.
  void check() const;

  // BlockKeeper, for the pool.
  void let_go(BlockId block) override;
  void taken(BlockId block) override;
  void give_up_one() override;

 private:
  // A block under way. Its entry may be gone by the time that it arrives.
  struct Move {
    EntryRef entry;
    BlockId device = -1;
    int32_t host = -1, slot = -1;
    bool holds_device = false;  // the transfer is a user of the device block
  };
  struct Running {
    TransferKind kind;
    std::vector<Move> moves;
    double done_at = 0.0;  // as estimated
  };
  // What steps store themselves, until they are collected.
  struct StepStores {
    uint64_t step;
    std::vector<Move> moves;
  };
  struct FetchStep {
    EntryRef entry;
    BlockId reserved = -1;  // to load into
    BlockId held = -1;      // the entry's device block
    int32_t pinned = -1;    // its host block
  };
  struct FetchState {
    uint64_t id = 0;
    std::vector<FetchStep> path;  // from the first block on
    size_t next = 0;              // of path: all before is on the device
    bool waits_for_reads = false;
  };
  static constexpr uint64_t kAnyAge = std::numeric_limits<uint64_t>::max();

  // prefix_cache.cc: device tier
  void forget_all();
  EntryId entry_on(BlockId block) const;
  void touch(std::span<const EntryId> path);  // the first will count as the last used
  void set_device(EntryId id, BlockId block, Presence presence);
  void clear_device(EntryId id);
  // The entries of the prompt go to path_. Returns the tail's, or kNoEntry.
  EntryId match_path(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens,
                     Match& match) const;

  // prefix_cache_tiers.cc: who leaves which tier
  bool has_host() const { return host_.size() > 0; }
  bool has_disk() const { return has_disk_; }
  bool worth_a_copy(const Entry& entry) const {
    return entry.accesses >= static_cast<uint32_t>(config_.min_accesses);
  }
  bool may_leave_host(EntryId id) const;
  bool may_leave_disk(EntryId id) const;
  // To be called whenever an entry changed: lists and heaps that it belongs to.
  void refresh(EntryId id);
  int32_t take_host(uint64_t older_than);
  int32_t take_slot(uint64_t older_than);
  void clear_host(EntryId id);
  void clear_slot(EntryId id);
  // The idle block leaves the device; the step at hand stores it if `by_step` and it is worth it.
  void evict_device(EntryId id, bool by_step);
  bool drop_if_nowhere(EntryId id);  // true: it is gone
  void drop(EntryId id);             // with all below
  void drop_disk_below(EntryId id);  // the disk's copies of all below; what is nowhere then is dropped

  // prefix_cache_moves.cc: transfers
  void add_move(std::vector<Move>& moves, const Move& move);
  void begin(TransferKind kind, std::vector<Move> moves, double now);
  DiskRecord record_of(EntryId id);
  int64_t max_moves(TransferKind kind) const;  // in one transfer
  int64_t under_way(TransferKind kind) const;
  void push_idle(EntryId id);
  void erase_idle(EntryId id);
  void trim();
  void clean(double now);
  void want_on_disk(EntryId id);
  void note_use(std::span<const EntryId> path);
  void write_out(double now);
  bool store_later(EntryId id, std::vector<Move>& moves);
  void set_on_disk(EntryId id, int32_t slot, Presence presence);
  void stored(const Move& move, bool ok);
  void loaded(const Move& move, bool ok);
  void written(const Move& move, bool ok);
  void was_read(const Move& move, bool ok);
  void measured(TransferKind kind, int64_t blocks, double seconds);

  // prefix_cache_fetch.cc
  double speed_of(TransferKind kind) const;  // bytes a second, as far as is known
  double seconds_for(TransferKind kind, int64_t blocks) const;
  size_t worth_fetching(std::span<const EntryId> path, size_t first, double now) const;
  BlockId take_clean_device_block();
  void read_path(FetchState& fetch, double now);
  bool advance_fetch(FetchState& fetch, double now);  // true: it has ended
  void cut_fetch(FetchState& fetch, size_t length);
  void end_fetch(FetchState& fetch);
  void advance_fetches(double now);

  PrefixCacheConfig config_;
  BlockPool& pool_;
  PrefixTree tree_;
  bool has_disk_;
  bool writes_disk_ = true;
  uint64_t epoch_ = 1, clock_ = 0, next_id_ = 1;

  std::vector<EntryId> entry_on_;  // of each device block; kNoEntry
  std::vector<uint64_t>
      in_transfer_;  // of each device block: the unfinished transfer that reads or writes it, or 0
  IdleList idle_;
  DirtyList dirty_;
  TierSlots host_, disk_;
  LruHeap<&Entry::in_host_heap> host_lru_;
  LruHeap<&Entry::in_disk_heap> disk_lru_;

  std::vector<Move> evicted_;  // by the allocations since take_evictions
  std::vector<StepStores> unstepped_;
  std::vector<uint64_t> overtaken_;  // unfinished stores of blocks that were given up
  std::unordered_map<uint64_t, Running> running_;
  std::vector<Transfer> outbox_;
  std::vector<EntryRef> to_disk_;  // a queue, from to_disk_done_ on
  size_t to_disk_done_ = 0;
  std::vector<FetchState> fetches_;
  std::vector<Digest> keys_;         // of entries on disk, by id
  std::vector<int64_t> used_slots_;  // that the disk tier was not told of yet
  uint64_t disk_resets_ = 0;

  PrefixCacheStats stats_;
  int64_t num_loading_ = 0, num_writing_ = 0;        // to the device, to the disk: not there yet
  std::array<double, kNumTransferKinds> speed_{};    // bytes a second; 0: not known
  std::array<double, kNumTransferKinds> free_at_{};  // when what is under way will be done
  double prefill_seconds_ = 0.0;                     // of a token; 0: not known
  mutable std::vector<EntryId> path_;
};

}  // namespace taco
