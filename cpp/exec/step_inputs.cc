#include "exec/step_inputs.h"

#include <algorithm>

#include "base/error.h"

namespace taco {
namespace {

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where the arrays of a step stand in its packed copy, in bytes.
struct Layout {
  size_t slots, ids, positions, sources, sampled, q_start, kv_len, end;
  Layout(int64_t rows, int64_t seqs) {
    slots = 0;
    ids = align(static_cast<size_t>(rows) * sizeof(int64_t));
    positions = ids + align(static_cast<size_t>(rows) * sizeof(int32_t));
    sources = positions + (positions - ids);
    sampled = sources + (positions - ids);
    q_start = sampled + (positions - ids);
    kv_len = q_start + align(static_cast<size_t>(seqs + 1) * sizeof(int32_t));
    end = kv_len + align(static_cast<size_t>(seqs) * sizeof(int32_t));
  }
};

}  // namespace

StepInputs::StepInputs(std::shared_ptr<Backend> backend, int block_size, const Limits& limits)
    : backend_(std::move(backend)), block_size_(block_size), limits_(limits) {
  size_t packed = Layout(limits.max_rows, limits.max_seqs).end;
  size_t tables = static_cast<size_t>(limits.max_seqs) * limits.max_blocks * sizeof(int32_t);
  d_packed_ = device_memory(backend_, packed);
  d_tables_ = device_memory(backend_, tables);
  for (Slot& slot : slots_) {
    slot.packed = host_memory(backend_, packed);
    slot.tables = host_memory(backend_, tables);
  }
}

void StepInputs::set_results(std::vector<SeqId> order) {
  results_ = std::move(order);
  place_.clear();
  for (size_t i = 0; i < results_.size(); ++i) place_[results_[i]] = static_cast<int32_t>(i);
}

int32_t StepInputs::source_of(SeqId seq, size_t hint) const {
  if (hint < results_.size() && results_[hint] == seq) return static_cast<int32_t>(hint);
  auto found = place_.find(seq);
  TACO_CHECK(found != place_.end(), "sequence ", seq, " waits for a token that the last step did not choose");
  return found->second;
}

const DecoderBatch& StepInputs::build(const StepPlan& plan, int64_t padded_rows,
                                      const std::vector<int32_t>& sampled_rows) {
  const int64_t num_seqs = static_cast<int64_t>(plan.seqs.size());
  TACO_CHECK(num_seqs <= limits_.max_seqs && padded_rows <= limits_.max_rows, num_seqs, " sequences, ",
             padded_rows, " rows");
  Slot& slot = slots_[next_slot_++ % kSlots];
  backend_->wait(slot.mark);
  // A graph's rows are its sequences; elsewhere the number of sequences is what it is.
  const Layout layout(padded_rows, std::max(num_seqs, std::min<int64_t>(padded_rows, limits_.max_seqs)));
  char* packed = static_cast<char*>(slot.packed.get());
  auto at = [&](size_t offset) { return reinterpret_cast<int32_t*>(packed + offset); };
  auto* slots = reinterpret_cast<int64_t*>(packed + layout.slots);
  int32_t *ids = at(layout.ids), *positions = at(layout.positions), *sources = at(layout.sources);

  q_start_.assign(1, 0);
  kv_len_.clear();
  has_sources_ = false;
  int64_t row = 0;
  int32_t max_kv_len = 1, max_q_len = 1;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    const int32_t end = step.start + step.count;
    TACO_CHECK(step.count > 0 && end <= seq.len(), "step of ", step.count, " tokens from ", step.start,
               " in a sequence of ", seq.len());
    TACO_CHECK(static_cast<int64_t>(seq.blocks.size()) * block_size_ >= end, "blocks do not cover the step");
    TACO_CHECK(row + step.count <= padded_rows, "more rows than ", padded_rows);
    for (int32_t p = step.start; p < end; ++p, ++row) {
      const int32_t token = seq.tokens[p];
      const bool pending = token == kPendingToken;
      sources[row] = pending ? source_of(seq.id, static_cast<size_t>(row)) : -1;
      has_sources_ |= pending;
      ids[row] = pending ? 0 : token;
      positions[row] = p;
      slots[row] = int64_t{seq.blocks[p / block_size_]} * block_size_ + p % block_size_;
    }
    q_start_.push_back(static_cast<int32_t>(row));
    kv_len_.push_back(end);
    max_kv_len = std::max(max_kv_len, end);
    max_q_len = std::max(max_q_len, step.count);
  }
  const int64_t rows = row;
  for (; row < padded_rows; ++row) {
    ids[row] = 0;
    positions[row] = 0;
    sources[row] = -1;
    slots[row] = -1;
  }
  std::copy(q_start_.begin(), q_start_.end(), at(layout.q_start));
  std::copy(kv_len_.begin(), kv_len_.end(), at(layout.kv_len));
  TACO_CHECK(static_cast<int64_t>(sampled_rows.size()) <= padded_rows);
  std::fill_n(at(layout.sampled), padded_rows, 0);
  std::copy(sampled_rows.begin(), sampled_rows.end(), at(layout.sampled));

  const int64_t width = (max_kv_len + block_size_ - 1) / block_size_;
  auto* tables = static_cast<int32_t*>(slot.tables.get());
  for (int64_t i = 0; i < num_seqs; ++i) {
    const std::vector<BlockId>& blocks = plan.seqs[i].sequence->blocks;
    const int64_t known = std::min<int64_t>(blocks.size(), width);
    std::copy_n(blocks.begin(), known, tables + i * width);
    std::fill(tables + i * width + known, tables + (i + 1) * width, 0);
  }
  backend_->upload_async(d_packed_.get(), packed, layout.end);
  backend_->upload_rows_async(d_tables_.get(), limits_.max_blocks * sizeof(int32_t), tables,
                              static_cast<size_t>(width) * sizeof(int32_t), num_seqs);
  slot.mark = backend_->mark();

  char* device = static_cast<char*>(d_packed_.get());
  auto d_at = [&](size_t offset) { return reinterpret_cast<int32_t*>(device + offset); };
  d_ids_ = d_at(layout.ids);
  d_sources_ = d_at(layout.sources);
  d_sampled_ = d_at(layout.sampled);
  batch_ = {.rows = padded_rows,
            .ids = d_ids_,
            .positions = d_at(layout.positions),
            .slots = reinterpret_cast<int64_t*>(device + layout.slots),
            .num_seqs = static_cast<int>(num_seqs),
            .q_start = d_at(layout.q_start),
            .kv_len = d_at(layout.kv_len),
            .block_tables = static_cast<const int32_t*>(d_tables_.get()),
            .max_blocks = limits_.max_blocks,
            .max_kv_len = max_kv_len};
  shape_ = {.rows = rows,
            .num_seqs = static_cast<int>(num_seqs),
            .q_start = q_start_.data(),
            .kv_len = kv_len_.data(),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len,
            .tree = false};
  return batch_;
}

const int32_t* StepInputs::upload_index(const std::vector<int32_t>& rows) {
  if (rows.size() > index_capacity_) {
    index_capacity_ = std::max<size_t>(rows.size() * 2, 64);
    d_index_ = device_memory(backend_, index_capacity_ * sizeof(int32_t));
  }
  backend_->upload(d_index_.get(), rows.data(), rows.size() * sizeof(int32_t));
  return static_cast<const int32_t*>(d_index_.get());
}

}  // namespace taco
