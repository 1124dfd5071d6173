// Transfers: what is moved ahead, and what becomes of entries when it has arrived.
#include <algorithm>

#include "cache/prefix_cache.h"

namespace taco {

namespace {

// What a transfer moves at most: small enough that loads are not held up for long behind it, and that what
// has arrived can be used.
constexpr size_t kMaxTransferBytes = size_t{64} << 20;
// Of what is read, the first blocks are loaded while the next ones are read.
constexpr size_t kMaxReadBytes = size_t{8} << 20;
constexpr int64_t kMaxTransferBlocks = 256;
// Stores (writes) that are under way at once: one is carried out, the next waits behind it.
constexpr int64_t kMaxUnderWay = 2;

size_t index(TransferKind kind) { return static_cast<size_t>(kind); }

}  // namespace

int64_t PrefixCache::max_moves(TransferKind kind) const {
  const size_t bytes = std::max<size_t>(config_.block_bytes, 1);
  const size_t most = kind == TransferKind::kRead ? kMaxReadBytes : kMaxTransferBytes;
  return std::clamp<int64_t>(static_cast<int64_t>(most / bytes), 4, kMaxTransferBlocks);
}

int64_t PrefixCache::under_way(TransferKind kind) const {
  return std::count_if(running_.begin(), running_.end(),
                       [kind](const auto& item) { return item.second.kind == kind; });
}

// Pinned from when it is decided on until it has finished: the next decision may look for room.
void PrefixCache::add_move(std::vector<Move>& moves, const Move& move) {
  host_.pin(move.host);
  if (move.slot >= 0) disk_.pin(move.slot);
  moves.push_back(move);
}

void PrefixCache::begin(TransferKind kind, std::vector<Move> moves, double now) {
  Transfer transfer;
  transfer.id = next_id_++;
  transfer.kind = kind;
  for (Move& move : moves) {
    const auto host = static_cast<BlockId>(config_.first_host_block + move.host);
    if (kind == TransferKind::kStore || kind == TransferKind::kLoad) {
      transfer.moves.push_back({move.device, host});
      in_transfer_[static_cast<size_t>(move.device)] = transfer.id;
    } else {
      transfer.disk.push_back({host, move.slot});
      transfer.records.push_back(record_of(move.entry.id));
    }
    if (kind == TransferKind::kLoad) {
      move.holds_device = true;
      pool_.retain(move.device);
    }
  }
  double& free_at = free_at_[index(kind)];
  free_at = std::max(free_at, now) + seconds_for(kind, static_cast<int64_t>(moves.size()));
  running_.emplace(transfer.id, Running{kind, std::move(moves), free_at});
  outbox_.push_back(std::move(transfer));
}

DiskRecord PrefixCache::record_of(EntryId id) {
  std::span<const int32_t> tokens = tree_.tokens(id);
  DiskRecord record;
  record.resets = disk_resets_;
  record.root = tree_.root_digest(id);
  const Entry& entry = tree_[id];
  record.parent = tree_[entry.parent].is_root() ? record.root : keys_[static_cast<size_t>(entry.parent)];
  record.tokens.assign(tokens.begin(), tokens.end());
  if (keys_.size() <= static_cast<size_t>(id)) keys_.resize(static_cast<size_t>(tree_.end()));
  record.key = keys_[static_cast<size_t>(id)] = block_key(record.parent, tokens);
  return record;
}

void PrefixCache::take_transfers(std::vector<Transfer>& transfers) {
  std::move(outbox_.begin(), outbox_.end(), std::back_inserter(transfers));
  outbox_.clear();
}

bool PrefixCache::busy() const { return !running_.empty(); }

// -- Steps that store what they overwrite

void PrefixCache::take_evictions(uint64_t step, std::vector<BlockMove>& swap_out,
                                 std::vector<uint64_t>& wait_for) {
  for (const Move& move : evicted_) {
    swap_out.push_back({move.device, static_cast<BlockId>(config_.first_host_block + move.host)});
  }
  wait_for.insert(wait_for.end(), overtaken_.begin(), overtaken_.end());
  if (evicted_.empty()) return;
  unstepped_.push_back({step, std::move(evicted_)});
  evicted_.clear();
}

void PrefixCache::rolled_back(uint64_t step) {
  if (unstepped_.empty() || unstepped_.back().step != step) return;
  for (const Move& move : unstepped_.back().moves) {
    host_.unpin(move.host);
    if (!tree_.alive(move.entry) || tree_[move.entry.id].host != move.host) continue;
    clear_host(move.entry.id);
    if (!drop_if_nowhere(move.entry.id)) refresh(move.entry.id);
  }
  unstepped_.pop_back();
}

void PrefixCache::stepped(uint64_t step) {
  auto last = std::find_if(unstepped_.begin(), unstepped_.end(),
                           [step](const StepStores& s) { return s.step > step; });
  for (auto it = unstepped_.begin(); it != last; ++it) {
    for (const Move& move : it->moves) {
      host_.unpin(move.host);
      if (!tree_.alive(move.entry) || tree_[move.entry.id].host != move.host) continue;
      tree_[move.entry.id].unstepped = false;
      refresh(move.entry.id);
      want_on_disk(move.entry.id);
    }
  }
  unstepped_.erase(unstepped_.begin(), last);
}

// -- Moves made ahead

void PrefixCache::maintain(double now) {
  TACO_CHECK(evicted_.empty(), "maintain between a step's allocations and take_evictions");
  if (has_host()) clean(now);
  if (has_disk()) write_out(now);
  trim();
  if (!used_slots_.empty()) config_.disk->used(used_slots_);
  used_slots_.clear();
}

// Idle blocks beyond the limit leave, when their copies are made.
void PrefixCache::trim() {
  if (config_.max_idle_blocks < 0) return;
  while (idle_.size() > config_.max_idle_blocks) {
    const EntryId id = idle_.front();
    // Its store is under way, or waits for one that is.
    const Entry& entry = tree_[id];
    if (entry.on_host == Presence::kComing && in_transfer_[static_cast<size_t>(entry.device)] != 0) return;
    if (entry.dirty && under_way(TransferKind::kStore) > 0) return;
    evict_device(id, false);
  }
}

// Stores idle blocks, so that the step that needs their room has nothing to store, and that fetches find
// room. All of them, when the device is nearly full, the oldest first: those at the ends of the tree are
// dirty for longest, and nothing above a dirty block can leave before it does.
void PrefixCache::clean(double now) {
  const int64_t target = std::max<int64_t>(pool_.size() / 8, 4);
  int64_t wanted = pool_.num_free() < target ? dirty_.size() : 0;
  if (config_.max_idle_blocks >= 0) wanted = std::max(wanted, idle_.size() - config_.max_idle_blocks);
  while (wanted > 0 && dirty_.front() != kNoEntry && under_way(TransferKind::kStore) < kMaxUnderWay) {
    std::vector<Move> moves;
    const int64_t most = std::min(wanted, max_moves(TransferKind::kStore));
    while (static_cast<int64_t>(moves.size()) < most && dirty_.front() != kNoEntry) {
      if (!store_later(dirty_.front(), moves)) break;
    }
    if (moves.empty()) return;
    wanted -= static_cast<int64_t>(moves.size());
    begin(TransferKind::kStore, std::move(moves), now);
  }
}

// Takes a room on the host for an entry on the device. False if there is none.
bool PrefixCache::store_later(EntryId id, std::vector<Move>& moves) {
  Entry& entry = tree_[id];
  const int32_t host = take_host(entry.used);
  if (host < 0) return false;
  entry.host = host;
  entry.on_host = Presence::kComing;
  ++stats_.blocks[1];
  refresh(id);
  add_move(moves, {tree_.ref(id), entry.device, host, -1, false});
  return true;
}

void PrefixCache::want_on_disk(EntryId id) {
  Entry& entry = tree_[id];
  if (!has_disk() || !writes_disk_ || entry.queued || entry.on_disk != Presence::kNone ||
      !worth_a_copy(entry))
    return;
  entry.queued = true;
  to_disk_.push_back(tree_.ref(id));
}

// For the disk's next life. A block counts as used after all behind it: they leave first.
void PrefixCache::note_use(std::span<const EntryId> path) {
  if (!has_disk() || !config_.disk) return;
  for (auto id = path.rbegin(); id != path.rend(); ++id)
    if (tree_[*id].on_disk != Presence::kNone) used_slots_.push_back(tree_[*id].slot);
}

// Everything that is worth it goes to the disk soon, by way of the host; parents first, so that what a
// restart finds has its parents.
void PrefixCache::write_out(double now) {
  std::vector<Move> stores, writes;
  const bool may_store = under_way(TransferKind::kStore) < kMaxUnderWay;
  const bool may_write = under_way(TransferKind::kWrite) < kMaxUnderWay;
  const auto most = static_cast<size_t>(max_moves(TransferKind::kWrite));
  while (to_disk_done_ < to_disk_.size() && stores.size() < most && writes.size() < most) {
    const EntryRef ref = to_disk_[to_disk_done_];
    if (!tree_.alive(ref)) {
      ++to_disk_done_;
      continue;
    }
    Entry& entry = tree_[ref.id];
    const bool on_disk = entry.on_disk != Presence::kNone;
    const bool to_store = entry.on_host == Presence::kNone && entry.on_device == Presence::kReady;
    const bool to_write = entry.on_host == Presence::kReady && !entry.unstepped;
    const EntryId parent = entry.parent;
    const bool parent_first = !tree_[parent].is_root() && tree_[parent].on_disk == Presence::kNone;
    if (!on_disk && ((to_store && !may_store) || (to_write && !parent_first && !may_write))) break;
    ++to_disk_done_;
    entry.queued = false;
    if (on_disk) continue;
    if (to_store) {
      store_later(ref.id, stores);
    } else if (parent_first) {  // when it is written, its children come again
      want_on_disk(parent);
    } else if (to_write) {
      // Not at the cost of its own parent, which may stand on disk and have nobody else below it.
      const int32_t above = tree_[parent].slot;
      if (above >= 0) disk_.pin(above);
      const int32_t slot = take_slot(entry.used);
      if (above >= 0) disk_.unpin(above);
      refresh(parent);
      if (slot < 0) continue;
      set_on_disk(ref.id, slot, Presence::kComing);
      add_move(writes, {ref, -1, entry.host, slot, false});
    }  // else on its way to the host: comes again when it is there
  }
  if (to_disk_done_ == to_disk_.size() || to_disk_done_ > 4096) {
    to_disk_.erase(to_disk_.begin(), to_disk_.begin() + static_cast<std::ptrdiff_t>(to_disk_done_));
    to_disk_done_ = 0;
  }
  if (!stores.empty()) begin(TransferKind::kStore, std::move(stores), now);
  if (!writes.empty()) begin(TransferKind::kWrite, std::move(writes), now);
}

void PrefixCache::set_on_disk(EntryId id, int32_t slot, Presence presence) {
  Entry& entry = tree_[id];
  entry.slot = slot;
  entry.on_disk = presence;
  num_writing_ += presence == Presence::kComing;
  ++tree_[entry.parent].disk_children;
  ++stats_.blocks[2];
}

// -- Arrivals

void PrefixCache::finished(const TransferResult& result, double now) {
  auto it = running_.find(result.id);
  TACO_CHECK(it != running_.end(), "transfer ", result.id, " is not under way");
  const Running running = std::move(it->second);
  running_.erase(it);
  TACO_CHECK(result.failed.empty() || result.failed.size() == running.moves.size(), "transfer ", result.id,
             " of ", running.moves.size(), " moves has ", result.failed.size(), " results");
  std::erase(overtaken_, result.id);
  int64_t moved = 0;
  for (size_t i = 0; i < running.moves.size(); ++i) {
    const Move& move = running.moves[i];
    const bool ok = result.failed.empty() || result.failed[i] == 0;
    moved += ok;
    stats_.failed += !ok && tree_.alive(move.entry);  // after a reset nobody wants to know
    host_.unpin(move.host);
    if (move.slot >= 0) disk_.unpin(move.slot);
    if (move.device >= 0 && in_transfer_[static_cast<size_t>(move.device)] == result.id) {
      in_transfer_[static_cast<size_t>(move.device)] = 0;
    }
    if (!tree_.alive(move.entry)) continue;
    switch (running.kind) {
      case TransferKind::kStore:
        stored(move, ok);
        break;
      case TransferKind::kLoad:
        loaded(move, ok);
        break;
      case TransferKind::kWrite:
        written(move, ok);
        break;
      case TransferKind::kRead:
        was_read(move, ok);
        break;
    }
    if (tree_.alive(move.entry)) refresh(move.entry.id);
  }
  // The deepest first: they become idle in this order.
  for (auto move = running.moves.rbegin(); move != running.moves.rend(); ++move) {
    if (move->holds_device) pool_.release(move->device);
  }
  uint64_t* const totals[kNumTransferKinds] = {&stats_.stored, &stats_.loaded, &stats_.written, &stats_.read};
  *totals[index(running.kind)] += static_cast<uint64_t>(moved);
  measured(running.kind, moved, result.seconds);
  if (running_.empty()) free_at_.fill(now);
  advance_fetches(now);
}

void PrefixCache::stored(const Move& move, bool ok) {
  Entry& entry = tree_[move.entry.id];
  if (entry.host != move.host || entry.on_host != Presence::kComing) return;
  if (ok) {
    entry.on_host = Presence::kReady;
    want_on_disk(move.entry.id);
  } else {
    clear_host(move.entry.id);
    drop_if_nowhere(move.entry.id);
  }
}

// A load does not fail unless the device does. Whoever reads the block then has lost as much.
void PrefixCache::loaded(const Move& move, bool ok) {
  Entry& entry = tree_[move.entry.id];
  if (entry.device != move.device || entry.on_device != Presence::kComing) return;
  if (!ok) return drop(move.entry.id);
  entry.on_device = Presence::kReady;
  tree_.sync(move.entry.id);
  --num_loading_;
}

void PrefixCache::written(const Move& move, bool ok) {
  const EntryId id = move.entry.id;
  Entry& entry = tree_[id];
  if (entry.slot != move.slot || entry.on_disk != Presence::kComing) return;
  if (!ok) return drop_disk_below(id);
  entry.on_disk = Presence::kReady;
  --num_writing_;
  for (EntryId child = entry.first_child; child != kNoEntry; child = tree_[child].next) want_on_disk(child);
}

// What could not be read is gone, and with it what is below: nothing could be told of it after a restart.
void PrefixCache::was_read(const Move& move, bool ok) {
  const EntryId id = move.entry.id;
  Entry& entry = tree_[id];
  if (entry.host != move.host || entry.on_host != Presence::kComing) return;
  if (ok) {
    entry.on_host = Presence::kReady;
    entry.fetched_from = static_cast<uint8_t>(CacheTier::kDisk);
  } else {
    clear_host(id);
    drop_disk_below(id);
  }
}

void PrefixCache::measured(TransferKind kind, int64_t blocks, double seconds) {
  if (blocks == 0 || !(seconds > 0.0)) return;
  const double speed = static_cast<double>(blocks) * static_cast<double>(config_.block_bytes) / seconds;
  // The first one may have met a bad moment as well as any other.
  speed_[index(kind)] = 0.7 * speed_of(kind) + 0.3 * speed;
}

void PrefixCache::measured_prefill(int64_t tokens, double seconds) {
  if (tokens <= 0 || !(seconds > 0.0)) return;
  // Long steps say more than short ones: those hold other work.
  const double weight = std::min(1.0, static_cast<double>(tokens) / 2048.0) * 0.3;
  const double each = seconds / static_cast<double>(tokens);
  prefill_seconds_ = prefill_seconds_ == 0.0 ? each : prefill_seconds_ + weight * (each - prefill_seconds_);
}

// -- The disk's beginning and end

int64_t PrefixCache::restore(std::span<const std::pair<int64_t, DiskRecord>> records) {
  TACO_CHECK(tree_.size() == 0 && has_disk(), "the disk tier is restored first of all");
  // By what they stand behind: those that hang on no root are never reached, be it in circles.
  std::unordered_map<Digest, std::vector<size_t>> behind;
  for (size_t i = 0; i < records.size(); ++i) {
    const DiskRecord& record = records[i].second;
    if (record.tokens.size() == static_cast<size_t>(config_.block_size)) behind[record.parent].push_back(i);
  }
  struct Place {
    EntryId id;
    Digest key, root;
    size_t order;  // of last use
  };
  std::vector<Place> placed;
  auto place_children = [&](const Digest& parent_key, const Digest& root, EntryId parent) {
    auto found = behind.find(parent_key);
    if (found == behind.end()) return;
    for (size_t i : found->second) {
      const auto& [slot, record] = records[i];
      if (record.root != root || record.key != block_key(parent_key, record.tokens)) continue;
      if (parent == kNoEntry) {
        const EntryId top = tree_.find_root(root);
        if (top != kNoEntry && tree_.find_child(top, record.tokens) != kNoEntry) continue;
      } else if (tree_.find_child(parent, record.tokens) != kNoEntry) {
        continue;
      }
      if (!disk_.take(slot)) continue;
      const EntryId id = tree_.make_child(parent == kNoEntry ? tree_.make_root(root) : parent, record.tokens);
      set_on_disk(id, static_cast<int32_t>(slot), Presence::kReady);
      tree_[id].accesses = static_cast<uint32_t>(config_.min_accesses);
      placed.push_back({id, record.key, root, i});
    }
  };
  std::vector<Digest> roots;
  for (const auto& [slot, record] : records) {
    if (record.parent == record.root) roots.push_back(record.root);
  }
  std::sort(roots.begin(), roots.end());
  roots.erase(std::unique(roots.begin(), roots.end()), roots.end());
  for (const Digest& root : roots) place_children(root, root, kNoEntry);
  for (size_t i = 0; i < placed.size(); ++i) {
    const Place at = placed[i];
    place_children(at.key, at.root, at.id);
  }
  disk_.settle();
  keys_.resize(static_cast<size_t>(tree_.end()));
  for (const Place& place : placed) {
    keys_[static_cast<size_t>(place.id)] = place.key;
    tree_[place.id].used = clock_ + 1 + place.order;
  }
  clock_ += records.size();
  // Nothing was used longer ago than what is below it.
  for (auto place = placed.rbegin(); place != placed.rend(); ++place) {
    Entry& parent = tree_[tree_[place->id].parent];
    if (!parent.is_root()) parent.used = std::max(parent.used, tree_[place->id].used);
  }
  for (const Place& place : placed) refresh(place.id);
  return static_cast<int64_t>(placed.size());
}

void PrefixCache::drop_disk() {
  if (!has_disk_) return;
  stop_disk_writes();
  has_disk_ = false;
  std::vector<EntryId> tops;
  for (const auto& [digest, root] : tree_.roots()) {
    for (EntryId id = tree_[root].first_child; id != kNoEntry; id = tree_[id].next) tops.push_back(id);
  }
  for (EntryId id : tops) drop_disk_below(id);
}

void PrefixCache::stop_disk_writes() {
  writes_disk_ = false;
  for (const EntryRef& ref : to_disk_) {
    if (tree_.alive(ref)) tree_[ref.id].queued = false;
  }
  to_disk_.clear();
  to_disk_done_ = 0;
}

}  // namespace taco
