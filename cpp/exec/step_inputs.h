// Lays out what a step needs (ids, positions, slots, block tables) and brings it to the backend.
#pragma once

#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "model/decoder.h"
#include "sched/step_plan.h"

namespace taco {

// Everything but the block tables goes in one copy. Where each array stands depends on the padded number of
// rows and sequences alone, and the memory never moves, so that a captured graph finds the arrays of the step
// that it is replayed for.
class StepInputs {
 public:
  struct Limits {
    int max_rows, max_seqs, max_blocks;  // max_blocks: of one sequence
  };
  StepInputs(std::shared_ptr<Backend> backend, int block_size, const Limits& limits);

  // padded_rows: the rows to compute, at least the plan's; each row beyond the plan's writes no K and V and
  // belongs to no sequence. sampled_rows: rows whose logits are wanted.
  // The pointers stay good until the next call; the next call but one waits for this step's copies.
  const DecoderBatch& build(const StepPlan& plan, int64_t padded_rows,
                            const std::vector<int32_t>& sampled_rows);
  const StepShape& shape() const { return shape_; }
  const int32_t* sampled_rows() const { return d_sampled_; }  // device, [padded_rows at most]
  int32_t* ids() const { return d_ids_; }
  // For each row the place of its token in the last step's results, or -1 where the host knows it.
  const int32_t* sources() const { return d_sources_; }
  // What the next build finds pending tokens by: the sequences in the order of this step's results.
  void set_results(std::vector<SeqId> order);

  // Row numbers to the device, good until the next call.
  const int32_t* upload_index(std::span<const int32_t> rows);
  // Likewise for CopySlotsParams: its pairs and group_start.
  std::pair<const int64_t*, const int32_t*> upload_moves(std::span<const int64_t> pairs,
                                                         std::span<const int32_t> group_start);

 private:
  static constexpr int kSlots = 2;
  struct Slot {
    std::shared_ptr<void> packed, tables;  // host memory that copies run from
    uint64_t mark = 0;
  };
  int32_t source_of(SeqId seq, size_t hint) const;

  std::shared_ptr<Backend> backend_;
  int block_size_;
  Limits limits_;
  Slot slots_[kSlots];
  int next_slot_ = 0;
  char* index_memory(size_t bytes);
  const char* send_index(size_t bytes);
  std::shared_ptr<void> d_packed_, d_tables_, index_, d_index_;  // index_: host memory that copies run from
  size_t index_capacity_ = 0;                                    // bytes
  uint64_t index_mark_ = 0;
  int32_t *d_ids_ = nullptr, *d_sources_ = nullptr, *d_sampled_ = nullptr;
  std::vector<SeqId> results_;
  std::unordered_map<SeqId, int32_t> place_;
  std::vector<int32_t> q_start_, kv_len_;  // for shape_
  StepShape shape_;
  DecoderBatch batch_;
};

}  // namespace taco
