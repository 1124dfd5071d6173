#include "exec/step_inputs.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cache/block_table.h"

namespace taco {
namespace {

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where the arrays of a step stand in its packed copy, in bytes.
struct Layout {
  size_t slots, ids, positions, sources, sampled, q_start, kv_len, end;
  size_t tree_mask, end_with_masks;  // at the end: most steps need none
  Layout(int64_t rows, int64_t seqs) {
    slots = 0;
    ids = align(static_cast<size_t>(rows) * sizeof(int64_t));
    positions = ids + align(static_cast<size_t>(rows) * sizeof(int32_t));
    sources = positions + (positions - ids);
    sampled = sources + (positions - ids);
    q_start = sampled + (positions - ids);
    kv_len = q_start + align(static_cast<size_t>(seqs + 1) * sizeof(int32_t));
    end = kv_len + align(static_cast<size_t>(seqs) * sizeof(int32_t));
    tree_mask = end;
    end_with_masks = tree_mask + (ids - slots);
  }
};

}  // namespace

StepInputs::StepInputs(std::shared_ptr<Backend> backend, int block_size, const Limits& limits)
    : backend_(std::move(backend)), block_size_(block_size), limits_(limits) {
  size_t packed = Layout(limits.max_rows, limits.max_seqs).end_with_masks;
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
  auto* tree_mask = plan.has_trees ? reinterpret_cast<uint64_t*>(packed + layout.tree_mask) : nullptr;
  int32_t *ids = at(layout.ids), *positions = at(layout.positions), *sources = at(layout.sources);

  q_start_.assign(1, 0);
  kv_len_.clear();
  int64_t row = 0;
  int32_t max_kv_len = 1, max_q_len = 1;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    const int32_t end = step.start + step.count;
    const DraftTree* draft = step.draft;
    TACO_CHECK(step.count > 0 &&
                   (draft ? draft->size == step.count && step.start + 1 == seq.len() : end <= seq.len()),
               "step of ", step.count, " tokens from ", step.start, " in a sequence of ", seq.len());
    TACO_CHECK(static_cast<int64_t>(seq.blocks.size()) * block_size_ >= end, "blocks do not cover the step");
    TACO_CHECK(row + step.count <= padded_rows, "more rows than ", padded_rows);
    for (int32_t p = step.start; p < end; ++p, ++row) {
      const int32_t node = p - step.start, token = draft && node > 0 ? draft->token[node] : seq.tokens[p];
      const bool pending = token == kPendingToken;
      sources[row] = pending ? source_of(seq.id, static_cast<size_t>(row)) : -1;
      ids[row] = pending ? 0 : token;
      positions[row] = draft ? step.start + draft->depth[node] : p;
      if (tree_mask) tree_mask[row] = draft ? draft->ancestors[node] : ~uint64_t{0} >> (63 - node);
      slots[row] = slot_of(seq.blocks, p, block_size_);
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
    if (tree_mask) tree_mask[row] = 0;
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
  backend_->upload_async(d_packed_.get(), packed, plan.has_trees ? layout.end_with_masks : layout.end);
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
            .max_kv_len = max_kv_len,
            .tree_mask = plan.has_trees ? reinterpret_cast<uint64_t*>(device + layout.tree_mask) : nullptr};
  shape_ = {.rows = rows,
            .num_seqs = static_cast<int>(num_seqs),
            .q_start = q_start_.data(),
            .kv_len = kv_len_.data(),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len,
            .tree = plan.has_trees};
  return batch_;
}

// Host memory for index lists, of which what was written last has been copied.
char* StepInputs::index_memory(size_t bytes) {
  backend_->wait(index_mark_);
  if (bytes > index_capacity_) {
    index_capacity_ = std::max(bytes * 2, size_t{1} << 14);
    index_ = host_memory(backend_, index_capacity_);
    d_index_ = device_memory(backend_, index_capacity_);
  }
  return static_cast<char*>(index_.get());
}

// Queues the copy of what stands there.
const char* StepInputs::send_index(size_t bytes) {
  backend_->upload_async(d_index_.get(), index_.get(), bytes);
  index_mark_ = backend_->mark();
  return static_cast<const char*>(d_index_.get());
}

const int32_t* StepInputs::upload_index(std::span<const int32_t> rows) {
  std::memcpy(index_memory(rows.size_bytes()), rows.data(), rows.size_bytes());
  return reinterpret_cast<const int32_t*>(send_index(rows.size_bytes()));
}

std::pair<const int64_t*, const int32_t*> StepInputs::upload_moves(std::span<const int64_t> pairs,
                                                                   std::span<const int32_t> group_start) {
  const size_t begin = pairs.size_bytes(), bytes = begin + group_start.size_bytes();
  char* host = index_memory(bytes);
  std::memcpy(host, pairs.data(), begin);
  std::memcpy(host + begin, group_start.data(), group_start.size_bytes());
  const char* device = send_index(bytes);
  return {reinterpret_cast<const int64_t*>(device), reinterpret_cast<const int32_t*>(device + begin)};
}

}  // namespace taco
