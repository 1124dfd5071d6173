#include "sched/invariants.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

namespace {

// holders: of each block, in block tables. may_pin: what the prefix cache moves may be held besides.
void check_pool(const BlockPool& pool, const std::vector<int32_t>& holders, bool may_pin = false) {
  std::vector<bool> is_free(holders.size());
  for (BlockId block : pool.free_list()) {
    TACO_CHECK(block >= 0 && block < pool.size() && !is_free[static_cast<size_t>(block)], "block ", block,
               " twice in the free list");
    is_free[static_cast<size_t>(block)] = true;
  }
  int64_t used = 0, idle = 0;
  for (size_t i = 0; i < holders.size(); ++i) {
    auto block = static_cast<BlockId>(i);
    const int32_t users = pool.num_users(block);
    TACO_CHECK(users == holders[i] || (may_pin && users > holders[i]), "block ", block, " has ", holders[i],
               " holders, stored are ", users);
    TACO_CHECK(is_free[i] == (pool.ref_count(block) == 0), "block ", block, " with ", holders[i], " holders");
    used += users > 0;
    idle += pool.is_idle(block);
  }
  TACO_CHECK(pool.num_idle() == idle && pool.num_free() + idle + used == pool.size());
}

// What is attached to the prefix cache is the cache's own.
void check_attachment(const Scheduler& s, const SeqState& seq) {
  if (seq.attachment.detached) return;
  TACO_CHECK(seq.attachment.blocks * s.config().block_size <= seq.num_committed &&
                 seq.num_committed <= seq.num_computed,
             "sequence ", seq.id, " has ", seq.attachment.blocks, " blocks in the cache, ", seq.num_committed,
             " of ", seq.num_computed, " tokens are committed");
  if (s.prefix_cache()->stats().resets > 0) return;  // of before a reset
  for (int32_t i = 0; i < seq.attachment.blocks; ++i) {
    TACO_CHECK(s.pool().is_kept(seq.blocks.at(static_cast<size_t>(i))), "sequence ", seq.id, ": block ", i,
               " is not the cache's");
  }
}

// Each host block is moved to once, and no device block is written twice before the step.
void check_moves(const StepPlan& plan) {
  std::vector<BlockId> host, device;
  for (const BlockMove& move : plan.swap_out) host.push_back(move.host);
  for (const BlockMove& move : plan.swap_in) device.push_back(move.device);
  for (const BlockCopy& copy : plan.copies) device.push_back(copy.to);
  for (std::vector<BlockId>* written : {&host, &device}) {
    std::sort(written->begin(), written->end());
    TACO_CHECK(std::adjacent_find(written->begin(), written->end()) == written->end(),
               "a block is written twice before the step");
  }
}

// A step that was not advanced writes only blocks that nobody else holds, and each sequence is in it once.
// What was finished since has no blocks any more.
void check_flight(const Scheduler& s, const Scheduler::Flight& flight) {
  const StepPlan& plan = flight.plan;
  check_moves(plan);
  int block_size = s.config().block_size;
  int64_t num_tokens = 0;
  std::vector<const Sequence*> seen;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    seen.push_back(&seq);
    num_tokens += step.count;
    if (seq.status == SeqStatus::kFinished) continue;
    const int32_t known = step.draft ? 1 : step.count;
    TACO_CHECK(seq.status == SeqStatus::kRunning && step.start == seq.num_computed && step.count > 0 &&
               step.start + known <= seq.len());
    TACO_CHECK(step.samplers.empty() == (step.start + known < seq.len()));
    TACO_CHECK(!step.draft || (step.draft->size == step.count && step.samplers.size() == 1 &&
                               step.start + step.count <= s.max_len()));
    TACO_CHECK(!plan.has_trees || step.count <= DraftTree::kMaxNodes);
    int64_t last = blocks_for(step.start + step.count, block_size);
    TACO_CHECK(last <= static_cast<int64_t>(seq.blocks.size()), "sequence ", seq.id,
               ": blocks do not cover the step");
    for (int64_t i = step.start / block_size; i < last; ++i) {
      TACO_CHECK(!s.pool().is_shared(seq.blocks[static_cast<size_t>(i)]), "sequence ", seq.id,
                 " would write a block of another");
    }
  }
  TACO_CHECK(num_tokens == plan.num_tokens && num_tokens <= s.config().max_num_batched_tokens);
  std::sort(seen.begin(), seen.end());
  TACO_CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end(), "a sequence is twice in a plan");
}

// A pending token stands at the end of exactly those sequences that sample in a step that is advanced.
void check_pending(const Scheduler& s, int64_t num_pending) {
  for (int age = 0; age < s.num_in_flight(); ++age) {
    const Scheduler::Flight& flight = s.flight(age);
    TACO_CHECK(!flight.advanced || age == 0);
    if (!flight.advanced) continue;
    for (const SeqState* seq : flight.samplers) {
      if (seq->status == SeqStatus::kFinished) continue;
      TACO_CHECK(seq->tokens.back() == kPendingToken, "sequence ", seq->id, " does not wait for its token");
      --num_pending;
    }
  }
  TACO_CHECK(num_pending == 0, num_pending, " sequences wait for a token of no step");
}

}  // namespace

void check_invariants(const Scheduler& s) {
  std::vector<int32_t> holders(static_cast<size_t>(s.pool().size()), 0);
  std::vector<int32_t> host_holders(static_cast<size_t>(s.host_pool() ? s.host_pool()->size() : 0), 0);
  auto hold_on_host = [&](const SeqState* seq) {
    for (BlockId block : seq->host_blocks) ++host_holders.at(static_cast<size_t>(block));
  };
  int slots = 0;
  int64_t num_pending = 0;
  const SeqState* previous = nullptr;
  for (const SeqState* seq : s.running()) {
    TACO_CHECK(seq->status == SeqStatus::kRunning);
    TACO_CHECK(seq->owner->forked || seq->index == 0);
    TACO_CHECK(previous == nullptr || goes_before(previous->key, seq->key), "running sequences out of order");
    previous = seq;
    num_pending += seq->tokens.back() == kPendingToken;
    TACO_CHECK(seq->len() < 2 || seq->tokens[static_cast<size_t>(seq->len()) - 2] != kPendingToken,
               "sequence ", seq->id, " waits for two tokens");
    hold_on_host(seq);
    TACO_CHECK(seq->host_blocks.empty() || s.num_in_flight() > 0, "sequence ", seq->id,
               " runs and is swapped out");
    slots += slots_of(*seq);
    TACO_CHECK(seq->num_computed >= 0 && seq->num_computed < seq->len(), "sequence ", seq->id, ": ",
               seq->num_computed, " of ", seq->len(), " tokens computed");
    // A full prompt still gets one token.
    bool pending_alone = seq->output_len() == 1 && seq->tokens.back() == kPendingToken;
    TACO_CHECK(seq->len() <= s.max_len() || seq->output_len() == 0 || pending_alone, "sequence ", seq->id,
               " is too long");
    TACO_CHECK(static_cast<int64_t>(seq->blocks.size()) * s.config().block_size >= seq->num_computed,
               "sequence ", seq->id, ": blocks do not cover what is computed");
    std::vector<BlockId> table = seq->blocks;
    for (BlockId block : table) {
      TACO_CHECK(block >= 0 && block < s.pool().size());
      ++holders[static_cast<size_t>(block)];
    }
    if (s.prefix_cache() != nullptr) check_attachment(s, *seq);
    std::sort(table.begin(), table.end());
    TACO_CHECK(std::adjacent_find(table.begin(), table.end()) == table.end(), "a block is twice in a table");
  }
  TACO_CHECK(slots == s.num_slots() && slots <= s.config().max_num_seqs, slots, " slots in use, stored are ",
             s.num_slots());
  for (const SeqState* seq : s.waiting()) {
    TACO_CHECK(seq->status == SeqStatus::kWaiting || seq->status == SeqStatus::kPreempted);
    TACO_CHECK(seq->owner->forked || seq->index == 0);
    TACO_CHECK(seq->tokens.back() != kPendingToken);
    TACO_CHECK(seq->blocks.empty() && static_cast<int64_t>(seq->host_blocks.size()) ==
                                          blocks_for(seq->num_computed, s.config().block_size),
               "sequence ", seq->id, ": ", seq->num_computed, " tokens in ", seq->host_blocks.size(),
               " host blocks");
    hold_on_host(seq);
  }
  const PrefixCache* cache = s.prefix_cache();
  check_pool(s.pool(), holders, cache != nullptr && cache->busy());
  if (cache != nullptr) cache->check();
  if (s.host_pool() != nullptr) check_pool(*s.host_pool(), host_holders);
  check_pending(s, num_pending);
  for (int age = 0; age < s.num_in_flight(); ++age) {
    if (!s.flight(age).advanced) check_flight(s, s.flight(age));
  }
}

}  // namespace taco
