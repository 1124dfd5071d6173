#include "exec/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "exec/sampling_rules.h"

namespace taco {
namespace {

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

const char* message(SampleError error) {
  switch (error) {
    case SampleError::kNone:
      return "";
    case SampleError::kNaN:
      return "The logits of the model contain NaN.";
    case SampleError::kAllForbidden:
      return "The logits after the sampling rules are all -Infinity: every token is forbidden.";
    case SampleError::kInfinity:
      return "The logits of the model contain Infinity.";
  }
  return "Sampling failed.";
}

// The sequence as it would be at a node.
Sequence at_node(const Sequence& sequence, const DraftTree& draft, int node) {
  Sequence out = sequence;
  const size_t known = out.tokens.size();
  for (; node > 0; node = draft.parent[node])
    out.tokens.insert(out.tokens.begin() + static_cast<ptrdiff_t>(known), draft.token[node]);
  return out;
}

}  // namespace

DeviceSampler::DeviceSampler(std::shared_ptr<Backend> backend, int vocab_size, int max_rows)
    : backend_(std::move(backend)), vocab_size_(vocab_size), max_rows_(max_rows) {
  d_rows_ = device_memory(backend_, static_cast<size_t>(max_rows) * sizeof(SampleRow));
  d_results_ = device_memory(backend_, static_cast<size_t>(max_rows) * sizeof(SampleResult));
  for (Slot& slot : slots_) {
    slot.rows = host_memory(backend_, static_cast<size_t>(max_rows) * sizeof(SampleRow));
    slot.results = host_memory(backend_, static_cast<size_t>(max_rows) * sizeof(SampleResult));
  }
}

// Each distinct token of prompt and output once, with its count in the output.
void DeviceSampler::add_penalties(const Sequence& sequence, SampleRow& row) {
  if (seen_at_.empty()) seen_at_.assign(static_cast<size_t>(vocab_size_), -1);
  row.first_count = static_cast<int32_t>(counts_.size());
  for (int32_t i = 0; i < sequence.len(); ++i) {
    const int32_t token = sequence.tokens[i];
    if (token < 0 || token >= vocab_size_) continue;
    int32_t& at = seen_at_[static_cast<size_t>(token)];
    if (at < 0) {
      at = static_cast<int32_t>(counts_.size());
      counts_.push_back({token, 0});
    }
    if (i >= sequence.prompt_len) ++counts_[static_cast<size_t>(at)].in_output;
  }
  row.num_counts = static_cast<int32_t>(counts_.size()) - row.first_count;
  for (size_t i = static_cast<size_t>(row.first_count); i < counts_.size(); ++i)
    seen_at_[static_cast<size_t>(counts_[i].token)] = -1;
}

void DeviceSampler::describe(const Sequence& sequence, int depth, SampleRow& row) {
  const SamplingParams& p = *sequence.params;
  row.top_k = p.top_k >= 1 && p.top_k < vocab_size_ ? p.top_k : 0;
  row.temperature = p.temperature;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.seed = sequence.seed;
  row.position = static_cast<uint64_t>(sequence.output_len() + depth);
  row.logprobs = p.logprobs < 0 ? -1 : std::min(p.logprobs, vocab_size_);
  row.first_allowed = static_cast<int32_t>(allowed_.size());
  for (int32_t id : p.allowed_token_ids) {
    if (id >= 0 && id < vocab_size_) allowed_.push_back(id);
  }
  row.num_allowed = static_cast<int32_t>(allowed_.size()) - row.first_allowed;
  row.first_edit = static_cast<int32_t>(edits_.size());
  for_each_forbidden(sequence, [&](int32_t id) {
    if (id >= 0 && id < vocab_size_) edits_.push_back({id, -std::numeric_limits<float>::infinity()});
  });
  for (const auto& [id, bias] : p.logit_bias) {
    if (id >= 0 && id < vocab_size_) edits_.push_back({id, bias});
  }
  row.num_edits = static_cast<int32_t>(edits_.size()) - row.first_edit;
  row.repetition = p.repetition_penalty;
  row.presence = p.presence_penalty;
  row.frequency = p.frequency_penalty;
  if (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f)
    add_penalties(sequence, row);
}

void DeviceSampler::submit(const std::vector<Pick>& picks, const float* logits) {
  TACO_CHECK(static_cast<int>(picks.size()) <= max_rows_ && submitted_ - collected_ < kSlots);
  Slot& slot = slots_[submitted_++ % kSlots];
  slot.sequences.clear();
  allowed_.clear();
  edits_.clear();
  counts_.clear();
  auto* rows = static_cast<SampleRow*>(slot.rows.get());
  SampleParams params{};
  for (size_t i = 0; i < picks.size(); ++i) {
    const Sequence& sequence = *picks[i].sequence;
    SampleRow& row = rows[i] = {};
    row.logits_row = picks[i].logits_row;
    const int depth = picks[i].draft ? picks[i].draft->depth[picks[i].node] : 0;
    if (depth > 0 && (samples_from_history(*sequence.params) || sequence.params->min_tokens > 0)) {
      describe(at_node(sequence, *picks[i].draft, picks[i].node), 0, row);
    } else {
      describe(sequence, depth, row);
    }
    slot.sequences.emplace_back(sequence.id, row.logprobs);
    const bool random = row.temperature >= 1e-5f;
    params.any_random |= random;
    params.any_filter |= random && (row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f);
    params.any_rules |= row.num_allowed > 0 || row.num_edits > 0 || row.num_counts > 0;
    params.max_logprobs = std::max(params.max_logprobs, row.logprobs);
  }
  backend_->upload_async(d_rows_.get(), rows, picks.size() * sizeof(SampleRow));

  const size_t edits_at = align(allowed_.size() * sizeof(int32_t));
  const size_t counts_at = edits_at + align(edits_.size() * sizeof(TokenEdit));
  const size_t lists = counts_at + counts_.size() * sizeof(TokenCount);
  if (lists > 0) {
    if (lists > slot.lists_capacity) slot.lists = host_memory(backend_, slot.lists_capacity = lists * 2);
    if (lists > d_lists_capacity_) {
      backend_->synchronize();  // a step in flight reads the old ones
      d_lists_ = device_memory(backend_, d_lists_capacity_ = lists * 2);
    }
    char* to = static_cast<char*>(slot.lists.get());
    if (!allowed_.empty()) std::memcpy(to, allowed_.data(), allowed_.size() * sizeof(int32_t));
    if (!edits_.empty()) std::memcpy(to + edits_at, edits_.data(), edits_.size() * sizeof(TokenEdit));
    if (!counts_.empty()) std::memcpy(to + counts_at, counts_.data(), counts_.size() * sizeof(TokenCount));
    backend_->upload_async(d_lists_.get(), to, lists);
  }
  slot.top_width = std::max(params.max_logprobs, 0);
  const size_t top = picks.size() * static_cast<size_t>(slot.top_width) * sizeof(TopToken);
  if (top > 0) {
    if (top > slot.top_capacity) slot.top = host_memory(backend_, slot.top_capacity = top * 2);
    if (top > d_top_capacity_) {
      backend_->synchronize();
      d_top_ = device_memory(backend_, d_top_capacity_ = top * 2);
    }
  }

  const char* d_lists = static_cast<const char*>(d_lists_.get());
  params.logits = logits;
  params.vocab = vocab_size_;
  params.num_rows = static_cast<int>(picks.size());
  params.rows = static_cast<const SampleRow*>(d_rows_.get());
  params.allowed = reinterpret_cast<const int32_t*>(d_lists);
  params.edits = reinterpret_cast<const TokenEdit*>(d_lists + edits_at);
  params.counts = reinterpret_cast<const TokenCount*>(d_lists + counts_at);
  params.results = static_cast<SampleResult*>(d_results_.get());
  params.top = static_cast<TopToken*>(d_top_.get());
  backend_->sample(params);
  backend_->download_async(slot.results.get(), d_results_.get(), picks.size() * sizeof(SampleResult));
  if (top > 0) backend_->download_async(slot.top.get(), d_top_.get(), top);
  slot.mark = backend_->mark();
}

void DeviceSampler::collect(std::vector<SampledToken>& samples) {
  TACO_CHECK(collected_ < submitted_);
  Slot& slot = slots_[collected_++ % kSlots];
  backend_->wait(slot.mark);
  const auto* results = static_cast<const SampleResult*>(slot.results.get());
  const auto* top = static_cast<const TopToken*>(slot.top.get());
  samples.reserve(samples.size() + slot.sequences.size());
  for (size_t i = 0; i < slot.sequences.size(); ++i) {
    const SampleResult& r = results[i];
    auto [seq, logprobs] = slot.sequences[i];
    SampledToken& out = samples.emplace_back();
    out.seq = seq;
    if (r.error != SampleError::kNone) {
      out.error = message(r.error);
      continue;
    }
    TACO_CHECK(r.token >= 0 && r.token < vocab_size_, "the device chose token ", r.token);
    out.token = r.token;
    out.logprob = r.logprob;
    if (logprobs < 0) continue;
    out.logprobs.reserve(static_cast<size_t>(logprobs) + 1);
    out.logprobs.push_back({r.token, r.logprob, r.rank});
    for (int k = 0; k < logprobs; ++k) {
      const TopToken& t = top[i * static_cast<size_t>(slot.top_width) + static_cast<size_t>(k)];
      out.logprobs.push_back({t.token, t.logprob, k + 1});
    }
  }
}

}  // namespace taco
