#include "cache/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <random>

namespace taco {

namespace {

constexpr size_t kLine = 64;

uint64_t fold(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t word_at(const int32_t* tokens) {
  uint64_t word;
  std::memcpy(&word, tokens, sizeof word);
  return word;
}

// kSize: tokens of a block, if the compiler knows it; 0: `size` says.
template <int kSize>
bool same_tokens(const int32_t* a, const int32_t* b, int size) {
  if constexpr (kSize == 0) return std::memcmp(a, b, sizeof(int32_t) * static_cast<size_t>(size)) == 0;
  uint64_t differ = 0;
  for (int i = 0; i < kSize; i += 2) differ |= word_at(a + i) ^ word_at(b + i);
  return differ == 0;
}

// The sum of products of keyed words: no product waits for another.
template <int kSize>
uint64_t hash_block(const int32_t* tokens, int size, const uint64_t* secret) {
  if constexpr (kSize != 0) size = kSize;
  uint64_t sum = 0;
  int i = 0;
  for (; i + 4 <= size; i += 4, secret += 2) {
    sum += fold(word_at(tokens + i) ^ secret[0], word_at(tokens + i + 2) ^ secret[1]);
  }
  if (i < size) {
    int32_t rest[4] = {-1, -1, -1, -1};
    std::copy(tokens + i, tokens + size, rest);
    sum += fold(word_at(rest) ^ secret[0], word_at(rest + 2) ^ secret[1]);
  }
  return sum;
}

void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }

}  // namespace

PrefixTree::PrefixTree(const Options& options)
    : block_size_(options.block_size), hash_mask_(options.hash_mask) {
  TACO_REQUIRE(block_size_ >= 1, "block_size must be at least 1, not ", block_size_);
  std::random_device entropy;
  std::mt19937_64 random(options.seed != 0 ? options.seed : (uint64_t{entropy()} << 32 | entropy()));
  // Two for each four tokens, and two for the chain.
  secrets_.resize(static_cast<size_t>((block_size_ + 3) / 4) * 2 + 2);
  for (uint64_t& secret : secrets_) secret = random() | 1;
  int64_t wanted = std::clamp<int64_t>(options.expected_entries * 2, 1024, int64_t{1} << 22);
  table_.resize(std::bit_ceil(static_cast<uint64_t>(wanted)));
  table_mask_ = table_.size() - 1;
}

uint64_t PrefixTree::block_hash(const int32_t* tokens) const {
  return hash_block<0>(tokens, block_size_, secrets_.data());
}

uint64_t PrefixTree::chain(uint64_t parent_hash, uint64_t block_hash) const {
  const uint64_t* secret = secrets_.data() + secrets_.size() - 2;
  return fold(parent_hash ^ secret[0], block_hash ^ secret[1]) & hash_mask_;
}

EntryId PrefixTree::new_id() {
  EntryId id;
  if (!free_ids_.empty()) {
    id = free_ids_.back();
    free_ids_.pop_back();
  } else {
    constexpr size_t kCount = kChunkMask + 1;
    if ((num_ids_ & kChunkMask) == 0) {
      chunks_.push_back({Array<Entry>(kCount), Array<int32_t>(kCount * static_cast<size_t>(block_size_)),
                         Array<Look>(kCount)});
    }
    id = num_ids_++;
    new (&(*this)[id]) Entry();
  }
  Entry& entry = (*this)[id];
  const uint32_t generation = entry.generation;
  entry = Entry{};
  entry.generation = generation;
  entry.alive = true;
  new (&look_at(id)) Look();
  return id;
}

void PrefixTree::free_id(EntryId id) {
  (*this)[id].alive = false;
  ++(*this)[id].generation;
  free_ids_.push_back(id);
}

EntryId PrefixTree::find_root(const Digest& digest) const {
  auto it = roots_.find(digest);
  return it == roots_.end() ? kNoEntry : it->second;
}

EntryId PrefixTree::make_root(const Digest& digest) {
  auto [it, is_new] = roots_.try_emplace(digest, kNoEntry);
  if (is_new) {
    EntryId id = it->second = new_id();
    root_digests_.emplace(id, digest);
    Entry& root = (*this)[id];
    root.root = id;
    for (size_t i = 0; i < digest.bytes.size(); i += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, digest.bytes.data() + i, sizeof word);
      root.hash = chain(root.hash, word);
    }
  }
  return it->second;
}

void PrefixTree::link(EntryId id, EntryId parent) {
  Entry& entry = (*this)[id];
  Entry& above = (*this)[parent];
  entry.parent = parent;
  entry.next = above.first_child;
  if (above.first_child != kNoEntry) (*this)[above.first_child].previous = id;
  above.first_child = id;
  ++above.num_children;
  sync(id);
}

void PrefixTree::unlink(EntryId id) {
  Entry& entry = (*this)[id];
  Entry& above = (*this)[entry.parent];
  (entry.previous == kNoEntry ? above.first_child : (*this)[entry.previous].next) = entry.next;
  if (entry.next != kNoEntry) (*this)[entry.next].previous = entry.previous;
  --above.num_children;
}

template <int kSize>
EntryId PrefixTree::lookup(EntryId parent, uint64_t hash, const int32_t* tokens) const {
  const auto tag = static_cast<uint32_t>(hash);
  for (size_t at = tag & table_mask_;; at = (at + 1) & table_mask_) {
    const Place& place = table_[at];
    if (place.id == kNoEntry) return kNoEntry;
    if (place.tag == tag && look_at(place.id).parent == parent &&
        same_tokens<kSize>(token_pointer(place.id), tokens, block_size_)) {
      return place.id;
    }
  }
}

EntryId PrefixTree::find_child(EntryId parent, std::span<const int32_t> tokens) const {
  return lookup<0>(parent, chain((*this)[parent].hash, block_hash(tokens.data())), tokens.data());
}

EntryId PrefixTree::make_child(EntryId parent, std::span<const int32_t> tokens) {
  TACO_CHECK(tokens.size() == static_cast<size_t>(block_size_));
  EntryId id = new_id();
  Entry& entry = (*this)[id];
  const Entry& above = (*this)[parent];
  std::copy(tokens.begin(), tokens.end(), token_pointer(id));
  entry.hash = chain(above.hash, block_hash(tokens.data()));
  entry.depth = above.depth + 1;
  entry.root = above.root;
  link(id, parent);
  if (static_cast<size_t>(++num_entries_) * 2 > table_.size()) grow_table();
  insert_place(entry.hash, id);
  return id;
}

void PrefixTree::erase(EntryId id) {
  Entry& entry = (*this)[id];
  TACO_CHECK(entry.alive && entry.num_children == 0 && !entry.is_root() && !entry.idle && !entry.dirty);
  erase_place(entry.hash, id);
  unlink(id);
  EntryId parent = entry.parent;
  free_id(id);
  --num_entries_;
  if ((*this)[parent].is_root() && (*this)[parent].num_children == 0) {
    auto digest = root_digests_.find(parent);
    roots_.erase(digest->second);
    root_digests_.erase(digest);
    free_id(parent);
  }
}

void PrefixTree::insert_place(uint64_t hash, EntryId id) {
  const auto tag = static_cast<uint32_t>(hash);
  size_t at = tag & table_mask_;
  while (table_[at].id != kNoEntry) at = (at + 1) & table_mask_;
  table_[at] = {tag, id};
}

// What stands behind the gap moves up if its search begins at the gap or before: no gap is left on anyone's
// way.
void PrefixTree::erase_place(uint64_t hash, EntryId id) {
  size_t gap = static_cast<uint32_t>(hash) & table_mask_;
  while (table_[gap].id != id) {
    TACO_CHECK(table_[gap].id != kNoEntry, "entry ", id, " is not in the table");
    gap = (gap + 1) & table_mask_;
  }
  for (size_t at = (gap + 1) & table_mask_; table_[at].id != kNoEntry; at = (at + 1) & table_mask_) {
    size_t home = table_[at].tag & table_mask_;
    if (((at - home) & table_mask_) >= ((at - gap) & table_mask_)) {
      table_[gap] = table_[at];
      gap = at;
    }
  }
  table_[gap] = Place{};
}

void PrefixTree::grow_table() {
  decltype(table_) old(table_.size() * 2);
  old.swap(table_);
  table_mask_ = table_.size() - 1;
  for (const Place& place : old) {
    if (place.id == kNoEntry) continue;
    size_t at = place.tag & table_mask_;
    while (table_[at].id != kNoEntry) at = (at + 1) & table_mask_;
    table_[at] = place;
  }
}

void PrefixTree::walk(const Digest& root, std::span<const int32_t> tokens, int64_t max_blocks,
                      std::vector<EntryId>& path) const {
  path.clear();
  const EntryId top = find_root(root);
  if (top == kNoEntry) return;
  const int64_t num_blocks = std::min<int64_t>(max_blocks, static_cast<int64_t>(tokens.size()) / block_size_);
  switch (block_size_) {
    case 8:
      return walk_from<8>(top, tokens.data(), num_blocks, path);
    case 16:
      return walk_from<16>(top, tokens.data(), num_blocks, path);
    case 32:
      return walk_from<32>(top, tokens.data(), num_blocks, path);
    default:
      return walk_from<0>(top, tokens.data(), num_blocks, path);
  }
}

// Three stages, each some blocks ahead of the next: the hash and the line of the table; the likely entry and
// its tokens; the comparison. Hashes do not depend on what is found, so that many cache misses are under way
// at once.
template <int kSize>
void PrefixTree::walk_from(EntryId top, const int32_t* tokens, int64_t num_blocks,
                           std::vector<EntryId>& path) const {
  constexpr int64_t kRing = 64, kAhead = 16;
  uint64_t hashes[kRing];
  uint64_t hash = (*this)[top].hash;
  EntryId parent = top;
  int64_t hashed = 0, fetched = 0;
  for (int64_t i = 0; i < num_blocks; ++i) {
    for (const int64_t last = std::min(i + 2 * kAhead, num_blocks); hashed < last; ++hashed) {
      hash = chain(hash, hash_block<kSize>(tokens + hashed * block_size_, block_size_, secrets_.data()));
      hashes[hashed % kRing] = hash;
      prefetch(&table_[static_cast<uint32_t>(hash) & table_mask_]);
    }
    for (const int64_t last = std::min(i + kAhead, num_blocks); fetched < last; ++fetched) {
      const auto tag = static_cast<uint32_t>(hashes[fetched % kRing]);
      for (size_t at = tag & table_mask_; table_[at].id != kNoEntry; at = (at + 1) & table_mask_) {
        if (table_[at].tag != tag) continue;
        const EntryId id = table_[at].id;
        prefetch(&look_at(id));
        const char* data = reinterpret_cast<const char*>(token_pointer(id));
        for (size_t offset = 0; offset < sizeof(int32_t) * static_cast<size_t>(block_size_);
             offset += kLine) {
          prefetch(data + offset);
        }
        break;
      }
    }
    EntryId child = lookup<kSize>(parent, hashes[i % kRing], tokens + i * block_size_);
    if (child == kNoEntry) return;
    path.push_back(child);
    parent = child;
  }
}

EntryId PrefixTree::longest_tail(EntryId parent, std::span<const int32_t> tokens, int32_t& common) const {
  EntryId best = kNoEntry;
  common = 0;
  if (tokens.empty()) return best;
  int looked_at = 0;
  for (EntryId id = (*this)[parent].first_child; id != kNoEntry && looked_at < kMaxTailChildren;
       id = (*this)[id].next, ++looked_at) {
    if (look(id).on_device != Presence::kReady) continue;
    std::span<const int32_t> own = this->tokens(id);
    auto [end, unused] = std::mismatch(own.begin(), own.end(), tokens.begin(), tokens.end());
    auto same = static_cast<int32_t>(end - own.begin());
    if (same > common) {
      common = same;
      best = id;
    }
  }
  return best;
}

void PrefixTree::check() const {
  int64_t entries = 0, roots = 0, places = 0;
  for (EntryId id = 0; id < num_ids_; ++id) {
    const Entry& entry = (*this)[id];
    if (!entry.alive) continue;
    int32_t children = 0, on_device = 0, on_disk = 0;
    for (EntryId child = entry.first_child; child != kNoEntry; child = (*this)[child].next) {
      const Entry& below = (*this)[child];
      TACO_CHECK(below.alive && below.parent == id && below.depth == entry.depth + 1 &&
                 below.root == entry.root);
      ++children;
      on_device += below.on_device != Presence::kNone;
      on_disk += below.on_disk != Presence::kNone;
    }
    TACO_CHECK(children == entry.num_children && on_device == entry.device_children &&
               on_disk == entry.disk_children);
    if (entry.is_root()) {
      ++roots;
      TACO_CHECK(entry.num_children > 0 && find_root(root_digests_.at(id)) == id && entry.root == id);
      continue;
    }
    ++entries;
    const Look& look = this->look(id);
    TACO_CHECK(look.parent == entry.parent && look.on_device == entry.on_device && look.idle == entry.idle);
    TACO_CHECK((*this)[entry.parent].alive && find_child(entry.parent, tokens(id)) == id);
  }
  for (const Place& place : table_) places += place.id != kNoEntry;
  TACO_CHECK(entries == num_entries_ && places == num_entries_);
  TACO_CHECK(roots == static_cast<int64_t>(roots_.size()) && roots_.size() == root_digests_.size());
  TACO_CHECK(static_cast<int64_t>(free_ids_.size()) + entries + roots == num_ids_);
}

}  // namespace taco
