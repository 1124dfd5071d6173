#include "spec/lookahead/cell_table.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

namespace taco {
namespace {

constexpr uint32_t kNoSlab = 0xffffffffu;
constexpr int kMaxDepth = 26;
// Keys in a segment that make it split: at once, or as soon as one of them meets a full bucket.
constexpr int kSplitAt = 8 * 512 * 62 / 100, kSplitIfFull = 8 * 512 * 45 / 100;

int slab_entries(int slab_class) { return 1 << slab_class; }

}  // namespace

CellTable::CellTable(const CellTableOptions& options, MemoryBudget* budget)
    : options_(options), budget_(budget) {
  TACO_REQUIRE(options.cell_max_size >= 1 && options.cell_max_size <= kMaxCell,
               "cell_max_size = ", options.cell_max_size, ": 1 to ", kMaxCell, " are allowed");
  threshold_ = static_cast<uint16_t>(std::clamp(options.threshold * kFreqOne, 0.0f, 65535.0f));
  std::fill(std::begin(free_slabs_), std::end(free_slabs_), kNoSlab);
  auto first = std::make_unique<Segment>();
  first->buckets = static_cast<Bucket*>(charge(sizeof(Segment) + sizeof(Place)) ? take_chunk() : nullptr);
  TACO_REQUIRE(first->buckets, "a bound of ", budget->limit(), " bytes is too small for a lookahead cache");
  directory_.push_back({first->buckets, first.get()});
  segments_.push_back(std::move(first));
}

CellTable::~CellTable() {
  for (auto& segment : segments_) ::operator delete (segment->buckets, std::align_val_t{64});
  for (std::byte* chunk : slab_chunks_) ::operator delete (chunk, std::align_val_t{64});
  budget_->release(bytes_);
}

bool CellTable::charge(size_t bytes) {
  if (!budget_->charge(bytes)) return false;
  bytes_ += bytes;
  return true;
}

void* CellTable::take_chunk() {
  if (!charge(kChunk)) return nullptr;
  void* chunk = ::operator new (kChunk, std::align_val_t{64});
  std::memset(chunk, 0, kChunk);
  return chunk;
}

void CellTable::free_chunk(void* chunk) {
  ::operator delete (chunk, std::align_val_t{64});
  budget_->release(kChunk);
  bytes_ -= kChunk;
}

int CellTable::find_way(const Bucket& bucket, uint64_t key) {
  const uint32_t print = print_of(key);
  unsigned same = 0;
  for (int way = 0; way < kWays; ++way) same |= static_cast<unsigned>(bucket.print[way] == print) << way;
  for (; same; same &= same - 1) {
    const int way = __builtin_ctz(same);
    if (bucket.meta[way].size > 0 && bucket.meta[way].more == more_of(key)) return way;
  }
  return -1;
}

std::span<const CellEntry> CellTable::find(uint64_t key) const {
  const Bucket& bucket = bucket_of(key);
  const int way = find_way(bucket, key);
  if (way < 0) return {};
  // Drafts of several sequences may look at once; which of them sets the mark does not matter.
  std::atomic_ref<uint8_t> used(const_cast<uint8_t&>(bucket.meta[way].used));
  if (!used.load(std::memory_order_relaxed)) used.store(1, std::memory_order_relaxed);
  return {entries(bucket, way), bucket.meta[way].size};
}

void CellTable::decay(CellEntry* cell, int size) const {
  for (int i = 0; i < size; ++i) cell[i].freq = static_cast<uint16_t>(cell[i].freq * options_.decay);
}

void CellTable::add(uint64_t key, uint32_t value, uint16_t tag) {
  Bucket* bucket = const_cast<Bucket*>(&bucket_of(key));
  int way = find_way(*bucket, key);
  if (way < 0) {
    way = take_way(key);
    bucket = const_cast<Bucket*>(&bucket_of(key));  // it may have been split
    bucket->print[way] = print_of(key);
    bucket->meta[way] = {more_of(key), 1, 0, 0};
    bucket->payload[way].entry = {value, kFreqOne, tag};
    return;
  }
  Meta& meta = bucket->meta[way];
  meta.used = 1;
  CellEntry* cell = entries(*bucket, way);
  for (int i = 0; i < meta.size; ++i) {
    if (options_.same_by_tag ? cell[i].tag != tag : cell[i].value != value) continue;
    if (cell[i].freq > 65535 - kFreqOne) {
      decay(cell, meta.size);
      cell[i].freq = std::min<uint16_t>(cell[i].freq, 65535 - kFreqOne);
    }
    const CellEntry counted{value, static_cast<uint16_t>(cell[i].freq + kFreqOne), tag};
    std::memmove(cell + 1, cell, i * sizeof(CellEntry));
    cell[0] = counted;
    return;
  }
  int at = meta.size;  // the place that is given up to make room in front
  if (at < options_.cell_max_size && (at < slab_entries(meta.slab_class) || grow_cell(*bucket, way))) {
    ++meta.size;
    cell = entries(*bucket, way);
  } else {
    // The rarest goes, the oldest of them; where none is rare, all get rarer first.
    at = meta.size - 1;
    for (int i = at; i >= 0; --i)
      if (cell[i].freq < cell[at].freq) at = i;
    if (cell[at].freq >= threshold_) decay(cell, meta.size);
  }
  std::memmove(cell + 1, cell, at * sizeof(CellEntry));
  cell[0] = {value, kFreqOne, tag};
}

int CellTable::take_way(uint64_t key) {
  size_t index = index_of(print_of(key));
  const bool may_grow = options_.max_keys == 0 || num_keys_ < options_.max_keys;
  const int keys = directory_[index].segment->used;
  auto bucket_full = [&] {
    const Bucket& bucket = bucket_of(key);
    return std::all_of(bucket.meta, bucket.meta + kWays, [](const Meta& meta) { return meta.size > 0; });
  };
  if (may_grow && keys >= kSplitIfFull && (keys >= kSplitAt || bucket_full()) && split(index))
    index = index_of(print_of(key));
  Segment& segment = *directory_[index].segment;
  Bucket& bucket = segment.buckets[row_of(key)];
  int way = 0;
  while (way < kWays && bucket.meta[way].size > 0) ++way;
  if (way == kWays || !may_grow) {
    bool empty = true;
    for (const Meta& meta : bucket.meta) empty = empty && meta.size == 0;
    if (!empty) {
      way = victim(bucket);
      drop(segment, bucket, way);
      ++evictions_;
    } else {
      sweep(-1);
    }
  }
  ++segment.used;
  ++num_keys_;
  return way;
}

int CellTable::victim(Bucket& bucket) {
  for (int round = 0; round < 2; ++round) {
    int best = -1;
    unsigned best_freq = 0;
    for (int way = 0; way < kWays; ++way) {
      if (bucket.meta[way].size == 0 || bucket.meta[way].used) continue;
      unsigned freq = 0;
      const CellEntry* cell = entries(bucket, way);
      for (int i = 0; i < bucket.meta[way].size; ++i) freq += cell[i].freq;
      if (best < 0 || freq < best_freq) best = way, best_freq = freq;
    }
    for (Meta& meta : bucket.meta) meta.used = 0;
    if (best >= 0) return best;
  }
  return 0;
}

void CellTable::drop(Segment& segment, Bucket& bucket, int way) {
  Meta& meta = bucket.meta[way];
  if (meta.slab_class > 0) free_slab(meta.slab_class, bucket.payload[way].slab);
  meta = {};
  --segment.used;
  --num_keys_;
}

// Moves the clock's hand until a key has gone: one with a slab of this class, or any if it is -1.
bool CellTable::sweep(int slab_class) {
  constexpr int kLooks = 64;
  for (int look = 0; look < kLooks; ++look) {
    const size_t at = hand_++ % (segments_.size() * kBuckets);
    Segment& segment = *segments_[at / kBuckets];
    Bucket& bucket = segment.buckets[at % kBuckets];
    for (int way = 0; way < kWays; ++way) {
      Meta& meta = bucket.meta[way];
      if (meta.size == 0 || (slab_class >= 0 && meta.slab_class != slab_class)) continue;
      if (meta.used) {
        meta.used = 0;
        continue;
      }
      drop(segment, bucket, way);
      ++evictions_;
      return true;
    }
  }
  return false;
}

bool CellTable::split(size_t index) {
  Segment& old = *directory_[index].segment;
  if (old.depth >= kMaxDepth) return false;
  const bool doubles = old.depth == depth_;
  const size_t more = sizeof(Segment) + (doubles ? directory_.size() * sizeof(Place) : 0);
  if (!charge(more)) return false;
  void* chunk = take_chunk();
  if (!chunk) {
    budget_->release(more);
    bytes_ -= more;
    return false;
  }
  if (doubles) {
    std::vector<Place> wider(directory_.size() * 2);
    for (size_t i = 0; i < wider.size(); ++i) wider[i] = directory_[i / 2];
    directory_.swap(wider);
    ++depth_;
    index *= 2;
  }
  auto added = std::make_unique<Segment>();
  added->buckets = static_cast<Bucket*>(chunk);
  const uint32_t bit = uint32_t{1} << (31 - old.depth);
  added->depth = ++old.depth;
  for (int row = 0; row < kBuckets; ++row) {
    Bucket& from = old.buckets[row];
    Bucket& to = added->buckets[row];
    for (int way = 0; way < kWays; ++way) {
      if (from.meta[way].size == 0 || !(from.print[way] & bit)) continue;
      to.print[way] = from.print[way];
      to.meta[way] = from.meta[way];
      to.payload[way] = from.payload[way];
      from.meta[way] = {};
      --old.used;
      ++added->used;
    }
  }
  // The upper half of the places that pointed to the old segment.
  const size_t span = size_t{1} << (depth_ - old.depth);
  const size_t first = (index / (2 * span)) * 2 * span + span;
  for (size_t i = first; i < first + span; ++i) directory_[i] = {added->buckets, added.get()};
  added->place = static_cast<uint32_t>(segments_.size());
  segments_.push_back(std::move(added));
  ++moves_;
  return true;
}

bool CellTable::shrink() {
  if (segments_.size() < 2) return false;
  // Two halves of equal depth, such as there always are among the deepest; on from where the last were.
  size_t low_index = index_of(next_join_), high_index = 0, span = 0;
  for (;;) {
    const Segment& segment = *directory_[low_index].segment;
    span = size_t{1} << (depth_ - segment.depth);
    low_index &= ~(span - 1);
    high_index = low_index + span;
    if (segment.depth > 0 && (low_index / span) % 2 == 0 &&
        directory_[high_index].segment->depth == segment.depth)
      break;
    low_index = high_index % directory_.size();
  }
  next_join_ = static_cast<uint32_t>(uint64_t{high_index + span} << (32 - depth_));
  Segment& low = *directory_[low_index].segment;
  Segment& high = *directory_[high_index].segment;
  for (int row = 0; row < kBuckets; ++row) {
    Bucket& from = high.buckets[row];
    Bucket& to = low.buckets[row];
    for (int way = 0; way < kWays; ++way) {
      if (from.meta[way].size == 0) continue;
      int place = 0;
      while (place < kWays && to.meta[place].size > 0) ++place;
      if (place == kWays) {
        if (!from.meta[way].used) {
          drop(high, from, way);
          ++evictions_;
          continue;
        }
        place = victim(to);
        drop(low, to, place);
        ++evictions_;
      }
      to.print[place] = from.print[way];
      to.meta[place] = from.meta[way];
      to.payload[place] = from.payload[way];
      from.meta[way] = {};
      ++low.used;
    }
  }
  for (size_t i = high_index; i < high_index + span; ++i) directory_[i] = directory_[low_index];
  --low.depth;
  free_chunk(high.buckets);
  const uint32_t place = high.place;
  std::swap(segments_[place], segments_.back());
  segments_[place]->place = place;
  segments_.pop_back();
  ++moves_;
  budget_->release(sizeof(Segment));
  bytes_ -= sizeof(Segment);
  return true;
}

void CellTable::clear() {
  for (auto& segment : segments_) {
    std::memset(static_cast<void*>(segment->buckets), 0, kChunk);
    segment->used = 0;
  }
  for (std::byte* chunk : slab_chunks_) free_chunk(chunk);
  slab_chunks_.clear();
  std::fill(std::begin(free_slabs_), std::end(free_slabs_), kNoSlab);
  num_keys_ = 0;
}

bool CellTable::take_slab(int slab_class, uint32_t* ref) {
  uint32_t& head = free_slabs_[slab_class];
  if (head == kNoSlab) {
    if (slab_chunks_.size() >= (size_t{1} << 20)) return false;
    auto* chunk = static_cast<std::byte*>(take_chunk());
    if (chunk) {
      const auto base = static_cast<uint32_t>(slab_chunks_.size()) << 12;
      slab_chunks_.push_back(chunk);
      const size_t bytes = slab_entries(slab_class) * sizeof(CellEntry);
      for (size_t offset = 0; offset + bytes <= kChunk; offset += bytes)
        free_slab(slab_class, base + static_cast<uint32_t>(offset / kSlabUnit));
    } else if (!sweep(slab_class)) {
      return false;
    }
  }
  *ref = head;
  std::memcpy(&head, slab(head), sizeof(head));
  return true;
}

void CellTable::free_slab(int slab_class, uint32_t ref) {
  std::memcpy(static_cast<void*>(slab(ref)), &free_slabs_[slab_class], sizeof(uint32_t));
  free_slabs_[slab_class] = ref;
}

bool CellTable::grow_cell(Bucket& bucket, int way) {
  Meta& meta = bucket.meta[way];
  uint32_t ref;
  if (meta.slab_class + 1 >= kSlabClasses || !take_slab(meta.slab_class + 1, &ref)) return false;
  const Payload old = bucket.payload[way];
  const CellEntry* from = meta.slab_class == 0 ? &old.entry : slab(old.slab);
  std::memcpy(slab(ref), from, meta.size * sizeof(CellEntry));
  if (meta.slab_class > 0) free_slab(meta.slab_class, old.slab);
  bucket.payload[way].slab = ref;
  ++meta.slab_class;
  return true;
}

bool CellTable::restore(uint64_t stem, std::span<const CellEntry> cell) {
  if (cell.empty() || cell.size() > static_cast<size_t>(options_.cell_max_size) || find(stem).size() > 0)
    return false;
  const int way = take_way(stem);
  Bucket& bucket = const_cast<Bucket&>(bucket_of(stem));
  bucket.print[way] = print_of(stem);
  bucket.meta[way] = {more_of(stem), 1, 0, 0};
  bucket.payload[way].entry = cell[0];
  Meta& meta = bucket.meta[way];
  for (size_t i = 1; i < cell.size(); ++i) {
    // sweep() inside may not take this very key for its slab.
    meta.used = 1;
    if (meta.size == slab_entries(meta.slab_class) && !grow_cell(bucket, way)) break;
    entries(bucket, way)[meta.size++] = cell[i];
  }
  meta.used = 0;
  return true;
}

}  // namespace taco
