#include "exec/null_executor.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/error.h"

namespace taco {

namespace {

constexpr uint64_t kEmptyHash = 0x243f6a8885a308d3u;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t extend(uint64_t hash, int32_t token) {
  return mix(hash + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(static_cast<uint32_t>(token)) + 1));
}

uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t hash = kEmptyHash;
  for (int32_t token : tokens) hash = extend(hash, token);
  return hash;
}

int32_t choose(uint64_t prompt_hash, int prompt_len, int position, int vocab, int32_t eos) {
  uint64_t h = mix(prompt_hash ^ mix(static_cast<uint64_t>(position)));
  if (eos >= 0 && position > prompt_len && (h >> 58) == 0) return eos;
  auto token = static_cast<int32_t>(h % static_cast<uint64_t>(vocab));
  return token == eos ? (token + 1) % vocab : token;
}

}  // namespace

NullExecutor::NullExecutor(int vocab_size, int max_model_len, int block_size, int64_t num_blocks,
                           double step_seconds, int32_t eos_token_id, int max_in_flight,
                           int64_t num_host_blocks)
    : vocab_size_(vocab_size),
      max_model_len_(max_model_len),
      block_size_(block_size),
      num_blocks_(num_blocks),
      step_seconds_(step_seconds),
      eos_token_id_(eos_token_id),
      max_in_flight_(max_in_flight),
      num_host_blocks_(num_host_blocks),
      slots_(static_cast<size_t>(std::max<int64_t>(num_blocks * block_size, 0)), 0),
      host_slots_(static_cast<size_t>(std::max<int64_t>(num_host_blocks * block_size, 0)), 0),
      transfers_(block_size, slots_, host_slots_) {
  TACO_REQUIRE(vocab_size >= 1 && max_model_len >= 1 && block_size >= 1 && num_blocks >= 1,
               "vocab_size, max_model_len, block_size and num_blocks must be at least 1");
  TACO_REQUIRE(eos_token_id < vocab_size, "eos_token_id ", eos_token_id, " is not below vocab_size ",
               vocab_size);
  TACO_REQUIRE(max_in_flight == 1 || max_in_flight == 2, "max_in_flight must be 1 or 2, not ", max_in_flight);
  TACO_REQUIRE(num_host_blocks >= 0, "num_host_blocks must be at least 0, not ", num_host_blocks);
  written_step_.assign(static_cast<size_t>(num_blocks), 0);
  written_by_.assign(static_cast<size_t>(num_blocks), 0);
}

int32_t NullExecutor::token_at(std::span<const int32_t> prompt, int position, int vocab,
                               int32_t eos_token_id) {
  return choose(hash_of(prompt), static_cast<int>(prompt.size()), position, vocab, eos_token_id);
}

float NullExecutor::logprob_at(uint64_t sequence_seed, int position) {
  uint64_t h = mix(sequence_seed ^ mix(static_cast<uint64_t>(position) + 1));
  return -1.0f - static_cast<float>(h >> 40) / static_cast<float>(1 << 24);
}

uint64_t& NullExecutor::slot(const Sequence& seq, int32_t position) {
  auto block = static_cast<int64_t>(seq.blocks[static_cast<size_t>(position / block_size_)]);
  return slots_[static_cast<size_t>(block * block_size_ + position % block_size_)];
}

// What is known of the sequence before this step; checks that the step goes on from there.
NullExecutor::Seen& NullExecutor::find(const SeqStep& step) {
  const Sequence& seq = *step.sequence;
  auto [it, is_new] = seen_.try_emplace(seq.id, Seen{0, num_steps_, 0, kEmptyHash});
  Seen& seen = it->second;
  TACO_CHECK(is_new || seen.last_step < num_steps_, "sequence ", seq.id, " is twice in a step");
  if (step.start == 0) {
    seen = Seen{0, num_steps_, 0, kEmptyHash};
  } else if (is_new || step.start != seen.computed) {  // forked, forgotten, preempted or found in the cache
    check_all_slots(step);
    std::span<const int32_t> tokens(seq.tokens);
    seen.computed = step.start;
    seen.hash = hash_of(tokens.first(static_cast<size_t>(step.start)));
    seen.prompt_hash = step.start >= seq.prompt_len ? hash_of(seq.prompt()) : 0;
  }
  if (step.start > 0) {
    TACO_CHECK(slot(seq, step.start - 1) == seen.hash, "sequence ", seq.id, ": the cache at position ",
               step.start - 1, " is not what the sequence put there");
  }
  seen.last_step = num_steps_;
  return seen;
}

void NullExecutor::check_all_slots(const SeqStep& step) {
  const Sequence& seq = *step.sequence;
  uint64_t hash = kEmptyHash;
  for (int32_t position = 0; position < step.start; ++position) {
    hash = extend(hash, seq.tokens[static_cast<size_t>(position)]);
    TACO_CHECK(slot(seq, position) == hash, "sequence ", seq.id, ": the cache at position ", position,
               " is not what the sequence put there");
  }
}

// The token at a position; a pending one is what the step before this one, still in flight, samples.
int32_t NullExecutor::resolve(const Sequence& seq, int32_t position) const {
  int32_t token = seq.tokens[static_cast<size_t>(position)];
  if (token != kPendingToken) {
    bool sampled_before = in_flight_.size() > 1 && position + 1 == seq.len() && position >= seq.prompt_len &&
                          in_flight_.front().tokens.count(seq.id) > 0;
    TACO_CHECK(!sampled_before, "sequence ", seq.id, " has a token that was not collected");
    return token;
  }
  TACO_CHECK(position + 1 == seq.len() && position >= seq.prompt_len, "sequence ", seq.id,
             " has a pending token at position ", position, " of ", seq.len());
  TACO_CHECK(in_flight_.size() == 2, "sequence ", seq.id, " has a pending token, but no step is in flight");
  auto it = in_flight_.front().tokens.find(seq.id);
  TACO_CHECK(it != in_flight_.front().tokens.end(), "sequence ", seq.id,
             " has a pending token, but the step in flight samples none for it");
  return it->second;
}

void NullExecutor::compute(const SeqStep& step, StepOutput& out) {
  const Sequence& seq = *step.sequence;
  int32_t end = step.start + step.count;
  TACO_CHECK(step.start >= 0 && step.count > 0 && (step.draft || end <= seq.len()), "sequence ", seq.id,
             ": step ", step.start, " + ", step.count, " of ", seq.len(), " tokens");
  TACO_CHECK(static_cast<int64_t>(seq.blocks.size()) * block_size_ >= end, "sequence ", seq.id, ": ",
             seq.blocks.size(), " blocks do not cover ", end, " tokens");
  for (BlockId block : seq.blocks) TACO_CHECK(block >= 0 && block < num_blocks_, "block ", block);
  TACO_CHECK(step.samplers.empty() == (end < seq.len() && !step.draft), "sequence ", seq.id,
             " must sample at the end of its known tokens, and only there");
  Seen& seen = find(step);
  if (thorough_) check_all_slots(step);
  for (int32_t position = step.start; position < (step.draft ? seq.len() : end); ++position) {
    int32_t token = resolve(seq, position);
    TACO_CHECK(token >= 0 && token < vocab_size_, "token ", token, " of ", vocab_size_);
    if (position >= seq.prompt_len) {
      int32_t expected = choose(seen.prompt_hash, seq.prompt_len, position, vocab_size_, eos_token_id_);
      TACO_CHECK(token == expected, "sequence ", seq.id, " has token ", token, " at position ", position,
                 ", sampled was ", expected);
    }
    seen.hash = extend(seen.hash, token);
    if (position + 1 == seq.prompt_len) seen.prompt_hash = seen.hash;
    slot(seq, position) = seen.hash;
  }
  for (int32_t i = step.start / block_size_; i <= (end - 1) / block_size_; ++i) {
    auto block = static_cast<size_t>(seq.blocks[static_cast<size_t>(i)]);
    TACO_CHECK(written_step_[block] != num_steps_ || written_by_[block] == seq.id, "block ", block,
               " is written by two sequences in one step");
    written_step_[block] = num_steps_;
    written_by_[block] = seq.id;
  }
  if (step.draft) return verify(step, seen, out);
  seen.computed = end;
  if (!step.samplers.empty()) sample(step, seen.prompt_hash, out);
  if (step.prompt_logprobs) out.prompt_logprobs.push_back(prompt_logprobs(step));
}

void NullExecutor::sample(const SeqStep& step, uint64_t prompt_hash, StepOutput& out) {
  for (const Sequence* sampler : step.samplers) {
    int32_t position = sampler->len();
    TACO_CHECK(position == step.start + step.count, "sequence ", sampler->id, " samples from another's row");
    SampledToken sampled = sample_at(*sampler, position, prompt_hash);
    in_flight_.back().tokens[sampled.seq] = sampled.token;
    out.sampled.push_back(std::move(sampled));
  }
}

SampledToken NullExecutor::sample_at(const Sequence& sequence, int32_t position, uint64_t prompt_hash) const {
  SampledToken sampled;
  sampled.seq = sequence.id;
  sampled.token = choose(prompt_hash, sequence.prompt_len, position, vocab_size_, eos_token_id_);
  sampled.logprob = logprob_at(sequence.seed, position);
  if (int k = sequence.params->logprobs; k >= 0)
    sampled.logprobs = position_logprobs(sampled.token, sampled.logprob, k);
  return sampled;
}

// The root's slot is written already.
void NullExecutor::verify(const SeqStep& step, Seen& seen, StepOutput& out) {
  const Sequence& seq = *step.sequence;
  const DraftTree& tree = *step.draft;
  TACO_CHECK(tree.size == step.count && step.start + 1 == seq.len() && step.samplers.size() == 1 &&
                 tree.token[0] == seq.tokens.back(),
             "sequence ", seq.id, " has a draft of ", tree.size, " nodes in a step of ", step.count, " rows");
  std::vector<uint64_t> hashes{seen.hash};
  for (int node = 1; node < tree.size; ++node) {
    TACO_CHECK(tree.parent[node] >= 0 && tree.parent[node] < node, "a child before its parent");
    TACO_CHECK(tree.token[node] >= 0 && tree.token[node] < vocab_size_, "token ", tree.token[node], " of ",
               vocab_size_);
    hashes.push_back(extend(hashes[static_cast<size_t>(tree.parent[node])], tree.token[node]));
    slot(seq, step.start + node) = hashes.back();
  }
  int32_t position = seq.len();
  for (int node = 0;; ++position) {
    out.sampled.push_back(sample_at(seq, position, seen.prompt_hash));
    node = tree.find_child(node, out.sampled.back().token);
    if (node < 0) break;
    seen.hash = slot(seq, position) = hashes[static_cast<size_t>(node)];
  }
  seen.computed = position;
}

PositionLogprobs NullExecutor::position_logprobs(int32_t token, float logprob, int k) const {
  PositionLogprobs entry;
  entry.push_back({token, logprob, 1});
  for (int rank = 1; rank <= std::min(k, vocab_size_); ++rank) {
    entry.push_back({static_cast<int32_t>((static_cast<int64_t>(token) + rank - 1) % vocab_size_),
                     logprob - static_cast<float>(rank - 1), rank});
  }
  return entry;
}

PromptLogprobs NullExecutor::prompt_logprobs(const SeqStep& step) const {
  const Sequence& seq = *step.sequence;
  PromptLogprobs out{seq.id, step.start + 1, {}};
  int32_t last = std::min(step.start + step.count, seq.prompt_len - 1);
  for (int32_t position = step.start + 1; position <= last; ++position) {
    out.entries.push_back(position_logprobs(seq.tokens[static_cast<size_t>(position)],
                                            logprob_at(0, position), seq.params->prompt_logprobs));
  }
  return out;
}

// Sequences end without a word to the executor. What it forgets it can work out again from the tokens.
void NullExecutor::forget_old() {
  for (auto it = seen_.begin(); it != seen_.end();) {
    it = it->second.last_step + 1024 < num_steps_ ? seen_.erase(it) : std::next(it);
  }
}

void NullExecutor::delay() {
  if (random_delay_ <= 0) return;
  random_ = mix(random_ + 0x9e3779b97f4a7c15u);
  if (random_ % 4 != 0) return;
  double part = static_cast<double>(random_ >> 11) / static_cast<double>(uint64_t{1} << 53);
  std::this_thread::sleep_for(std::chrono::duration<double>(part * random_delay_));
}

StepOutput NullExecutor::collect() {
  TACO_CHECK(!in_flight_.empty(), "nothing was submitted");
  delay();
  std::this_thread::sleep_until(in_flight_.front().ready);
  StepOutput output = std::move(in_flight_.front().output);
  in_flight_.pop_front();
  return output;
}

void NullExecutor::move_blocks(const StepPlan& plan) {
  for (uint64_t id : plan.wait_for) transfers_.wait_for(id);
  auto at = [&](std::vector<uint64_t>& slots, int64_t num_blocks, BlockId block) {
    TACO_CHECK(block >= 0 && block < num_blocks, "block ", block, " of ", num_blocks);
    return slots.begin() + int64_t{block} * block_size_;
  };
  for (const BlockMove& move : plan.swap_out) {
    auto from = at(slots_, num_blocks_, move.device);
    std::copy(from, from + block_size_, at(host_slots_, num_host_blocks_, move.host));
  }
  for (const BlockMove& move : plan.swap_in) {
    auto from = at(host_slots_, num_host_blocks_, move.host);
    std::copy(from, from + block_size_, at(slots_, num_blocks_, move.device));
  }
  for (const BlockCopy& copy : plan.copies) {
    auto from = at(slots_, num_blocks_, copy.from);
    std::copy(from, from + block_size_, at(slots_, num_blocks_, copy.to));
  }
}

void NullExecutor::submit(const StepPlan& plan) {
  TACO_CHECK(static_cast<int>(in_flight_.size()) < max_in_flight_, "more than ", max_in_flight_,
             " steps in flight");
  ++num_steps_;
  StepOutput& out = in_flight_.emplace_back().output;
  delay();
  move_blocks(plan);
  int64_t num_tokens = 0;
  for (const SeqStep& step : plan.seqs) {
    compute(step, out);
    num_tokens += step.count;
  }
  TACO_CHECK(num_tokens == plan.num_tokens, "the plan says ", plan.num_tokens, " tokens, but has ",
             num_tokens);
  if (num_steps_ % 1024 == 0) forget_old();
  auto now = std::chrono::steady_clock::now();
  if (step_seconds_ > 0) {
    using Clock = std::chrono::steady_clock;
    device_free_ = std::max(now, device_free_) +
                   std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(step_seconds_));
    now = device_free_;
  }
  in_flight_.back().ready = now;
}

}  // namespace taco
