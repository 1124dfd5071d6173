// Shares a step's attention out over the threads.
#include <algorithm>

#include "backend/cpu/activations.h"
#include "backend/cpu/ops/ops.h"
#include "base/error.h"

namespace taco::cpu {
namespace {

// Costs are in multiply-adds, roughly; a key costs a few rows' worth to fetch.
constexpr double kKeyCost = 4;
constexpr double kGrainCost = 300e3;  // below it one thread does it all

// Rows of an item: enough of them for each tile of K and V that is fetched, few enough for the second-level
// cache.
int target_rows(int head_dim) { return std::clamp(16384 / head_dim / 32 * 32, 32, 256); }

}  // namespace

void Attention::plan(const AttentionParams& p, int threads) {
  const int group = p.num_heads / p.cache.num_kv_heads, dim = p.cache.head_dim;
  const int tile_tokens = std::max(1, target_rows(dim) / group);
  items_.clear();
  merges_.clear();
  partial_floats_ = 0;
  max_rows_ = (tile_tokens * group + kAttentionRowBlock - 1) / kAttentionRowBlock * kAttentionRowBlock;

  auto visible_from = [&](int position) { return p.window > 0 ? std::max(0, position - p.window + 1) : 0; };
  auto item_cost = [&](int position, int tokens) {
    const double keys = position + tokens - visible_from(position);
    return keys * (tokens * group + kKeyCost) * dim;
  };
  cost_ = 0;
  int64_t num_items = 0;
  for (int s = 0; s < p.num_seqs; ++s) {
    const int q_len = p.q_start[s + 1] - p.q_start[s];
    TACO_CHECK(q_len >= 0 && q_len <= p.kv_len[s], "sequence ", s, " has more rows than tokens");
    TACO_CHECK(p.kv_len[s] <= p.max_blocks * p.cache.block_size, "sequence ", s, " outgrows its block table");
    TACO_CHECK(!p.tree_mask || q_len <= 64, "a draft tree of ", q_len, " nodes");
    for (int t = 0; t < q_len; t += tile_tokens) {
      cost_ += item_cost(p.kv_len[s] - q_len + t, std::min(tile_tokens, q_len - t)) * p.cache.num_kv_heads;
      num_items += p.cache.num_kv_heads;
    }
  }
  items_.reserve(num_items);

  // Rows with much to read go first and are shared in splits, so that the threads end together.
  auto add = [&](int s, int token, int tokens) {
    const int q_len = p.q_start[s + 1] - p.q_start[s];
    AttentionItem work{};
    work.row = p.q_start[s] + token;
    work.tokens = tokens;
    work.position = p.kv_len[s] - q_len + token;
    work.first_row = p.q_start[s];
    work.root = p.kv_len[s] - q_len;
    work.lowest = p.tree_mask ? work.root : work.position;
    work.blocks = p.block_tables + s * p.max_blocks;
    const int first = visible_from(work.lowest) / kKvSplit;
    const int last = (work.position + tokens - 1) / kKvSplit + 1;
    const bool share = threads > 1 && cost_ > kGrainCost && last - first > 1 &&
                       item_cost(work.position, tokens) * threads * 3 > cost_;
    for (int head = 0; head < p.cache.num_kv_heads; ++head) {
      work.kv_head = head;
      if (!share) {
        work.split_begin = first;
        work.split_end = last;
        items_.push_back({work, -1});
        continue;
      }
      const int merge = static_cast<int>(merges_.size());
      work.split_begin = work.split_end = 0;
      merges_.push_back({work, partial_floats_, last - first});
      for (int split = first; split < last; ++split) {
        work.split_begin = split;
        work.split_end = split + 1;
        items_.push_back({work, merge});
      }
      partial_floats_ += (last - first) * attention_partial_floats(int64_t{tokens} * group, dim);
    }
  };
  for (int s = 0; s < p.num_seqs; ++s) {
    const int q_len = p.q_start[s + 1] - p.q_start[s];
    if (q_len <= 1) continue;
    for (int t = (q_len - 1) / tile_tokens * tile_tokens; t >= 0; t -= tile_tokens)
      add(s, t, std::min(tile_tokens, q_len - t));
  }
  for (int s = 0; s < p.num_seqs; ++s) {
    if (p.q_start[s + 1] - p.q_start[s] == 1) add(s, 0, 1);
  }
}

void Attention::run(const AttentionParams& p, ThreadPool& pool) {
  TACO_CHECK(p.cache.num_kv_heads > 0 && p.num_heads % p.cache.num_kv_heads == 0, p.num_heads,
             " query heads for ", p.cache.num_kv_heads, " KV heads");
  plan(p, pool.size());
  if (items_.empty()) return;

  const VectorKernels& kernels = vector_kernels();
  const AttentionArgs args{f32(p.q),
                           p.q_stride,
                           p.num_heads,
                           p.cache.num_kv_heads,
                           p.cache.head_dim,
                           p.cache.data,
                           kv_type(p.cache.dtype),
                           p.cache.block_size,
                           p.scale,
                           p.softcap,
                           p.window,
                           p.pattern,
                           p.alibi_slopes,
                           p.sinks,
                           f32(p.out),
                           p.out_stride,
                           max_rows_,
                           p.tree_mask,
                           p.positions};
  const int64_t per_thread = (attention_scratch_floats(max_rows_, p.cache.head_dim) + 31) / 16 * 16;
  scratch_.reserve(per_thread * pool.size() * sizeof(float));
  float* scratch = scratch_.as<float>();

  if (merges_.size() > remaining_size_) {
    remaining_size_ = merges_.size() * 2;
    remaining_ = std::make_unique<std::atomic<int>[]>(remaining_size_);
  }
  if (!merges_.empty()) {
    partials_.reserve(partial_floats_ * sizeof(float));
    for (size_t i = 0; i < merges_.size(); ++i)
      remaining_[i].store(merges_[i].count, std::memory_order_relaxed);
    for (Item& item : items_) {
      if (item.merge < 0) continue;
      const Merge& merge = merges_[item.merge];
      const int64_t rows = int64_t{item.work.tokens} * (p.num_heads / p.cache.num_kv_heads);
      const int first = (p.window > 0 ? std::max(0, item.work.lowest - p.window + 1) : 0) / kKvSplit;
      item.work.partial = partials_.as<float>() + merge.partials +
                          (item.work.split_begin - first) * attention_partial_floats(rows, p.cache.head_dim);
    }
  }

  std::atomic<int64_t> next{0};
  const int64_t count = static_cast<int64_t>(items_.size());
  auto work = [&](int thread, int) {
    float* mine = scratch + thread * per_thread;
    if (kernels.attention_begin) kernels.attention_begin();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const Item& item = items_[i];
      kernels.attention(args, item.work, mine);
      if (item.merge < 0) continue;
      // The last of the splits to end merges them all, in their order.
      if (remaining_[item.merge].fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const Merge& merge = merges_[item.merge];
        kernels.attention_merge(args, merge.work, partials_.as<float>() + merge.partials, merge.count, mine);
      }
    }
    if (kernels.attention_end) kernels.attention_end();
  };
  if (cost_ <= kGrainCost || count == 1) {
    work(0, 1);
  } else {
    pool.run(work);
  }
}

}  // namespace taco::cpu
