// What the scheduler does with the prefix cache.
#include <algorithm>

#include "base/error.h"
#include "sched/scheduler.h"

namespace taco {

namespace {
constexpr int kMaxFetches = 8;         // of waiting requests at once
constexpr double kWaitForRoom = 0.05;  // seconds that a request waits at most for a fetch to begin,
constexpr int kMinRefusals = 4;        // but it asks so often
}  // namespace

// Whether it may use cached tokens. Prompt logprobs need logits of every position.
bool Scheduler::looks_up(const SeqState& seq) const {
  if (!cache_ || !seq.host_blocks.empty()) return false;
  return seq.params->prompt_logprobs < 0 || seq.index > 0 || seq.prompt_logprobs_from >= seq.prompt_len;
}

void Scheduler::fetch(double now) {
  if (!cache_ || cache_->config().num_host_blocks == 0) return;
  bool found_no_room = false;
  for (SeqState* seq : fetching_) {
    FetchWish& wish = seq->fetch;
    if (wish.state != FetchState::kNoRoom) {
      continue_fetch(*seq, now);
    } else if (num_fetches() >= kMaxFetches) {
      wish.no_room_since = now;  // its turn comes
    } else if (!found_no_room) {
      begin_fetch(*seq, now, pool_.num_available());
      found_no_room = wish.state == FetchState::kNoRoom;
    } else {
      wish.no_room_since = now;  // likewise
    }
  }
  std::erase_if(fetching_, [](const SeqState* seq) { return seq->fetch.state == FetchState::kDone; });
  // What the pool can give to those in the queue: more is not brought back, lest it be gone again before its
  // request is admitted.
  int64_t room = pool_.num_available();
  if (!running_.empty()) room -= watermark_blocks_ + static_cast<int64_t>(running_.size());
  int slots = std::max(config_.max_num_seqs - num_slots_, 1);
  for (SeqState* seq : waiting_) {
    if (slots <= 0 || room <= 0) return;
    slots -= slots_of(*seq);
    if (seq->fetch.state == FetchState::kNotAsked) {
      begin_fetch(*seq, now, room);
      if (awaits_fetch(*seq)) fetching_.push_back(seq);
    }
    room -= blocks_to_come(*seq);
  }
}

int64_t Scheduler::num_fetches() const {
  return std::count_if(fetching_.begin(), fetching_.end(), [](const SeqState* seq) {
    return seq->fetch.state == FetchState::kOpen || seq->fetch.state == FetchState::kNearby;
  });
}

void Scheduler::continue_fetch(SeqState& seq, double now) {
  FetchWish& wish = seq.fetch;
  const double remaining = cache_->remaining(wish.id, now);
  if (remaining <= 0) {
    wish.state = FetchState::kDone;
  } else if (cache_->config().lazy) {
    const bool near = remaining <= wish.tokens_left * cache_->seconds_per_prompt_token();
    wish.state = near ? FetchState::kNearby : FetchState::kOpen;
  }
}

// Of what is still to be taken from the pool for it, at most.
int64_t Scheduler::blocks_to_come(const SeqState& seq) const {
  const int64_t held = seq.fetch.state == FetchState::kOpen ? seq.fetch.blocks : 0;
  return std::max<int64_t>(blocks_for(seq.len(), config_.block_size) - held, 0);
}

void Scheduler::begin_fetch(SeqState& seq, double now, int64_t room) {
  FetchWish& wish = seq.fetch;
  const int32_t max_tokens = looks_up(seq) ? seq.len() - 1 : 0;
  const PrefixCache::Match match = cache_->match(seq.owner->cache_root, seq.tokens, max_tokens);
  if (match.lower_blocks + match.loading_blocks == 0) {
    wish.state = FetchState::kDone;
    return;
  }
  const int64_t needed = blocks_for(seq.len(), config_.block_size) - match.device_blocks + match.idle_blocks;
  if (needed > room) return;  // it cannot be admitted anyway
  uint64_t id = 0;
  PrefixCache::Fetch result = PrefixCache::Fetch::kNoRoom;
  // Those that run must not be preempted for what is to run later.
  const int64_t spare = running_.empty() ? 0 : watermark_blocks_ + static_cast<int64_t>(running_.size());
  if (num_fetches() < kMaxFetches)
    result = cache_->fetch(seq.owner->cache_root, seq.tokens, max_tokens, spare, now, id);
  switch (result) {
    case PrefixCache::Fetch::kNone:
      wish.state = FetchState::kDone;
      break;
    case PrefixCache::Fetch::kNoRoom:
      if (wish.state == FetchState::kNotAsked) {  // now the cache knows that room is wanted
        wish.state = FetchState::kNoRoom;
        wish.no_room_since = now;
      } else if (++wish.refusals >= kMinRefusals &&
                 (!cache_->busy() || now - wish.no_room_since > kWaitForRoom)) {
        wish.state = FetchState::kDone;
      }
      break;
    case PrefixCache::Fetch::kStarted:
      wish.state = FetchState::kOpen;
      wish.id = id;
      wish.device_blocks = match.device_blocks;
      wish.blocks = match.device_blocks + match.loading_blocks + match.lower_blocks;
      wish.tokens_left = seq.len() - wish.blocks * config_.block_size;
      break;
  }
}

void Scheduler::attach(SeqState& seq, const Proposal::Hit& hit, Flight& flight) {
  const int32_t tokens = cache_->attach(seq.owner->cache_root, seq.tokens, hit.max_tokens, hit.loading,
                                        seq.blocks, seq.attachment, flight.plan.wait_for);
  TACO_CHECK(tokens == hit.tokens, "the plan counts on ", hit.tokens, " cached tokens, the cache gives ",
             tokens);
  std::erase(fetching_, &seq);
  if (tokens == 0) return;
  seq.num_computed = seq.num_committed = tokens;
  if (tokens % config_.block_size == 0) return;
  // The step copies the tail's block before it writes. Nobody may get it before that.
  pool_.retain(seq.blocks.back());
  pinned_.push_back(seq.blocks.back());
}

// Of the tokens whose K and V are there, and good.
void Scheduler::publish(SeqState& seq) {
  if (!cache_ || seq.status != SeqStatus::kRunning || seq.attachment.detached) return;
  if (seq.num_committed < (seq.attachment.blocks + 1) * config_.block_size) return;
  cache_->publish(seq.tokens, seq.num_committed / config_.block_size, seq.blocks, seq.attachment);
}

// Its blocks were given back.
void Scheduler::detach(SeqState& seq) {
  const bool counted = seq.attachment.counted;
  seq.attachment = {};
  seq.attachment.counted = counted;
  seq.fetch = {};
}

void Scheduler::count_hit(const Flight::Admission& admission) {
  if (!cache_ || admission.before != SeqStatus::kWaiting) return;
  const SeqState& seq = *admission.seq;
  seq.owner->num_cached_tokens = admission.cached_tokens;
  const int64_t hit = admission.cached_tokens / config_.block_size;
  const int64_t on_device = seq.fetch.id != 0 ? std::min<int64_t>(hit, seq.fetch.device_blocks) : hit;
  hit_counter_.count(blocks_for(seq.prompt_len, config_.block_size), on_device, hit - on_device);
}

}  // namespace taco
