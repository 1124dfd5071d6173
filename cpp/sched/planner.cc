#include "sched/planner.h"

#include <algorithm>

#include "sched/stop_rules.h"

namespace taco {

Scheduler::Planner::Planner(const Scheduler& scheduler, Proposal& out)
    : s_(scheduler),
      out_(out),
      budget_(scheduler.config_.max_num_batched_tokens),
      free_(scheduler.pool_.num_available()),
      num_slots_(scheduler.num_slots_),
      alive_(scheduler.running_.size()) {
  out.preempt.clear();
  out.admit.clear();
  out.hits.clear();
  out.items.clear();
  out.num_tokens = 0;
  out.prompt_first = out.has_trees = false;
}

Scheduler::Planner::~Planner() {
  for (BlockId block : s_.given_up_list_) s_.given_up_[static_cast<size_t>(block)] = 0;
  s_.given_up_list_.clear();
}

void Scheduler::Planner::plan() {
  if (s_.config_.priority_scheduling) displace_by_priority();
  int32_t kept = s_.config_.enable_chunked_prefill ? 0 : tokens_kept_for_a_whole_prompt();
  plan_last_tokens(budget_ - kept);
  plan_known_tokens();
  if (!out_of_blocks_) plan_admissions();
  if (s_.config_.max_sampled_rows > 0 && s_.num_flights_ == 0) plan_drafts();
  out_.prompt_first = kept > 0;
}

int32_t Scheduler::Planner::holders(BlockId block) const {
  return s_.pool_.ref_count(block) - s_.given_up_[static_cast<size_t>(block)];
}

// What only the prefix cache holds then counts as free.
void Scheduler::Planner::give_up(BlockId block) {
  if (s_.pool_.num_users(block) - s_.given_up_[static_cast<size_t>(block)] == 1) ++free_;
  s_.given_up_list_.push_back(block);
  ++s_.given_up_[static_cast<size_t>(block)];
}

void Scheduler::Planner::give_up_blocks(const SeqState& seq) {
  for (BlockId block : seq.blocks) give_up(block);
}

int64_t Scheduler::Planner::blocks_needed(const SeqState& seq, int64_t num_blocks, int32_t count) const {
  int64_t have = static_cast<int64_t>(seq.blocks.size());
  int64_t needed = std::max<int64_t>(num_blocks - have, 0);
  int64_t last = std::min(have, blocks_for(seq.num_computed + count, s_.config_.block_size));
  for (int64_t i = seq.num_computed / s_.config_.block_size; i < last; ++i) {
    needed += holders(seq.blocks[static_cast<size_t>(i)]) > 1;  // copy on write
  }
  return needed;
}

// needed: blocks_needed of the same count.
void Scheduler::Planner::take(SeqState& seq, int64_t needed, int32_t count) {
  if (needed == 0) return;
  free_ -= needed;
  int64_t have = static_cast<int64_t>(seq.blocks.size());
  int64_t last = std::min(have, blocks_for(seq.num_computed + count, s_.config_.block_size));
  for (int64_t i = seq.num_computed / s_.config_.block_size; i < last; ++i) {
    BlockId block = seq.blocks[static_cast<size_t>(i)];
    if (holders(block) > 1) give_up(block);
  }
}

void Scheduler::Planner::preempt_last() {
  SeqState& victim = *s_.running_[--alive_];
  give_up_blocks(victim);
  num_slots_ -= slots_of(victim);
  out_.preempt.push_back(&victim);
}

void Scheduler::Planner::forget_preemptions() {
  for (BlockId block : s_.given_up_list_) s_.given_up_[static_cast<size_t>(block)] = 0;
  s_.given_up_list_.clear();
  out_.preempt.clear();
  alive_ = s_.running_.size();
  free_ = s_.pool_.num_available();
  num_slots_ = s_.num_slots_;
}

void Scheduler::Planner::schedule(SeqState& seq, int32_t count) {
  out_.items.push_back({&seq, count});
  out_.num_tokens += count;
  budget_ -= count;
}

void Scheduler::Planner::pass(const SeqState& seq) {
  passed_slots_ += slots_of(seq);
  passed_blocks_ += s_.blocks_to_come(seq);
}

// Whether somebody who goes before it is to compute a good deal of its prompt that the cache lacks. Then it
// waits, and finds it there.
bool Scheduler::Planner::awaits_prefix(const SeqState& seq) const {
  if (!s_.looks_up(seq)) return false;
  const int32_t bs = s_.config_.block_size;
  int32_t shared = 0;  // tokens
  auto compare = [&](const SeqState& other, int32_t published) {
    const int32_t most = std::min(seq.len() - 1, other.len());
    if (most - published < s_.config_.min_shared_tokens || other.owner->cache_root != seq.owner->cache_root)
      return;
    const auto differ = std::mismatch(seq.tokens.begin(), seq.tokens.begin() + most, other.tokens.begin());
    const auto common = static_cast<int32_t>(differ.first - seq.tokens.begin()) / bs * bs;
    if (common - published >= s_.config_.min_shared_tokens) shared = std::max(shared, common);
  };
  for (size_t i = 0; i < alive_; ++i) {
    const SeqState& other = *s_.running_[i];
    if (!goes_before(other.key, seq.key)) break;
    if (!other.attachment.detached) compare(other, other.attachment.blocks * bs);
  }
  for (size_t i = 0; i < out_.admit.size(); ++i) compare(*out_.admit[i], out_.hits[i].tokens);
  if (shared == 0) return false;
  const PrefixCache::Match match = s_.cache_->match(seq.owner->cache_root, seq.tokens, shared);
  return shared - (match.device_blocks + match.loading_blocks + match.lower_blocks) * bs >=
         s_.config_.min_shared_tokens;
}

const SeqState* Scheduler::Planner::first_waiting() {
  passed_slots_ = 0;
  passed_blocks_ = 0;
  for (const SeqState* seq : s_.waiting_) {
    if (passed_slots_ >= s_.config_.max_num_seqs) return nullptr;
    if (!awaits_fetch(*seq) && !awaits_prefix(*seq)) return seq;
    pass(*seq);
  }
  return nullptr;
}

// With as many cached tokens as there are blocks for: never fewer than would fit without a cache.
void Scheduler::Planner::look_up(const SeqState& seq, int64_t room, Admission& admission) const {
  const bool loading = seq.fetch.state == FetchState::kNearby;
  const int32_t bs = s_.config_.block_size;
  for (int32_t max_tokens = seq.len() - 1;;) {
    const PrefixCache::Match match = s_.cache_->match(seq.owner->cache_root, seq.tokens, max_tokens);
    const int32_t tokens = match.tokens(bs, loading);
    const int32_t blocks = tokens / bs, tail = tokens % bs;
    // What a victim of this plan holds now will be idle when it is attached.
    int64_t taken = match.idle_blocks - (loading ? 0 : match.loading_idle);
    if (!out_.preempt.empty()) taken = blocks + (tail > 0);
    admission.hit = {tokens, max_tokens, loading};
    admission.blocks = blocks_for(seq.len(), bs) - blocks + taken;
    // The tail costs a block more than computing it, for as long as it takes to copy it.
    if (tail == 0 || admission.blocks <= room) return;
    max_tokens = blocks * bs;
  }
}

bool Scheduler::Planner::fits(const SeqState& seq, Admission& admission) const {
  if (num_slots_ + passed_slots_ + slots_of(seq) > s_.config_.max_num_seqs) return false;
  int64_t spare = 0;
  int64_t others = static_cast<int64_t>(alive_ + out_.admit.size());
  if (others > 0) {
    spare = s_.watermark_blocks_;
    // What was preempted comes back only when each of the others could take one more block, lest it be
    // preempted again before it has been recomputed.
    if (seq.status == SeqStatus::kPreempted) spare = std::max(spare, others);
    spare += slots_of(seq) - 1;  // each fork will soon want a block of its own
  }
  const int64_t room = free_ - passed_blocks_ - spare;
  admission = {{}, blocks_for(seq.len(), s_.config_.block_size)};
  if (room > 0 && s_.looks_up(seq)) look_up(seq, room, admission);
  return admission.blocks <= room;
}

// The first in the queue takes the place of running sequences of lower priority, if that is enough to admit
// it.
void Scheduler::Planner::displace_by_priority() {
  const SeqState* head = first_waiting();
  if (head == nullptr || alive_ == 0) return;
  Admission admission;
  while (!fits(*head, admission)) {
    if (alive_ == 0 || !may_displace(head->key, s_.running_[alive_ - 1]->key)) {
      forget_preemptions();
      return;
    }
    preempt_last();
  }
  displaced_ = !out_.preempt.empty();
}

// Without chunking, a prompt that needs more of the budget than the running sequences leave would wait for as
// long as any of them runs. It goes first instead, and they get what is left; but never in two steps in a
// row.
int32_t Scheduler::Planner::tokens_kept_for_a_whole_prompt() {
  const SeqState* head = s_.last_was_prompt_first_ ? nullptr : first_waiting();
  if (head == nullptr || head->len() - head->num_computed + static_cast<int64_t>(alive_) <= budget_) return 0;
  Admission admission;
  if (!fits(*head, admission)) return 0;
  const int32_t left = admission.left(*head);
  return left <= budget_ && left + static_cast<int64_t>(alive_) > budget_ ? left : 0;
}

void Scheduler::Planner::plan_last_tokens(int32_t budget) {
  for (size_t i = 0; i < alive_ && budget > 0; ++i) {
    SeqState& seq = *s_.running_[i];
    if (seq.len() - seq.num_computed != 1 || awaits_its_last(seq, s_.max_len_)) continue;
    int64_t num_blocks = blocks_for(seq.len(), s_.config_.block_size);
    int64_t needed = blocks_needed(seq, num_blocks, 1);
    while (i < alive_ && needed > free_) {
      out_of_blocks_ = true;
      preempt_last();
      needed = blocks_needed(seq, num_blocks, 1);  // what was shared may be its own now
    }
    if (i >= alive_) return;  // it was itself the last
    take(seq, needed, 1);
    schedule(seq, 1);
    --budget;
  }
}

// How many of its `left` known tokens the sequence may compute in this step; 0: none.
int32_t Scheduler::Planner::chunk(const SeqState& seq, int32_t left) const {
  if (left <= budget_) return left;
  // Without chunking, only what no step could hold is cut: prompt and output of a preempted sequence.
  bool may_cut =
      s_.config_.enable_chunked_prefill || left > s_.config_.max_num_batched_tokens || seq.num_computed > 0;
  return may_cut ? budget_ : 0;
}

void Scheduler::Planner::plan_known_tokens() {
  for (size_t i = 0; i < alive_ && budget_ > 0; ++i) {
    SeqState& seq = *s_.running_[i];
    if (seq.len() - seq.num_computed <= 1) continue;
    int32_t count = chunk(seq, seq.len() - seq.num_computed);
    if (count == 0) break;
    int64_t num_blocks = blocks_for(seq.num_computed + count, s_.config_.block_size);
    int64_t needed = blocks_needed(seq, num_blocks, count);
    if (needed > free_) break;
    take(seq, needed, count);
    schedule(seq, count);
  }
}

void Scheduler::Planner::plan_admissions() {
  passed_slots_ = 0;
  passed_blocks_ = 0;
  Admission admission;
  for (SeqState* seq : s_.waiting_) {
    if (budget_ == 0 || num_slots_ + passed_slots_ >= s_.config_.max_num_seqs) return;
    if (awaits_fetch(*seq) || awaits_prefix(*seq)) {
      pass(*seq);
      continue;
    }
    if (!fits(*seq, admission)) return;
    int32_t count = chunk(*seq, admission.left(*seq));
    if (count == 0) return;
    free_ -= admission.blocks;
    num_slots_ += slots_of(*seq);
    out_.admit.push_back(seq);
    out_.hits.push_back(admission.hit);
    schedule(*seq, count);
    if (displaced_) return;  // those who had to give way come before the rest of the queue
  }
}

// In the policy's order. A tree is cut where rows or blocks end (parents stand before children), and to its
// likeliest path where another sequence of the step has more rows than a mask has bits.
void Scheduler::Planner::plan_drafts() {
  int64_t rows = 0;
  bool only_chains = false;
  for (const Proposal::Item& item : out_.items) {
    const SeqState& seq = *item.seq;
    rows += seq.num_computed + item.count == seq.len();
    only_chains |= item.count > DraftTree::kMaxNodes;
  }
  const int64_t bs = s_.config_.block_size;
  for (Proposal::Item& item : out_.items) {
    const SeqState& seq = *item.seq;
    if (!seq.draft || seq.draft->size < 2 || item.count != 1 || seq.num_computed + 1 != seq.len()) continue;
    if (!seq.owner->forked) continue;  // its siblings sample from the same row
    const DraftTree& tree = *seq.draft;
    int64_t size = tree.size;
    if (only_chains) {
      int64_t chain = 1;
      while (chain < size && tree.parent[chain] == chain - 1) ++chain;
      size = chain;
    }
    const int64_t blocks = blocks_for(seq.len(), bs);
    size = std::min({size, int64_t{budget_} + 1, s_.config_.max_sampled_rows - rows + 1,
                     (blocks + free_) * bs - seq.num_computed, s_.max_len_ - seq.num_computed});
    if (size < 2) continue;
    free_ -= blocks_for(seq.num_computed + size, bs) - blocks;
    rows += size - 1;
    budget_ -= static_cast<int32_t>(size - 1);
    out_.num_tokens += static_cast<int32_t>(size - 1);
    item.count = static_cast<int32_t>(size);
    item.drafts = true;
    for (int64_t i = 1; i < size; ++i) out_.has_trees |= tree.parent[i] != i - 1;
  }
}

}  // namespace taco
