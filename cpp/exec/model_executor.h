// Runs steps of a model on its backend: KV storage, step inputs, decoder, logits, sampler.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "exec/device_sampler.h"
#include "exec/executor.h"
#include "exec/host_blocks.h"
#include "exec/kv_transfer.h"
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
  bool enforce_eager = false;         // no captured graphs
  int max_seq_len_to_capture = 8192;  // steps with longer sequences run op by op
  int64_t num_host_blocks = 0;        // swap space and the host tier of the prefix cache
  int max_draft_rows = 0;             // of all drafts of a step; 0: steps have none
  // Lossy (TypicalAcceptance in sampler.h); steps with drafts are then sampled on the host.
  bool typical_acceptance = false;
  float typical_threshold = 0.09f, typical_alpha = 0.3f;
  DiskAccess disk = {};  // the tier below the host blocks; empty: none
  // A device: a step of each size that prompts are padded to runs before the first request.
  bool warm_prompts = true;
  bool loads_by_layer = true;  // steps may wait for a load layer by layer: it is copied that way
};

class ModelExecutor final : public Executor {
 public:
  ModelExecutor(std::shared_ptr<const Model> model, const ModelExecutorConfig& config);
  ~ModelExecutor() override;

  static size_t block_bytes(const Model& model, int block_size, std::optional<DType> kv_dtype);
  // Device memory, in bytes, that steps take beside weights and KV cache: activations, logits, workspaces.
  // Measured by running the largest steps of this configuration (its num_blocks is not read) once.
  static size_t profile(std::shared_ptr<const Model> model, ModelExecutorConfig config);

  int vocab_size() const override { return model_->spec.vocab_size; }
  int max_model_len() const override { return config_.max_model_len; }
  KvCacheConfig kv_cache() const override {
    return {config_.block_size, config_.num_blocks, config_.num_host_blocks};
  }
  int max_sampled_rows() const override {
    return config_.max_draft_rows > 0 ? static_cast<int>(logits_rows_) : 0;
  }
  int max_in_flight() const override { return device_sampler_ ? 2 : 1; }
  void submit(const StepPlan& plan) override;
  StepOutput collect() override;
  double time_step(int sequences, int drafts, int context) override;
  std::vector<int> step_sizes() const override;
  void idle() override { model_->backend->idle(); }
  void begin(const Transfer& transfer) override;
  void finished(std::vector<TransferResult>& results) override;
  void on_finished(std::function<void()> wake) override;

  // Logits [tokens, vocab] of one sequence in chunks, over the first blocks of the cache: for tests and
  // evaluation, while no engine uses this executor. chunks: token counts that add up, or empty for one chunk
  // as long as a step allows.
  std::vector<float> forward(const std::vector<int32_t>& tokens, const std::vector<int>& chunks);

 private:
  // Rows whose logits a step samples from, and the sequences that do: one row for each, or, with a draft, as
  // many as the draft has nodes.
  struct Sampling {
    struct Part {
      const SeqStep* step;
      size_t first_row;  // in rows
    };
    std::vector<int32_t> rows;
    std::vector<Part> parts;
    size_t num_samples = 0;  // without drafts' runs
    bool on_host = false, has_drafts = false;
  };
  // A draft in a submitted step: what is needed once its tokens are known.
  struct DraftInFlight {
    SeqId sequence;
    DraftTree tree;
    std::vector<int64_t> slots;  // of each node's K and V
    size_t first_sample;         // of the step's device samples
  };
  struct Pending {                      // a submitted step
    StepOutput output;                  // what is known already: host sampling, prompt logprobs
    std::vector<DraftInFlight> drafts;  // in the plan's order
    bool on_device = false;
  };
  struct Captured {
    std::unique_ptr<Graph> graph;
    bool warm = false;  // ran op by op once
  };

  // The sizes that steps are padded to where more rows than needed cost less than an odd number of them (a
  // device): products of up to 64 rows have kernels of our own, larger ones are made of tiles of 128 rows.
  static int64_t padded(int64_t rows);
  static StepInputs::Limits limits(const ModelExecutorConfig& config);

  void warm_up();
  Sequence made_up_sequence(int number, int length, int prompt_len, int64_t first_block, int blocks) const;
  Sampling sampling_of(const StepPlan& plan) const;
  bool can_replay(const StepPlan& plan, const Sampling& sampling) const;
  void run_ops(const DecoderBatch& batch, bool all_logits, const KvTransfer::Loads& loads = {});
  void run_graph(const DecoderBatch& batch);
  void move_blocks(const StepPlan& plan);
  void copy_blocks(const std::vector<BlockCopy>& copies);
  KvTransfer::Loads wait_for(const StepPlan& plan);
  void sample_on_host(const Sampling& sampling, Pending& step);
  void sample_on_device(const Sampling& sampling, bool have_logits, Pending& step);
  // The logits of chosen rows of the last forward (at most logits_rows_ of them) in host memory.
  float* host_logits(std::span<const int32_t> rows);
  // The K and V of accepted drafts to where they belong. paths: of each draft, the accepted nodes after the
  // root.
  void compact(const std::vector<DraftInFlight>& drafts, const std::vector<std::vector<int>>& paths);
  void copy_slots(const int64_t* pairs, const int32_t* group_start, int num_groups);
  void prompt_logprobs(const StepPlan& plan, StepOutput& output);
  // fn(row number, logits, thread) for each chosen row of the last forward, in slices that fit the buffer.
  template <typename Fn>
  void for_each_logits(const std::vector<int32_t>& rows, Fn&& fn);

  std::shared_ptr<const Model> model_;
  ModelExecutorConfig config_;
  std::shared_ptr<void> kv_data_;
  KvCache cache_;
  std::shared_ptr<HostBlocks> host_blocks_;  // null: none
  StepInputs inputs_;
  Decoder decoder_;
  std::vector<Pending> pending_;  // the oldest first
  int64_t logits_rows_;
  std::shared_ptr<float> logits_;                   // device [logits_rows_, vocab]
  std::vector<float> host_logits_;                  // where the device's memory cannot be read
  std::vector<std::unique_ptr<Sampler>> samplers_;  // one per host thread
  std::unique_ptr<DeviceSampler> device_sampler_;   // null: sampling is the host's
  std::unique_ptr<KvTransfer> transfers_;           // null: no host blocks
  std::map<int64_t, Captured> graphs_;              // by padded rows
  uint64_t graphs_generation_ = 0;                  // Backend::memory_generation when they were captured
};

}  // namespace taco
