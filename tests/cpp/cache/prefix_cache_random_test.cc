// The prefix cache in a world that does all it may in any order: sequences come, fork, publish, give way and
// are aborted; steps run two deep and are rolled back; transfers run block by block beside them, end late, in
// odd orders and sometimes in failure; the cache is reset, and restarted from what is on disk. The world
// (prefix_cache_world.h) knows at each moment what stands where, and checks it whenever a step reads.
//
// TACO_CACHE_OPS and TACO_CACHE_SEED set the number of operations (100,000; with TACO_LONG_TESTS 10,000,000)
// and the first seed.
#include <gtest/gtest.h>

#include <cstdlib>

#include "prefix_cache_world.h"

namespace taco {
namespace {

constexpr int kMaxTokens = 48;

int64_t number_from(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

class RandomWorld : public NaiveWorld {
 public:
  RandomWorld(const Shape& shape, uint64_t seed) : NaiveWorld(shape, seed) {}

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
  struct Reserved {
    Seq* seq;
    size_t blocks, first_copy, last_copy;
    bool admitted;
  };

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

  void check_matches() {
    if (old_.empty()) return;
    const auto& [root, tokens] = old_[below(old_.size())];
    check_match(root, tokens);
  }

  // -- Transfers

  void maintain() {
    cache_->maintain(now_);
    begin_transfers();
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
    std::erase_if(disk_->blocks, [this](const auto&) { return below(20) == 0; });
    std::vector<std::pair<int64_t, DiskRecord>> records;
    published_.clear();
    for (int64_t slot : disk_->order) {
      auto found = disk_->blocks.find(slot);
      if (found == disk_->blocks.end()) continue;
      records.emplace_back(slot, found->second.first);
      published_.insert(found->second.second.back());
    }
    ASSERT_EQ(records.size(), disk_->blocks.size());
    if (chance(50)) std::shuffle(records.begin(), records.end(), random_);
    if (shape_.disk > 0) cache_->restore(records);
    cache_->check();
  }

  std::vector<std::pair<int, std::vector<int32_t>>> old_;  // texts to go on from
};

class PrefixCacheWorld : public testing::TestWithParam<int> {};

TEST_P(PrefixCacheWorld, EveryHitIsRight) {
  const int64_t operations =
      number_from("TACO_CACHE_OPS", std::getenv("TACO_LONG_TESTS") ? 10000000 : 100000);
  const auto seed = static_cast<uint64_t>(number_from("TACO_CACHE_SEED", 1));
  const NaiveWorld::Shape shapes[] = {
      {40, 0, 0, 1, -1}, {40, 24, 0, 1, -1}, {32, 24, 40, 1, -1}, {40, 30, 30, 2, -1}, {48, 4, 64, 1, 10},
  };
  const NaiveWorld::Shape& shape = shapes[GetParam()];
  const int64_t rounds = 10;
  uint64_t hits = 0, lower_hits = 0, disk_hits = 0, stored_by_steps = 0, exchanged = 0;
  uint64_t declined = 0, failed = 0, rooms_missed = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    RandomWorld world(shape, seed * 1000 + static_cast<uint64_t>(round * 10 + GetParam()));
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
