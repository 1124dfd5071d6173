#include "exec/step_inputs.h"

#include <algorithm>

#include "base/error.h"

namespace taco {

StepInputs::StepInputs(std::shared_ptr<Backend> backend, int block_size)
    : backend_(std::move(backend)), block_size_(block_size) {
  for (auto* a : {&d_ids_, &d_positions_, &d_q_start_, &d_kv_len_, &d_tables_, &d_index_})
    a->backend = backend_;
  d_slots_.backend = backend_;
}

template <typename T>
const T* StepInputs::Array<T>::upload(const std::vector<T>& host) {
  if (host.size() > capacity) {
    capacity = std::max<size_t>(host.size() * 2, 64);
    std::shared_ptr<Backend> b = backend;
    data = std::shared_ptr<void>(b->allocate(capacity * sizeof(T)), [b](void* p) { b->release(p); });
  }
  backend->upload(data.get(), host.data(), host.size() * sizeof(T));
  return static_cast<const T*>(data.get());
}

const DecoderBatch& StepInputs::build(const StepPlan& plan) {
  ids_.clear(), positions_.clear(), slots_.clear(), kv_len_.clear();
  q_start_.assign(1, 0);
  size_t max_blocks = 1;
  int max_kv_len = 0;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    int32_t end = step.start + step.count;
    TACO_CHECK(step.count > 0 && end <= seq.len(), "step of ", step.count, " tokens from ", step.start,
               " in a sequence of ", seq.len());
    TACO_CHECK(static_cast<int64_t>(seq.blocks.size()) * block_size_ >= end, "blocks do not cover the step");
    for (int32_t p = step.start; p < end; ++p) {
      ids_.push_back(seq.tokens[p]);
      positions_.push_back(p);
      slots_.push_back(int64_t{seq.blocks[p / block_size_]} * block_size_ + p % block_size_);
    }
    q_start_.push_back(static_cast<int32_t>(ids_.size()));
    kv_len_.push_back(end);
    max_kv_len = std::max(max_kv_len, end);
    max_blocks = std::max<size_t>(max_blocks, (end + block_size_ - 1) / block_size_);
  }
  tables_.assign(plan.seqs.size() * max_blocks, 0);
  for (size_t i = 0; i < plan.seqs.size(); ++i) {
    const std::vector<BlockId>& blocks = plan.seqs[i].sequence->blocks;
    std::copy_n(blocks.begin(), std::min(blocks.size(), max_blocks), tables_.begin() + i * max_blocks);
  }
  batch_ = {.rows = static_cast<int64_t>(ids_.size()),
            .ids = d_ids_.upload(ids_),
            .positions = d_positions_.upload(positions_),
            .slots = d_slots_.upload(slots_),
            .num_seqs = static_cast<int>(plan.seqs.size()),
            .q_start = d_q_start_.upload(q_start_),
            .kv_len = d_kv_len_.upload(kv_len_),
            .block_tables = d_tables_.upload(tables_),
            .max_blocks = static_cast<int64_t>(max_blocks),
            .max_kv_len = max_kv_len};
  return batch_;
}

const int32_t* StepInputs::upload_index(const std::vector<int32_t>& rows) { return d_index_.upload(rows); }

}  // namespace taco
