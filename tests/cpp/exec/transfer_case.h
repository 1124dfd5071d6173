// Prefixes of tokens whose KV blocks are moved about at random between device and host, by transfers and by
// steps, while steps go on with them: what a step computes shows whether every block held what it should.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "cache/transfer.h"
#include "exec/executor.h"

namespace taco::testing {

class TransferCase {
 public:
  struct Counts {
    int steps = 0, stores = 0, loads = 0, swaps = 0, waits_load = 0, waits_store = 0;
    bool enough() const {
      return steps > 100 && stores > 50 && loads > 50 && swaps > 10 && waits_load + waits_store > 0;
    }
  };
  // `tolerance`: of a logprob, between a prefix computed at once and its last token alone.
  TransferCase(Executor& executor, unsigned seed, double tolerance)
      : executor_(executor), bs_(executor.kv_cache().block_size), tolerance_(tolerance), random_(seed) {
    for (BlockId b = 0; b < static_cast<BlockId>(executor.kv_cache().num_blocks); ++b)
      free_device_.push_back(b);
    for (BlockId b = 0; b < static_cast<BlockId>(executor.kv_cache().num_host_blocks); ++b)
      free_host_.push_back(b);
    params_ = std::make_shared<SamplingParams>();
    params_->temperature = 0.0f;
    for (int i = 0; i < kPrefixes; ++i) {
      Prefix& p = prefixes_.emplace_back();
      const int blocks = 1 + i % 4;
      for (int t = 0; t < blocks * bs_ + 1; ++t)
        p.tokens.push_back(static_cast<int32_t>(random_() % static_cast<unsigned>(executor.vocab_size())));
      p.scratch = take(free_device_);
    }
  }

  // How fast the threads are decides how much is open at a time: as many rounds as there is something to see.
  void run() {
    for (int i = 0; (i < 250 || (i < 50000 && !counts.enough())) && !::testing::Test::HasFailure(); ++i)
      round();
    drain();
    EXPECT_TRUE(counts.enough()) << counts.steps << " steps, " << counts.stores << " stores, " << counts.loads
                                 << " loads, " << counts.swaps << " swaps, " << counts.waits_load << " + "
                                 << counts.waits_store << " waits";
  }

  Counts counts;

 private:
  void round() {
    poll();
    StepPlan plan;
    std::vector<Sequence> sequences(2 * kPrefixes);
    std::vector<Transfer> transfers;
    std::set<int> in_step;  // prefixes that the step reads or writes
    // What the step computes: the last token of some prefixes, and in some rounds whole prefixes in new
    // blocks.
    const bool decode_only = random_() % 2 == 0;
    if (!decode_only) {
      for (int i = 0; i < kPrefixes; ++i)
        if (prefixes_[i].device.empty() && prefixes_[i].host.empty() && chance(2))
          compute(i, plan, sequences, in_step);
    }
    for (int i = 0; i < kPrefixes; ++i)
      if (!prefixes_[i].device.empty() && !in_step.count(i) && chance(2)) go_on(i, plan, sequences, in_step);
    // Swaps are the step's own, in its order.
    for (int i = 0; i < kPrefixes; ++i) {
      Prefix& p = prefixes_[i];
      if (in_step.count(i) || p.load || p.store || !chance(8)) continue;
      if (!p.device.empty() && p.host.empty() && free_host_.size() >= p.device.size()) {
        for (BlockId b : p.device)
          plan.swap_out.push_back({b, take(free_host_)}), p.host.push_back(plan.swap_out.back().host);
        drop_device(p);
        ++counts.swaps;
      } else if (p.device.empty() && !p.host.empty() && free_device_.size() >= p.host.size()) {
        for (BlockId h : p.host)
          plan.swap_in.push_back({allocate(plan), h}), p.device.push_back(plan.swap_in.back().device);
        ++counts.swaps;
      }
    }
    const bool nothing = plan.seqs.empty() && plan.swap_in.empty() && plan.swap_out.empty();
    if (!nothing) executor_.submit(plan), ++counts.steps;
    // Transfers begin while the step runs: stores of what it wrote, loads into what it still reads.
    for (int i = 0; i < kPrefixes; ++i) {
      Prefix& p = prefixes_[i];
      if (!p.device.empty() && p.host.empty() && !p.load && chance(3)) begin_store(p);
      if (!p.device.empty() && !p.host.empty() && !p.load && chance(3)) drop_device(p);
      if (p.device.empty() && !p.host.empty() && chance(2)) begin_load(p);
      if (!p.host.empty() && !p.device.empty() && !p.load && !p.store && chance(6)) give(free_host_, p.host);
      if (p.host.empty() && !p.device.empty() && !p.load && !p.store && chance(10)) drop_device(p);
    }
    if (nothing) return;
    const StepOutput output = executor_.collect();
    ASSERT_EQ(output.sampled.size(), plan.seqs.size());
    for (size_t k = 0; k < plan.seqs.size(); ++k) {
      const SampledToken& got = output.sampled[k];
      ASSERT_EQ(got.error, "");
      Prefix& p = prefixes_[owner_[got.seq]];
      if (!p.expected) p.expected = {got.token, got.logprob};
      EXPECT_EQ(got.token, p.expected->first) << "prefix " << owner_[got.seq];
      EXPECT_NEAR(got.logprob, p.expected->second, tolerance_) << "prefix " << owner_[got.seq];
    }
  }

  void drain() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (!open_.empty() && std::chrono::steady_clock::now() < deadline) {
      poll();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    EXPECT_TRUE(open_.empty()) << open_.size() << " transfers did not finish";
  }

  static constexpr int kPrefixes = 7;
  struct Prefix {
    std::vector<int32_t> tokens;  // whole blocks and one more, which stands in `scratch`
    std::vector<BlockId> device, host;
    BlockId scratch = -1;
    uint64_t load = 0, store = 0;  // under way
    uint64_t stored_by = 0;        // the host's blocks hold it when this has finished
    std::optional<std::pair<int32_t, float>> expected;
  };

  bool chance(unsigned n) { return random_() % n == 0; }
  BlockId take(std::vector<BlockId>& from) {
    const size_t i = random_() % from.size();
    std::swap(from[i], from.back());
    const BlockId b = from.back();
    from.pop_back();
    return b;
  }
  static void give(std::vector<BlockId>& to, std::vector<BlockId>& blocks) {
    to.insert(to.end(), blocks.begin(), blocks.end());
    blocks.clear();
  }
  // For a step to write: it waits for the store that still reads the block.
  BlockId allocate(StepPlan& plan) {
    const BlockId b = take(free_device_);
    if (auto store = read_by_.find(b); store != read_by_.end() && open_.count(store->second)) {
      plan.wait_for.push_back(store->second);
      ++counts.waits_store;
    }
    return b;
  }
  void drop_device(Prefix& p) {
    if (p.store)
      for (BlockId b : p.device) read_by_[b] = p.store;
    give(free_device_, p.device);
  }
  void add(int i, int32_t start, StepPlan& plan, std::vector<Sequence>& sequences, std::set<int>& in_step) {
    Prefix& p = prefixes_[i];
    Sequence& seq = sequences[plan.seqs.size()];
    seq.id = ++last_seq_;
    owner_[seq.id] = i;
    seq.tokens = p.tokens;
    seq.prompt_len = static_cast<int32_t>(p.tokens.size());
    seq.params = params_;
    seq.blocks = p.device;
    seq.blocks.push_back(p.scratch);
    const auto count = static_cast<int32_t>(p.tokens.size()) - start;
    plan.seqs.push_back({.sequence = &seq, .start = start, .count = count, .samplers = {&seq}});
    plan.num_tokens += count;
    in_step.insert(i);
  }
  void compute(int i, StepPlan& plan, std::vector<Sequence>& sequences, std::set<int>& in_step) {
    Prefix& p = prefixes_[i];
    const size_t blocks = p.tokens.size() / static_cast<size_t>(bs_);
    if (free_device_.size() < blocks) return;
    for (size_t b = 0; b < blocks; ++b) p.device.push_back(allocate(plan));
    add(i, 0, plan, sequences, in_step);
  }
  void go_on(int i, StepPlan& plan, std::vector<Sequence>& sequences, std::set<int>& in_step) {
    Prefix& p = prefixes_[i];
    if (p.load) plan.wait_for.push_back(p.load), ++counts.waits_load;
    add(i, static_cast<int32_t>(p.tokens.size()) - 1, plan, sequences, in_step);
  }
  void begin_store(Prefix& p) {
    if (free_host_.size() < p.device.size()) return;
    Transfer t{.id = ++last_id_, .kind = TransferKind::kStore};
    for (BlockId b : p.device) {
      p.host.push_back(take(free_host_));
      t.moves.push_back({b, p.host.back()});
    }
    p.store = p.stored_by = t.id;
    open_.insert(t.id);
    executor_.begin(t);
    ++counts.stores;
  }
  void begin_load(Prefix& p) {
    // A block that a store still reads is not loaded into.
    std::vector<BlockId> usable;
    for (BlockId b : free_device_)
      if (!(read_by_.count(b) && open_.count(read_by_[b]))) usable.push_back(b);
    if (usable.size() < p.host.size()) return;
    std::shuffle(usable.begin(), usable.end(), random_);
    Transfer t{.id = ++last_id_, .kind = TransferKind::kLoad};
    if (open_.count(p.stored_by)) t.after = p.stored_by;
    for (BlockId h : p.host) {
      p.device.push_back(usable.back());
      std::erase(free_device_, usable.back());
      usable.pop_back();
      t.moves.push_back({p.device.back(), h});
    }
    p.load = t.id;
    open_.insert(t.id);
    executor_.begin(t);
    ++counts.loads;
  }
  void poll() {
    std::vector<TransferResult> results;
    executor_.finished(results);
    for (const TransferResult& r : results) {
      EXPECT_TRUE(r.failed.empty());
      EXPECT_EQ(open_.erase(r.id), 1u);
      for (Prefix& p : prefixes_) {
        if (p.load == r.id) p.load = 0;
        if (p.store == r.id) p.store = 0;
      }
    }
  }

  Executor& executor_;
  int bs_;
  double tolerance_;
  std::mt19937 random_;
  std::shared_ptr<SamplingParams> params_;
  std::vector<Prefix> prefixes_;
  std::vector<BlockId> free_device_, free_host_;
  std::map<BlockId, uint64_t> read_by_;  // the last store that read a block which was dropped
  std::set<uint64_t> open_;
  std::map<SeqId, int> owner_;
  uint64_t last_id_ = 0;
  SeqId last_seq_ = 0;
};

}  // namespace taco::testing
