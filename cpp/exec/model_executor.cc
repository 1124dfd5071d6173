#include "exec/model_executor.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace taco {
namespace {

DType kv_dtype_of(const Model& model, std::optional<DType> wanted) { return wanted.value_or(model.dtype); }

std::shared_ptr<void> allocate(const std::shared_ptr<Backend>& backend, size_t bytes) {
  return {backend->allocate(bytes), [backend](void* p) { backend->release(p); }};
}

const ModelExecutorConfig& checked(const Model& model, const ModelExecutorConfig& c) {
  TACO_REQUIRE(c.block_size == 8 || c.block_size == 16 || c.block_size == 32,
               "block_size must be 8, 16 or 32, not ", c.block_size);
  TACO_REQUIRE(c.num_blocks > 0, "num_blocks must be positive");
  TACO_REQUIRE(c.max_model_len > 0, "max_model_len must be positive");
  TACO_REQUIRE(!model.spec.learned_positions || c.max_model_len <= model.spec.max_positions, "max_model_len ",
               c.max_model_len, " exceeds the ", model.spec.max_positions,
               " positions that the model has learned");
  TACO_REQUIRE(c.max_num_batched_tokens > 0 && c.max_num_seqs > 0,
               "max_num_batched_tokens and max_num_seqs must be positive");
  return c;
}

constexpr int64_t kMaxLogitsRows = 256;

}  // namespace

size_t ModelExecutor::block_bytes(const Model& model, int block_size, std::optional<DType> kv_dtype) {
  return kv_block_bytes(model.spec, block_size, kv_dtype_of(model, kv_dtype));
}

ModelExecutor::ModelExecutor(std::shared_ptr<const Model> model, const ModelExecutorConfig& config)
    : model_(std::move(model)),
      config_(checked(*model_, config)),
      inputs_(model_->backend, config_.block_size),
      decoder_(model_, config_.max_num_batched_tokens, config_.max_model_len) {
  size_t bytes =
      block_bytes(*model_, config_.block_size, config_.kv_dtype) * static_cast<size_t>(config_.num_blocks);
  // Not zeroed: untouched pages cost nothing on a host, and attention reads only what was written.
  kv_data_ = allocate(model_->backend, bytes);
  cache_ = {kv_data_.get(), kv_dtype_of(*model_, config_.kv_dtype), config_.num_blocks, config_.block_size};
  logits_rows_ =
      std::min<int64_t>(std::min(config_.max_num_seqs, config_.max_num_batched_tokens), kMaxLogitsRows);
  logits_ = std::static_pointer_cast<float>(
      allocate(model_->backend, static_cast<size_t>(logits_rows_) * model_->spec.vocab_size * sizeof(float)));
  for (int t = 0; t < model_->backend->host_threads(); ++t) {
    samplers_.push_back(std::make_unique<Sampler>(model_->spec.vocab_size));
  }
}

void ModelExecutor::copy_blocks(const std::vector<BlockCopy>& copies) {
  if (copies.empty()) return;
  std::vector<int32_t> pairs;
  for (const BlockCopy& c : copies) pairs.insert(pairs.end(), {c.from, c.to});
  const int32_t* device = inputs_.upload_index(pairs);
  for (size_t i = 0; i < model_->spec.layers.size(); ++i) {
    model_->backend->copy_blocks({.cache = kv_layer(model_->spec, cache_, i),
                                  .pairs = device,
                                  .num_pairs = static_cast<int>(copies.size())});
  }
}

template <typename Fn>
void ModelExecutor::for_each_logits(const std::vector<int32_t>& rows, Fn&& fn) {
  int64_t vocab = model_->spec.vocab_size;
  for (size_t begin = 0; begin < rows.size(); begin += logits_rows_) {
    int64_t count = std::min<int64_t>(logits_rows_, rows.size() - begin);
    std::vector<int32_t> slice(rows.begin() + begin, rows.begin() + begin + count);
    decoder_.logits(inputs_.upload_index(slice), count, logits_.get());
    model_->backend->synchronize();
    model_->backend->host_parallel(count, [&](int64_t i, int thread) {
      fn(begin + i, std::span<float>(logits_.get() + i * vocab, static_cast<size_t>(vocab)), thread);
    });
  }
}

void ModelExecutor::prompt_logprobs(const StepPlan& plan, StepOutput& output) {
  std::vector<int32_t> rows;
  struct Want {
    size_t entry, position;
    int32_t token;
    int k;
  };
  std::vector<Want> wants;
  int32_t first_row = 0;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    // The row at position p predicts the token at p + 1.
    int32_t count = std::min(step.start + step.count, seq.prompt_len - 1) - step.start;
    if (step.prompt_logprobs && count > 0) {
      PromptLogprobs entry{.seq = seq.id, .first_position = step.start + 1, .entries = {}};
      entry.entries.resize(count);
      for (int32_t i = 0; i < count; ++i) {
        rows.push_back(first_row + i);
        wants.push_back({output.prompt_logprobs.size(), static_cast<size_t>(i),
                         seq.tokens[step.start + i + 1], std::max(0, seq.params->prompt_logprobs)});
      }
      output.prompt_logprobs.push_back(std::move(entry));
    }
    first_row += step.count;
  }
  if (rows.empty()) return;
  for_each_logits(rows, [&](size_t i, std::span<float> logits, int) {
    const Want& w = wants[i];
    output.prompt_logprobs[w.entry].entries[w.position] = Sampler::logprobs(logits, w.token, w.k);
  });
}

void ModelExecutor::sample(const StepPlan& plan, StepOutput& output) {
  std::vector<int32_t> rows;
  std::vector<const SeqStep*> steps;
  std::vector<size_t> first_output;
  int32_t end = 0;
  size_t outputs = 0;
  for (const SeqStep& step : plan.seqs) {
    end += step.count;
    if (step.samplers.empty()) continue;
    rows.push_back(end - 1);
    steps.push_back(&step);
    first_output.push_back(outputs);
    outputs += step.samplers.size();
  }
  if (rows.empty()) return;
  output.sampled.resize(outputs);
  for_each_logits(rows, [&](size_t i, std::span<float> logits, int thread) {
    const std::vector<const Sequence*>& samplers = steps[i]->samplers;
    std::vector<float> original;  // sampling changes the row, so every sequence but the last works on a copy
    for (size_t k = 0; k < samplers.size(); ++k) {
      std::span<float> row = logits;
      if (k + 1 < samplers.size()) {
        original.assign(logits.begin(), logits.end());
        row = original;
      }
      output.sampled[first_output[i] + k] = samplers_[thread]->sample(row, *samplers[k]);
    }
  });
}

void ModelExecutor::submit(const StepPlan& plan) {
  output_ = {};
  copy_blocks(plan.copies);
  if (plan.seqs.empty()) return;
  decoder_.forward(inputs_.build(plan), cache_);
  prompt_logprobs(plan, output_);
  sample(plan, output_);
}

StepOutput ModelExecutor::collect() { return std::move(output_); }

std::vector<float> ModelExecutor::forward(const std::vector<int32_t>& tokens,
                                          const std::vector<int>& chunks) {
  TACO_REQUIRE(!tokens.empty(), "forward needs at least one token");
  TACO_REQUIRE(static_cast<int>(tokens.size()) <= config_.max_model_len, "forward: ", tokens.size(),
               " tokens, max_model_len is ", config_.max_model_len);
  int64_t vocab = model_->spec.vocab_size;
  for (int32_t id : tokens)
    TACO_REQUIRE(id >= 0 && id < vocab, "token id ", id, " is not in [0, ", vocab, ")");
  std::vector<int> sizes = chunks;
  if (sizes.empty()) {
    for (size_t done = 0; done < tokens.size(); done += sizes.back()) {
      sizes.push_back(
          static_cast<int>(std::min<size_t>(config_.max_num_batched_tokens, tokens.size() - done)));
    }
  }
  TACO_REQUIRE(std::accumulate(sizes.begin(), sizes.end(), size_t{0}) == tokens.size(),
               "forward: the chunks do not add up to the number of tokens");
  Sequence seq;
  seq.tokens = tokens;
  seq.prompt_len = static_cast<int32_t>(tokens.size());
  int64_t blocks = (static_cast<int64_t>(tokens.size()) + config_.block_size - 1) / config_.block_size;
  TACO_REQUIRE(blocks <= config_.num_blocks, "forward: ", tokens.size(), " tokens do not fit the KV cache");
  for (int64_t b = 0; b < blocks; ++b) seq.blocks.push_back(static_cast<BlockId>(b));

  std::vector<float> out(tokens.size() * static_cast<size_t>(vocab));
  int32_t start = 0;
  for (int size : sizes) {
    TACO_REQUIRE(size > 0 && size <= config_.max_num_batched_tokens, "forward: a chunk has 1 to ",
                 config_.max_num_batched_tokens, " tokens");
    StepPlan plan;
    plan.seqs.push_back({.sequence = &seq, .start = start, .count = size, .samplers = {}});
    plan.num_tokens = size;
    decoder_.forward(inputs_.build(plan), cache_);
    std::vector<int32_t> rows(size);
    std::iota(rows.begin(), rows.end(), 0);
    for_each_logits(rows, [&](size_t i, std::span<float> logits, int) {
      std::copy(logits.begin(), logits.end(), out.begin() + (start + i) * vocab);
    });
    start += size;
  }
  return out;
}

}  // namespace taco
