// Runs steps of a model on its backend: KV storage, step inputs, decoder, logits, sampler.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "exec/executor.h"
#include "exec/sampler.h"
#include "exec/step_inputs.h"
#include "model/decoder.h"

namespace taco {

struct ModelExecutorConfig {
  int max_model_len = 0;
  int block_size = 16;  // 8, 16 or 32
  int64_t num_blocks = 0;
  std::optional<DType> kv_dtype;  // none: the model's dtype
  int max_num_batched_tokens = 2048;
  int max_num_seqs = 256;
};

class ModelExecutor final : public Executor {
 public:
  ModelExecutor(std::shared_ptr<const Model> model, const ModelExecutorConfig& config);

  static size_t block_bytes(const Model& model, int block_size, std::optional<DType> kv_dtype);

  int vocab_size() const override { return model_->spec.vocab_size; }
  int max_model_len() const override { return config_.max_model_len; }
  KvCacheConfig kv_cache() const override { return {config_.block_size, config_.num_blocks}; }
  void submit(const StepPlan& plan) override;
  StepOutput collect() override;
  void idle() override { model_->backend->idle(); }

  // Logits [tokens, vocab] of one sequence in chunks, over the first blocks of the cache: for tests and
  // evaluation, while no engine uses this executor. chunks: token counts that add up, or empty for one chunk
  // as long as a step allows.
  std::vector<float> forward(const std::vector<int32_t>& tokens, const std::vector<int>& chunks);

 private:
  void copy_blocks(const std::vector<BlockCopy>& copies);
  void sample(const StepPlan& plan, StepOutput& output);
  void prompt_logprobs(const StepPlan& plan, StepOutput& output);
  // fn(row number, logits) for each chosen row of the last forward, in slices that fit the logits buffer.
  template <typename Fn>
  void for_each_logits(const std::vector<int32_t>& rows, Fn&& fn);

  std::shared_ptr<const Model> model_;
  ModelExecutorConfig config_;
  std::shared_ptr<void> kv_data_;
  KvCache cache_;
  StepInputs inputs_;
  Decoder decoder_;
  StepOutput output_;  // of the submitted step
  int64_t logits_rows_;
  std::shared_ptr<float> logits_;                   // device [logits_rows_, vocab]
  std::vector<std::unique_ptr<Sampler>> samplers_;  // one per host thread
};

}  // namespace taco
