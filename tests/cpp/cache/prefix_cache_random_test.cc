// The prefix cache in a world that does all it may in any order: sequences come, fork, publish, give way and
// are aborted; steps run two deep and are rolled back; transfers run block by block beside them, end late, in
// odd orders and sometimes in failure; the cache is reset, and restarted from what is on disk.
//
// The world is naive about what it checks: every block of every tier holds, for each token, a hash of all
// tokens up to there, which moves with copies and transfers when these are carried out. A step that reads
// anything else at the time at which it runs has hit a wrong or an unfinished block.
//
// TACO_CACHE_OPS and TACO_CACHE_SEED set the number of operations (100,000; with TACO_LONG_TESTS 10,000,000)
// and the first seed.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <deque>
#include <list>
#include <map>
#include <random>
#include <unordered_set>

#include "cache/prefix_cache.h"

namespace taco {
namespace {

constexpr int kBlock = 4;
constexpr int64_t kFirstHost = 7;
constexpr int kMaxTokens = 48;
constexpr uint64_t kGarbage = 0;
using Content = std::array<uint64_t, kBlock>;

struct Shape {
  int64_t blocks, host, disk;
  int min_accesses;
  int64_t max_idle;
};

int64_t number_from(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

uint64_t chained(uint64_t before, int32_t token) {
  uint64_t x = (before ^ static_cast<uint64_t>(token + 1) * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
  return (x ^ x >> 32) | 1;
}

class World {
 public:
  World(const Shape& shape, uint64_t seed) : shape_(shape), random_(seed), pool_(shape.blocks) {
    device_.resize(static_cast<size_t>(shape.blocks), Content{});
    host_.resize(static_cast<size_t>(kFirstHost + shape.host), Content{});
    make_cache();
  }

  void run(int64_t operations) {
    for (int64_t i = 0; i < operations; ++i) {
      operation();
      check_pool();
      if (below(64) == 0) cache_->check();
      if (testing::Test::HasFatalFailure()) return;
    }
    drain();
  }

  PrefixCacheStats totals;    // of all caches that this world had
  uint64_t rooms_missed = 0;  // fetches that had to ask again

 private:
  struct Seq {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> chain;  // of each token
    int root = 0;
    BlockTable table;
    PrefixCache::Attachment attachment;
    int computed = 0;   // when all that was submitted has run
    int committed = 0;  // of steps that were collected
    int in_flight = 0;
    bool running = false, dead = false;
    uint64_t fetch = 0;
  };
  struct Item {
    Seq* seq;
    BlockTable table;
    int start, count;
  };
  struct Step {
    uint64_t number = 0;
    std::vector<BlockMove> swap_out;
    std::vector<BlockCopy> copies;
    std::vector<Item> items;
    std::vector<uint64_t> wait_for;
    bool ran = false;
  };
  struct Moving {
    Transfer transfer;
    uint64_t after_step;
    bool begun = false;
    std::vector<size_t> left;
    std::vector<uint8_t> failed;
  };
  struct Reserved {
    Seq* seq;
    size_t blocks, first_copy, last_copy;
    bool admitted;
  };

  uint64_t below(uint64_t count) { return random_() % count; }
  bool chance(int percent) { return below(100) < static_cast<uint64_t>(percent); }
  static Digest root_of(int number) {
    Digest digest;
    digest.bytes[5] = static_cast<uint8_t>(number);
    return digest;
  }

  void make_cache() {
    PrefixCacheConfig config;
    config.block_size = kBlock;
    config.block_bytes = 1 << 20;
    config.first_host_block = kFirstHost;
    config.num_host_blocks = shape_.host;
    config.num_disk_blocks = shape_.disk;
    config.min_accesses = shape_.min_accesses;
    config.max_idle_blocks = shape_.max_idle;
    config.seed = random_() | 1;
    if (chance(30)) config.hash_mask = 3;
    cache_ = std::make_unique<PrefixCache>(config, pool_);
  }

  void operation() {
    now_ += 1e-4;
    const uint64_t choice = below(1000);
    if (choice < 90) return arrive();
    if (choice < 300) return step();
    if (choice < 640) return execute();
    if (choice < 760) return collect();
    if (choice < 860) return deliver();
    if (choice < 900) {
      if (Seq* seq = pick(false)) fetch(*seq);
      return;
    }
    if (choice < 940) return abort_or_finish();
    if (choice < 970) return maintain();
    if (choice < 985) return fork();
    if (choice < 990) return cancel();
    if (choice < 995) {
      cache_->measured_prefill(2000,
                               chance(40) ? 1e-3 : 10.0);  // now and then computing is faster than fetching
      return;
    }
    if (below(20) == 0) return reset();
    if (below(40) == 0) return restart();
  }

  // -- Sequences

  void arrive() {
    if (seqs_.size() >= 10) return;
    Seq seq;
    seq.root = static_cast<int>(below(8) == 0);
    // The beginning of an older one, and something else after it.
    if (!old_.empty() && chance(85)) {
      const auto& [root, tokens] = old_[below(old_.size())];
      seq.root = root;
      const size_t size = chance(50) ? tokens.size() : 1 + below(tokens.size());
      seq.tokens.assign(tokens.begin(), tokens.begin() + static_cast<long>(size));
    }
    const size_t length = std::max<size_t>(seq.tokens.size(), 1 + below(kMaxTokens));
    while (seq.tokens.size() < length) seq.tokens.push_back(static_cast<int32_t>(below(3)));
    add_chain(seq);
    if (old_.size() < 24) {
      old_.emplace_back(seq.root, seq.tokens);
    } else {
      old_[below(24)] = {seq.root, seq.tokens};
    }
    seqs_.push_back(std::move(seq));
    if (chance(60)) fetch(seqs_.back());
  }

  static void add_chain(Seq& seq) {
    uint64_t hash = static_cast<uint64_t>(seq.root) * 2 + 12345;
    seq.chain.clear();
    for (int32_t token : seq.tokens) seq.chain.push_back(hash = chained(hash, token));
  }

  Seq* pick(bool running) {
    std::vector<Seq*> found;
    for (Seq& seq : seqs_) {
      if (!seq.dead && seq.running == running) found.push_back(&seq);
    }
    return found.empty() ? nullptr : found[below(found.size())];
  }

  void end(Seq& seq) {
    release_table(pool_, seq.table);
    seq.dead = true;
    cache_->cancel_fetch(seq.fetch);
  }

  void bury() {
    seqs_.remove_if([](const Seq& seq) { return seq.dead && seq.in_flight == 0; });
  }

  void abort_or_finish() {
    Seq* seq = pick(chance(80));
    if (!seq) return;
    if (seq->running && seq->committed < static_cast<int>(seq->tokens.size()) && chance(70)) return;
    end(*seq);
    bury();
  }

  void fork() {
    Seq* seq = pick(true);
    if (!seq || seq->in_flight > 0 || seq->computed == 0 || seqs_.size() >= 10) return;
    Seq twin = *seq;
    twin.fetch = 0;
    twin.table = fork_table(pool_, seq->table, blocks_for(seq->computed, kBlock));
    twin.tokens.resize(static_cast<size_t>(twin.computed));
    while (twin.tokens.size() < std::min<size_t>(seq->tokens.size() + 3, kMaxTokens)) {
      twin.tokens.push_back(static_cast<int32_t>(below(3)));
    }
    if (twin.tokens.size() <= static_cast<size_t>(twin.computed)) {
      release_table(pool_, twin.table);
      return;
    }
    add_chain(twin);
    seqs_.push_back(std::move(twin));
  }

  // -- Steps

  void step() {
    if (flights_.size() == 2) return;
    Step step;
    step.number = next_step_;
    if (flights_.empty() && chance(15)) {
      if (Seq* victim = pick(true)) {
        release_table(pool_, victim->table);
        victim->running = false;
        victim->computed = victim->committed = 0;
        victim->attachment.detached = true;
      }
    }
    // Counted beforehand, as a planner does: whatever this allows must succeed.
    int64_t available = pool_.num_available();
    struct Admission {
      Seq* seq;
      bool loading;
      int tokens, max_tokens;
    };
    std::vector<Admission> admissions;
    std::vector<std::pair<Seq*, int>> work;
    for (Seq& seq : seqs_) {
      if (seq.dead || !seq.running || chance(30)) continue;
      const int left = static_cast<int>(seq.tokens.size()) - seq.computed;
      if (left == 0) continue;
      const int count = 1 + static_cast<int>(below(static_cast<uint64_t>(left)));
      const int64_t last = blocks_for(seq.computed + count, kBlock);
      const int64_t needed = std::max<int64_t>(last - static_cast<int64_t>(seq.table.size()), 0) +
                             num_shared(pool_, seq.table, seq.computed / kBlock, last);
      if (needed > available) continue;
      available -= needed;
      work.emplace_back(&seq, count);
    }
    for (int i = 0; i < 2; ++i) {
      Seq* seq = pick(false);
      if (seq && seq->fetch != 0 && cache_->remaining(seq->fetch, now_) > 0.0 && chance(70)) continue;
      if (!seq || (!admissions.empty() && admissions[0].seq == seq)) continue;
      const int length = static_cast<int>(seq->tokens.size());
      const int max_tokens = chance(5) ? 0 : length - 1;
      const bool loading = chance(50);
      const PrefixCache::Match match = cache_->match(root_of(seq->root), seq->tokens, max_tokens);
      const int tokens = match.tokens(kBlock, loading);
      EXPECT_LE(tokens, max_tokens);
      const int64_t needed = match.idle_blocks - (loading ? 0 : match.loading_idle) + (tokens % kBlock != 0) +
                             blocks_for(length, kBlock) - blocks_for(tokens, kBlock);
      if (needed > available) continue;
      available -= needed;
      admissions.push_back({seq, loading, tokens, max_tokens});
    }
    std::vector<Reserved> reserved;
    for (const Admission& admission : admissions) {
      Seq& seq = *admission.seq;
      const int tokens = cache_->attach(root_of(seq.root), seq.tokens, admission.max_tokens,
                                        admission.loading, seq.table, seq.attachment, step.wait_for);
      ASSERT_EQ(tokens, admission.tokens);
      seq.computed = seq.committed = tokens;
      seq.running = true;
      cache_->cancel_fetch(std::exchange(seq.fetch, 0));
    }
    auto reserve = [&](Seq& seq, int count, int64_t blocks, bool admitted) {
      Reserved entry{&seq, seq.table.size(), step.copies.size(), 0, admitted};
      make_writable(pool_, seq.table, seq.computed / kBlock, blocks_for(seq.computed + count, kBlock),
                    step.copies);
      entry.last_copy = step.copies.size();
      ASSERT_TRUE(grow_table(pool_, seq.table, blocks));
      reserved.push_back(entry);
      step.items.push_back({&seq, seq.table, seq.computed, count});
    };
    for (auto [seq, count] : work) reserve(*seq, count, blocks_for(seq->computed + count, kBlock), false);
    for (const Admission& admission : admissions) {
      const int left = static_cast<int>(admission.seq->tokens.size()) - admission.tokens;
      reserve(*admission.seq, 1 + static_cast<int>(below(static_cast<uint64_t>(left))),
              blocks_for(static_cast<int64_t>(admission.seq->tokens.size()), kBlock), true);
    }
    cache_->take_evictions(step.number, step.swap_out, step.wait_for);
    ++next_step_;
    if (chance(8)) return roll_back(step, reserved);
    for (const Item& item : step.items) {
      item.seq->computed += item.count;
      ++item.seq->in_flight;
    }
    flights_.push_back(std::move(step));
    if (chance(80)) maintain();
  }

  void roll_back(const Step& step, const std::vector<Reserved>& reserved) {
    for (auto it = reserved.rbegin(); it != reserved.rend(); ++it) {
      Seq& seq = *it->seq;
      shrink_table(pool_, seq.table, static_cast<int64_t>(it->blocks));
      for (size_t i = it->last_copy; i-- > it->first_copy;) {
        auto at = std::find(seq.table.begin(), seq.table.end(), step.copies[i].to);
        pool_.retain(step.copies[i].from);
        pool_.release(step.copies[i].to);
        *at = step.copies[i].from;
      }
      if (!it->admitted) continue;
      release_table(pool_, seq.table);
      seq.running = false;
      seq.computed = seq.committed = 0;
      seq.attachment.detached = true;
    }
    cache_->rolled_back(step.number);
  }

  void collect() {
    if (flights_.empty() || !flights_.front().ran) return;
    Step step = std::move(flights_.front());
    flights_.pop_front();
    cache_->stepped(step.number);
    for (const Item& item : step.items) {
      Seq& seq = *item.seq;
      --seq.in_flight;
      if (seq.dead) continue;
      seq.committed = item.start + item.count;
      const int full = seq.committed / kBlock;
      cache_->publish(seq.tokens, full, seq.table, seq.attachment);
      if (seq.attachment.detached) continue;
      ASSERT_EQ(seq.attachment.blocks, full);
      for (int i = 0; i < full; ++i) published_.insert(seq.chain[static_cast<size_t>((i + 1) * kBlock) - 1]);
      // The sequence holds it: it cannot have gone.
      const PrefixCache::Match match = cache_->match(root_of(seq.root), seq.tokens, full * kBlock);
      ASSERT_EQ(match.device_blocks + match.loading_blocks, full);
      if (seq.committed == static_cast<int>(seq.tokens.size()) && chance(70)) end(seq);
    }
    bury();
    check_matches();
  }

  // Nothing is found that nobody published.
  void check_matches() {
    if (old_.empty()) return;
    const auto& [root, tokens] = old_[below(old_.size())];
    const auto length = static_cast<int32_t>(tokens.size());
    const PrefixCache::Match match = cache_->match(root_of(root), tokens, length);
    const int found = match.device_blocks + match.loading_blocks + match.lower_blocks;
    Seq seq;
    seq.root = root;
    seq.tokens = tokens;
    add_chain(seq);
    for (int i = 0; i < found; ++i) {
      ASSERT_TRUE(published_.contains(seq.chain[static_cast<size_t>((i + 1) * kBlock) - 1]));
    }
  }

  // -- Transfers

  void maintain() {
    cache_->maintain(now_);
    begin_transfers();
  }
  void begin_transfers() {
    std::vector<Transfer> transfers;
    cache_->take_transfers(transfers);
    for (Transfer& transfer : transfers) {
      Moving moving;
      const size_t size = std::max(transfer.moves.size(), transfer.disk.size());
      ASSERT_GT(size, 0u);
      for (size_t i = 0; i < size; ++i) moving.left.push_back(i);
      moving.failed.assign(size, 0);
      moving.after_step = next_step_;  // steps below: submitted, or run long ago
      moving.transfer = std::move(transfer);
      moving_.push_back(std::move(moving));
    }
  }

  void fetch(Seq& seq) {
    if (seq.fetch != 0) {
      ASSERT_GE(cache_->remaining(seq.fetch, now_), 0.0);
      return;
    }
    uint64_t id = 0;
    const auto length = static_cast<int32_t>(seq.tokens.size());
    const auto spare = static_cast<int64_t>(below(8));
    const PrefixCache::Fetch result =
        cache_->fetch(root_of(seq.root), seq.tokens, length - 1, spare, now_, id);
    rooms_missed += result == PrefixCache::Fetch::kNoRoom;
    if (result == PrefixCache::Fetch::kStarted) {
      ASSERT_NE(id, 0u);
      seq.fetch = id;
    }
    begin_transfers();
  }
  void cancel() {
    if (Seq* seq = pick(false)) cache_->cancel_fetch(std::exchange(seq->fetch, 0));
  }

  bool finished_moving(uint64_t id) const {
    for (const Moving& moving : moving_) {
      if (moving.transfer.id == id) return moving.left.empty();
    }
    return true;
  }

  void execute() {
    std::vector<Moving*> ready;
    for (Moving& moving : moving_) {
      if (moving.left.empty()) continue;
      const bool on_device = !moving.transfer.moves.empty();
      bool waits = false;
      for (const Step& step : flights_) waits |= on_device && !step.ran && step.number < moving.after_step;
      if (!waits) ready.push_back(&moving);
    }
    Step* next = nullptr;
    for (Step& step : flights_) {
      if (step.ran) continue;
      next = &step;
      break;
    }
    if (next) {
      for (uint64_t id : next->wait_for) {
        if (!finished_moving(id)) next = nullptr;
        if (!next) break;
      }
    }
    const size_t choices = ready.size() + (next ? 1 : 0);
    if (choices == 0) return;
    const size_t choice = below(choices);
    if (choice == ready.size()) return run(*next);
    for (uint64_t i = 1 + below(3); i > 0; --i) move_one(*ready[choice]);
  }

  void run(Step& step) {
    step.ran = true;
    for (const BlockMove& move : step.swap_out) host_at(move.host) = device_at(move.device);
    for (const BlockCopy& copy : step.copies) device_at(copy.to) = device_at(copy.from);
    // All is read before anything is written: the sequences of a step do not see each other.
    for (const Item& item : step.items) {
      if (item.seq->dead) continue;
      for (int t = 0; t < item.start; ++t) {
        const BlockId block = item.table[static_cast<size_t>(t / kBlock)];
        ASSERT_EQ(device_at(block)[static_cast<size_t>(t % kBlock)], item.seq->chain[static_cast<size_t>(t)])
            << "step " << step.number << " reads token " << t << " in block " << block;
      }
    }
    for (const Item& item : step.items) {
      for (int t = item.start; t < item.start + item.count; ++t) {
        Content& content = device_at(item.table[static_cast<size_t>(t / kBlock)]);
        content[static_cast<size_t>(t % kBlock)] = item.seq->chain[static_cast<size_t>(t)];
      }
    }
  }

  void move_one(Moving& moving) {
    if (moving.left.empty()) return;
    const Transfer& transfer = moving.transfer;
    if (!moving.begun) {
      moving.begun = true;
      for (const BlockMove& move : transfer.moves) {
        (transfer.kind == TransferKind::kLoad ? device_at(move.device) : host_at(move.host)) = Content{};
      }
      for (const DiskMove& move : transfer.disk) {
        if (transfer.kind == TransferKind::kRead) host_at(move.host) = Content{};
        if (transfer.kind == TransferKind::kWrite) disk_.erase(move.slot);
      }
    }
    const size_t at = below(moving.left.size());
    const size_t i = moving.left[at];
    moving.left.erase(moving.left.begin() + static_cast<long>(at));
    const bool fails = transfer.kind != TransferKind::kLoad && below(60) == 0;
    moving.failed[i] = fails;
    if (fails) return;
    switch (transfer.kind) {
      case TransferKind::kStore:
        host_at(transfer.moves[i].host) = device_at(transfer.moves[i].device);
        break;
      case TransferKind::kLoad:
        device_at(transfer.moves[i].device) = host_at(transfer.moves[i].host);
        break;
      case TransferKind::kWrite:
        disk_[transfer.disk[i].slot] = {transfer.records.at(i), host_at(transfer.disk[i].host)};
        break;
      case TransferKind::kRead: {
        auto found = disk_.find(transfer.disk[i].slot);
        ASSERT_TRUE(found != disk_.end());
        ASSERT_EQ(found->second.first.key, transfer.records.at(i).key);
        host_at(transfer.disk[i].host) = found->second.second;
        break;
      }
    }
  }

  void deliver() {
    std::vector<std::list<Moving>::iterator> done;
    for (auto it = moving_.begin(); it != moving_.end(); ++it) {
      if (it->left.empty()) done.push_back(it);
    }
    if (done.empty()) return;
    auto it = done[below(done.size())];
    TransferResult result{it->transfer.id, 1e-4 * static_cast<double>(1 + below(50)), {}};
    if (std::count(it->failed.begin(), it->failed.end(), 1) > 0) result.failed = it->failed;
    moving_.erase(it);
    cache_->finished(result, now_);
    begin_transfers();
  }

  // -- The end of things

  void reset() {
    cache_->reset();
    cache_->check();
    EXPECT_EQ(cache_->stats().entries, 0);
    EXPECT_EQ(pool_.num_idle(), 0);
    published_.clear();
  }

  void drain() {
    for (Seq& seq : seqs_) {
      if (!seq.dead) end(seq);
    }
    while (!flights_.empty() || !moving_.empty()) {
      execute();
      collect();
      deliver();
      if (testing::Test::HasFatalFailure()) return;
    }
    bury();
    cache_->check();
    ASSERT_TRUE(seqs_.empty());
    ASSERT_FALSE(cache_->busy());
    ASSERT_EQ(cache_->stats().fetches, 0);
    ASSERT_EQ(pool_.num_available(), pool_.size());
    const PrefixCacheStats stats = cache_->stats();
    for (int tier = 0; tier < kNumCacheTiers; ++tier) {
      totals.blocks_hit[static_cast<size_t>(tier)] += stats.blocks_hit[static_cast<size_t>(tier)];
      totals.evicted[static_cast<size_t>(tier)] += stats.evicted[static_cast<size_t>(tier)];
    }
    totals.stored += stats.stored;
    totals.stored_by_steps += stats.stored_by_steps;
    totals.exchanged += stats.exchanged;
    totals.failed += stats.failed;
    totals.fetches_declined += stats.fetches_declined;
  }

  // All is lost but the disk, some of which is spoilt.
  void restart() {
    drain();
    cache_.reset();
    ASSERT_EQ(pool_.num_free(), pool_.size());
    std::fill(device_.begin(), device_.end(), Content{});
    std::fill(host_.begin(), host_.end(), Content{});
    make_cache();
    std::erase_if(disk_, [this](const auto&) { return below(20) == 0; });
    std::vector<std::pair<int64_t, DiskRecord>> records;
    published_.clear();
    for (const auto& [slot, item] : disk_) {
      records.emplace_back(slot, item.first);
      published_.insert(item.second.back());
    }
    std::shuffle(records.begin(), records.end(), random_);
    if (shape_.disk > 0) cache_->restore(records);
    cache_->check();
  }

  // free + idle + in use = total; the tables' holds are among those in use.
  void check_pool() {
    int64_t used = 0;
    std::vector<int32_t> holders(static_cast<size_t>(pool_.size()));
    for (const Seq& seq : seqs_) {
      for (BlockId block : seq.table) ++holders[static_cast<size_t>(block)];
    }
    const bool exact = !cache_->busy() && cache_->stats().fetches == 0;
    for (BlockId block = 0; block < pool_.size(); ++block) {
      const int32_t users = pool_.num_users(block);
      used += users > 0;
      ASSERT_GE(users, holders[static_cast<size_t>(block)]);
      if (exact) {
        ASSERT_EQ(users, holders[static_cast<size_t>(block)]);
      }
    }
    ASSERT_EQ(pool_.num_free() + pool_.num_idle() + used, pool_.size());
  }

  Content& device_at(BlockId block) { return device_.at(static_cast<size_t>(block)); }
  Content& host_at(BlockId block) {
    EXPECT_GE(block, kFirstHost);
    return host_.at(static_cast<size_t>(block));
  }

  Shape shape_;
  std::mt19937_64 random_;
  BlockPool pool_;
  std::unique_ptr<PrefixCache> cache_;
  std::vector<Content> device_, host_;
  std::map<int64_t, std::pair<DiskRecord, Content>> disk_;
  std::list<Seq> seqs_;
  std::vector<std::pair<int, std::vector<int32_t>>> old_;
  std::deque<Step> flights_;
  std::list<Moving> moving_;
  std::unordered_set<uint64_t> published_;
  uint64_t next_step_ = 1;
  double now_ = 0.0;
};

class PrefixCacheWorld : public testing::TestWithParam<int> {};

TEST_P(PrefixCacheWorld, EveryHitIsRight) {
  const int64_t operations =
      number_from("TACO_CACHE_OPS", std::getenv("TACO_LONG_TESTS") ? 10000000 : 100000);
  const auto seed = static_cast<uint64_t>(number_from("TACO_CACHE_SEED", 1));
  const Shape shapes[] = {
      {40, 0, 0, 1, -1}, {40, 24, 0, 1, -1}, {32, 24, 40, 1, -1}, {40, 30, 30, 2, -1}, {48, 4, 64, 1, 10},
  };
  const Shape& shape = shapes[GetParam()];
  const int64_t rounds = 10;
  uint64_t hits = 0, lower_hits = 0, disk_hits = 0, stored_by_steps = 0, exchanged = 0;
  uint64_t declined = 0, failed = 0, rooms_missed = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    World world(shape, seed * 1000 + static_cast<uint64_t>(round * 10 + GetParam()));
    world.run(operations / rounds);
    if (HasFatalFailure()) FAIL() << "round " << round << " of seed " << seed;
    hits += world.totals.blocks_hit[0];
    lower_hits += world.totals.blocks_hit[1];
    disk_hits += world.totals.blocks_hit[2];
    stored_by_steps += world.totals.stored_by_steps;
    exchanged += world.totals.exchanged;
    declined += world.totals.fetches_declined;
    failed += world.totals.failed;
    rooms_missed += world.rooms_missed;
  }
  // It must have had something to get wrong.
  EXPECT_GT(hits, 100u);
  EXPECT_GT(exchanged, 10u);
  const bool host = shape.host > 0, disk = shape.disk > 0;
  EXPECT_EQ(lower_hits > 0, host);
  EXPECT_EQ(stored_by_steps > 10, host);
  EXPECT_EQ(declined > 0, host);
  EXPECT_EQ(rooms_missed > 10, host);
  EXPECT_EQ(failed > 10, host);
  EXPECT_EQ(disk_hits > 10, disk);
  std::printf(
      "blocks hit on the device %lu, host %lu, disk %lu; stored by steps %lu, exchanged %lu, failed %lu; "
      "fetches "
      "declined %lu, without room %lu\n",
      hits, lower_hits, disk_hits, stored_by_steps, exchanged, failed, declined, rooms_missed);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PrefixCacheWorld, testing::Range(0, 5));

}  // namespace
}  // namespace taco
