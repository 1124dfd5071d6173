// The device tier: looking up, attaching, publishing, and who is idle.
#include "cache/prefix_cache.h"

#include <algorithm>

namespace taco {

namespace {

PrefixTree::Options tree_options(const PrefixCacheConfig& config, const BlockPool& device) {
  PrefixTree::Options options;
  options.block_size = config.block_size;
  options.expected_entries = device.size() + config.num_host_blocks + config.num_disk_blocks;
  options.seed = config.seed;
  options.hash_mask = config.hash_mask;
  return options;
}

}  // namespace

PrefixCache::PrefixCache(const PrefixCacheConfig& config, BlockPool& device)
    : config_(config),
      pool_(device),
      tree_(tree_options(config, device)),
      has_disk_(config.num_disk_blocks > 0),
      host_(config.num_host_blocks),
      disk_(config.num_disk_blocks) {
  constexpr int64_t kMost = std::numeric_limits<BlockId>::max();
  TACO_REQUIRE(config.num_host_blocks >= 0 && config.first_host_block >= 0 &&
                   config.first_host_block + config.num_host_blocks <= kMost,
               "the host tier of the prefix cache must have from 0 to 2^31 - 1 blocks, not ",
               config.num_host_blocks);
  TACO_REQUIRE(config.num_disk_blocks >= 0 && config.num_disk_blocks <= kMost,
               "the disk tier of the prefix cache must have from 0 to 2^31 - 1 blocks, not ",
               config.num_disk_blocks);
  TACO_REQUIRE(config.num_disk_blocks == 0 || config.num_host_blocks > 0,
               "the disk tier of the prefix cache needs a host tier: give it host blocks");
  TACO_REQUIRE(config.min_accesses >= 1, "min_accesses must be at least 1, not ", config.min_accesses);
  TACO_REQUIRE(config.max_idle_blocks >= -1, "max_idle_blocks must be at least 0, or -1 for no limit, not ",
               config.max_idle_blocks);
  entry_on_.assign(static_cast<size_t>(device.size()), kNoEntry);
  in_transfer_.assign(static_cast<size_t>(device.size()), 0);
  device.set_keeper(this);
}

PrefixCache::~PrefixCache() {
  // Blocks in use outlive the cache; what is idle would be lost to the pool.
  try {
    forget_all();
    for (auto& [id, running] : running_) {
      for (const Move& move : running.moves) {
        if (move.holds_device) pool_.release(move.device);
      }
    }
  } catch (const Error&) {
    // A broken invariant, which was reported where it broke.
  }
  pool_.set_keeper(nullptr);
}

EntryId PrefixCache::match_path(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens,
                                Match& match) const {
  const int bs = config_.block_size;
  const int64_t usable = std::clamp<int64_t>(max_tokens, 0, static_cast<int64_t>(tokens.size()));
  tree_.walk(root, tokens, usable / bs, path_);
  const auto size = static_cast<int64_t>(path_.size());
  int64_t at = 0;
  for (; at < size; ++at) {
    const Look& look = tree_.look(path_[static_cast<size_t>(at)]);
    if (look.on_device != Presence::kReady) break;
    match.idle_blocks += look.idle;
  }
  match.device_blocks = static_cast<int32_t>(at);
  for (; at < size; ++at) {
    const Look& look = tree_.look(path_[static_cast<size_t>(at)]);
    if (look.on_device == Presence::kNone) break;
    match.loading_idle += look.idle;
  }
  match.loading_blocks = static_cast<int32_t>(at) - match.device_blocks;
  match.lower_blocks = static_cast<int32_t>(size - at);

  const EntryId parent =
      match.device_blocks > 0 ? path_[static_cast<size_t>(match.device_blocks) - 1] : tree_.find_root(root);
  const int64_t begin = int64_t{match.device_blocks} * bs;
  if (parent == kNoEntry || begin >= usable) return kNoEntry;
  // All of the prompt's tokens are compared, not just the usable ones: the block that has most of the prompt.
  std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(begin));
  int32_t common = 0;
  EntryId tail = kNoEntry;
  if (static_cast<int64_t>(rest.size()) >= bs && usable - begin < bs) {
    EntryId child = tree_.find_child(parent, rest.first(static_cast<size_t>(bs)));
    if (child != kNoEntry && tree_[child].on_device == Presence::kReady) {
      tail = child;
      common = bs;
    }
  }
  if (tail == kNoEntry)
    tail = tree_.longest_tail(parent, rest.first(std::min<size_t>(rest.size(), bs)), common);
  match.tail_tokens = static_cast<int32_t>(std::min<int64_t>(common, usable - begin));
  if (tail != kNoEntry) match.idle_blocks += tree_[tail].idle;
  return tail;
}

PrefixCache::Match PrefixCache::match(const Digest& root, std::span<const int32_t> tokens,
                                      int32_t max_tokens) const {
  Match match;
  match_path(root, tokens, max_tokens, match);
  match.idle_blocks += match.loading_idle;
  return match;
}

void PrefixCache::touch(std::span<const EntryId> path) {
  clock_ += path.size();
  for (size_t i = 0; i < path.size(); ++i) tree_[path[i]].used = clock_ - i;
}

int32_t PrefixCache::attach(const Digest& root, std::span<const int32_t> tokens, int32_t max_tokens,
                            bool loading, BlockTable& table, Attachment& attachment,
                            std::vector<uint64_t>& wait_for) {
  TACO_CHECK(table.empty(), "a sequence is attached before it has blocks");
  const int bs = config_.block_size;
  Match match;
  EntryId tail = match_path(root, tokens, max_tokens, match);
  const int32_t taken = match.device_blocks + (loading ? match.loading_blocks : 0);
  if (taken > match.device_blocks) tail = kNoEntry;

  const bool counted = attachment.counted;
  attachment = {root, kNoEntry, 0, taken, epoch_, false, max_tokens > 0 || counted};
  const bool count = attachment.counted && !counted;
  if (count) {
    ++stats_.lookups;
    stats_.tokens_queried += tokens.size();
    stats_.blocks_queried += tokens.size() / static_cast<size_t>(bs);
  }
  path_.resize(static_cast<size_t>(taken));
  if (tail != kNoEntry) path_.push_back(tail);
  touch(path_);
  const auto first_wait = static_cast<std::ptrdiff_t>(wait_for.size());
  for (EntryId id : path_) {
    Entry& entry = tree_[id];
    pool_.retain(entry.device);
    table.push_back(entry.device);
    if (entry.on_device == Presence::kComing) {
      const uint64_t transfer = in_transfer_[static_cast<size_t>(entry.device)];
      if (std::find(wait_for.begin() + first_wait, wait_for.end(), transfer) == wait_for.end()) {
        wait_for.push_back(transfer);
      }
    }
    if (!count) continue;
    ++entry.accesses;
    if (id != tail) {
      ++stats_.blocks_hit[entry.fetched_from];
      stats_.tokens_hit[entry.fetched_from] += static_cast<uint64_t>(bs);
      entry.fetched_from = 0;
    }
    want_on_disk(id);
  }
  int32_t spared = taken * bs;
  if (tail != kNoEntry) {
    spared += match.tail_tokens;
    if (count) stats_.tokens_hit[0] += static_cast<uint64_t>(match.tail_tokens);
  }
  if (count) note_use(path_);
  if (taken > 0) {
    attachment.last = path_[static_cast<size_t>(taken) - 1];
    attachment.generation = tree_[attachment.last].generation;
  }
  return spared;
}

void PrefixCache::publish(std::span<const int32_t> tokens, int32_t full_blocks, BlockTable& table,
                          Attachment& attachment) {
  if (attachment.detached) return;
  // What it was attached to was forgotten: its blocks are its own now.
  if (attachment.epoch != epoch_ ||
      (attachment.blocks > 0 && !tree_.alive({attachment.last, attachment.generation}))) {
    attachment.detached = true;
    return;
  }
  if (attachment.blocks >= full_blocks) return;
  const int bs = config_.block_size;
  TACO_CHECK(static_cast<size_t>(full_blocks) <= table.size() &&
                 static_cast<int64_t>(full_blocks) * bs <= static_cast<int64_t>(tokens.size()),
             full_blocks, " full blocks of ", table.size(), " and ", tokens.size(), " tokens");
  EntryId parent = attachment.blocks > 0 ? attachment.last : tree_.make_root(attachment.root);
  for (; attachment.blocks < full_blocks; ++attachment.blocks) {
    const auto at = static_cast<size_t>(attachment.blocks);
    std::span<const int32_t> block_tokens =
        tokens.subspan(at * static_cast<size_t>(bs), static_cast<size_t>(bs));
    BlockId& block = table[at];
    TACO_CHECK(attachment.blocks == 0 || tree_[parent].on_device != Presence::kNone);
    EntryId id = tree_.find_child(parent, block_tokens);
    if (id == kNoEntry) {
      id = tree_.make_child(parent, block_tokens);
      tree_[id].accesses = 1;
    }
    Entry& entry = tree_[id];
    switch (entry.on_device) {
      case Presence::kNone:
        set_device(id, block, Presence::kReady);
        pool_.keep(block);
        ++stats_.published;
        break;
      case Presence::kComing:  // its own block would be a second one of the entry
        attachment.detached = true;
        return;
      case Presence::kReady:
        if (entry.device == block) break;  // a sibling that shares the block was here before
        pool_.retain(entry.device);
        pool_.release(std::exchange(block, entry.device));
        ++stats_.exchanged;
        break;
    }
    entry.used = ++clock_;
    refresh(id);
    want_on_disk(id);
    attachment.last = parent = id;
    attachment.generation = entry.generation;
  }
}

void PrefixCache::reset() {
  forget_all();
  ++stats_.resets;
  if (config_.disk) disk_resets_ = config_.disk->reset();
}

void PrefixCache::forget_all() {
  ++epoch_;
  TACO_CHECK(evicted_.empty(), "reset between a step's allocations and take_evictions");
  for (FetchState& fetch : fetches_) end_fetch(fetch);
  fetches_.clear();
  while (!tree_.roots().empty()) {
    EntryId root = tree_.roots().begin()->second;
    const int32_t children = tree_[root].num_children;
    for (int32_t i = 0; i < children; ++i) drop(tree_[root].first_child);  // the root goes with the last
  }
  host_lru_.clear();
  disk_lru_.clear();
  to_disk_.clear();
  to_disk_done_ = 0;
  used_slots_.clear();
}

EntryId PrefixCache::entry_on(BlockId block) const {
  EntryId id = entry_on_[static_cast<size_t>(block)];
  TACO_CHECK(id != kNoEntry, "device block ", block, " has no entry");
  return id;
}

void PrefixCache::set_device(EntryId id, BlockId block, Presence presence) {
  Entry& entry = tree_[id];
  TACO_CHECK(entry.on_device == Presence::kNone && !pool_.is_kept(block));
  entry.device = block;
  entry.on_device = presence;
  entry_on_[static_cast<size_t>(block)] = id;
  ++tree_[entry.parent].device_children;
  ++stats_.blocks[0];
  tree_.sync(id);
  num_loading_ += presence == Presence::kComing;
}

// The pool is told by the caller.
void PrefixCache::clear_device(EntryId id) {
  Entry& entry = tree_[id];
  TACO_CHECK(entry.on_device != Presence::kNone);
  num_loading_ -= entry.on_device == Presence::kComing;
  if (entry.idle) erase_idle(id);
  entry_on_[static_cast<size_t>(entry.device)] = kNoEntry;
  entry.device = -1;
  entry.on_device = Presence::kNone;
  --tree_[entry.parent].device_children;
  --stats_.blocks[0];
  tree_.sync(id);
}

void PrefixCache::push_idle(EntryId id) {
  idle_.push_back(tree_, id);
  tree_.sync(id);
}

void PrefixCache::erase_idle(EntryId id) {
  if (tree_[id].dirty) dirty_.erase(tree_, id);
  idle_.erase(tree_, id);
  tree_.sync(id);
}

void PrefixCache::let_go(BlockId block) {
  EntryId id = entry_on(block);
  tree_[id].used = ++clock_;
  push_idle(id);
  refresh(id);
}

void PrefixCache::taken(BlockId block) {
  EntryId id = entry_on(block);
  erase_idle(id);
}

void PrefixCache::give_up_one() {
  TACO_CHECK(idle_.front() != kNoEntry);
  evict_device(idle_.front(), true);
}

}  // namespace taco
