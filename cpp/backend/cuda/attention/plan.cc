#include "backend/cuda/attention/plan.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace taco::cuda {
namespace {

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
constexpr int round_up(int64_t a, int64_t b) { return ceil_div(a, b) * static_cast<int>(b); }

// What a segment costs beside its keys, in keys: queries in, results out.
constexpr int kSegmentCost = 32;
// Keys of the shortest chunk, a unit of 16 for each warp; and of a rest that is not worth a segment of its
// own.
constexpr int kShortestChunk = 64, kShortestFewChunk = 128, kSliver = 32, kLongSliver = 128;
// The tile kernel's splits end with its tiles.
constexpr int kTileStep = 64;

// As many as fill the device's slots best.
int chunks_per_head(int slots, int num_kv_heads) {
  int best = 1;
  double best_use = 0;
  for (int waves = 1; waves <= 4; ++waves) {
    int n = slots * waves / num_kv_heads;
    if (n == 0 || n >= kMaxChunks) continue;
    double use = static_cast<double>(n) * num_kv_heads / (static_cast<double>(slots) * waves);
    if (use > best_use + 0.04) best = n, best_use = use;
  }
  return best;
}

class Planner {
 public:
  Planner(const StepShape& shape, const PlanKey& key, const PlanLimits& limits, Plan& plan)
      : shape_(shape), key_(key), limits_(limits), plan_(plan), group_(key.num_heads / key.num_kv_heads) {}

  void run() {
    plan_.decode.clear();
    plan_.tile.clear();
    plan_.plain.clear();
    plan_.sm90.clear();
    plan_.part_rows = plan_.semaphores = 0;
    plan_.tile_rows = kSmallTile;
    choose_decode_rows();
    for (int s = 0; s < shape_.num_seqs; ++s) {
      int q_len = shape_.q_start[s + 1] - shape_.q_start[s];
      if (q_len <= 0) continue;
      TACO_CHECK(!shape_.tree || q_len <= 64, "a draft tree of ", q_len, " nodes");
      if (key_.plain) {
        tiles(s, q_len, group_, plain_);
      } else if (few(q_len)) {
        tiles(s, q_len, plan_.decode_rows, decode_);
      } else if (key_.sm90) {
        long_.push_back(s);
      } else {
        tiled_.push_back(s);
      }
    }
    place_long();
    for (int s : tiled_) {
      if ((shape_.q_start[s + 1] - shape_.q_start[s]) * group_ > kSmallTile)
        plan_.tile_rows = limits_.tile_rows;
    }
    for (int s : tiled_) tiles(s, shape_.q_start[s + 1] - shape_.q_start[s], plan_.tile_rows, tile_);
    plan_.plain.items = plain_;
    plan_.plain.header.num_chunks = static_cast<int>(plain_.size());
    if (limits_.batch_invariant) {
      fixed_splits();
    } else {
      spread_decode();
    }
    spread_tiles();
  }

 private:
  // One tile for all sequences of the decode kernel. Where every sequence of a step has few rows, it hangs on
  // the step's longest alone: on whether that is one. (A captured graph holds the choice.)
  void choose_decode_rows() {
    plan_.decode_rows = limits_.decode_rows;
    all_few_ = false;
    if (limits_.few_rows == 0 || limits_.batch_invariant || key_.plain || shape_.max_q_len <= 1) return;
    all_few_ = shape_.max_q_len <= kFewRows;
    bool drafts = all_few_;
    for (int s = 0; s < shape_.num_seqs && !drafts; ++s) {
      const int q_len = shape_.q_start[s + 1] - shape_.q_start[s];
      drafts = q_len > 1 && q_len * group_ > limits_.decode_rows && q_len * group_ <= kFewPacked;
    }
    if (drafts) plan_.decode_rows = limits_.few_rows;
  }

  bool few(int q_len) const {
    if (q_len == 1 || all_few_) return true;
    if (limits_.batch_invariant) return q_len <= kFewRows;
    return q_len * group_ <= (plan_.decode_rows == limits_.few_rows ? kFewPacked : limits_.decode_rows);
  }
  int decode_slots() const {
    return plan_.decode_rows == limits_.few_rows ? limits_.few_slots : limits_.decode_slots;
  }
  // Partial results of more rows cost more.
  int shortest_chunk() const {
    return plan_.decode_rows == limits_.few_rows ? kShortestFewChunk : kShortestChunk;
  }

  // The row tiles of a sequence, each with all keys that any of its rows sees.
  void tiles(int seq, int q_len, int rows, std::vector<WorkItem>& out) const {
    int total = q_len * group_, kv_len = shape_.kv_len[seq];
    for (int first = 0; first < total; first += rows) {
      WorkItem item{};
      item.seq = seq;
      item.row0 = shape_.q_start[seq];
      item.q_len = q_len;
      item.kv_len = kv_len;
      item.first_row = first;
      item.num_rows = std::min(rows, total - first);
      int last = (first + item.num_rows - 1) / group_;
      item.kv_end = shape_.tree ? kv_len : std::max(0, kv_len - q_len + last + 1);
      int low =
          kv_len - q_len + (shape_.tree ? 0 : first / group_);  // the position of the first row at least
      item.kv_begin = key_.window > 0 ? std::clamp(low - key_.window + 1, 0, item.kv_end) : 0;
      item.num_splits = 1;
      out.push_back(item);
    }
  }

  // The Hopper kernel does not split keys: where its tiles would leave most of the device idle, the tile
  // kernel does better. In the batch-invariant mode a sequence's own length alone decides.
  void place_long() {
    if (long_.empty()) return;
    int64_t blocks = 0;
    for (int s : long_)
      blocks +=
          int64_t{ceil_div(shape_.q_start[s + 1] - shape_.q_start[s], kPrefillSm90Rows)} * key_.num_heads;
    if (!limits_.batch_invariant && blocks * 2 <= limits_.num_sms) {
      tiled_.insert(tiled_.end(), long_.begin(), long_.end());
      return;
    }
    std::vector<std::pair<int, PrefillSm90Item>> order;
    for (int s : long_) {
      int q_len = shape_.q_start[s + 1] - shape_.q_start[s];
      for (int t = 0; t * kPrefillSm90Rows < q_len; ++t) {
        int last = std::min(q_len, (t + 1) * kPrefillSm90Rows);
        int keys = shape_.kv_len[s] - q_len + last;
        if (key_.window > 0) keys = std::min(keys, key_.window + kPrefillSm90Rows);
        order.push_back({keys, {s, t}});
      }
    }
    std::stable_sort(order.begin(), order.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    for (const auto& entry : order) plan_.sm90.push_back(entry.second);
  }

  static int span(const WorkItem& item) { return item.kv_end - item.kv_begin; }

  // Gives the splits of a group, which stand in `items` from `first` on, their numbers and room.
  void finish_group(std::vector<WorkItem>& items, size_t first) {
    int splits = static_cast<int>(items.size() - first);
    if (splits <= 1) return;
    for (int i = 0; i < splits; ++i) {
      WorkItem& item = items[first + i];
      item.split = i;
      item.num_splits = splits;
      item.part_row = static_cast<int>(plan_.part_rows);
      item.semaphore = static_cast<int>(plan_.semaphores);
    }
    plan_.part_rows += int64_t{splits} * key_.num_kv_heads * items[first].num_rows;
    plan_.semaphores += 1;
  }

  // Chunks of as many keys each, one for each thread block: sequences are cut where a chunk is full.
  void spread_decode() {
    if (decode_.empty()) return;
    int64_t keys = 0;
    for (const WorkItem& item : decode_) keys += span(item);
    const int chunks = chunks_per_head();
    // Each sequence is a segment, and each chunk's end cuts one more; a short one shares its chunk with
    // others.
    const int64_t segments = decode_.size() > 1 ? static_cast<int64_t>(decode_.size()) : 0;
    int target =
        std::max(shortest_chunk(), round_up(ceil_div(keys + segments * kSegmentCost, chunks), kSplitStep));
    // A tile of many rows has costs of its own: none shares a chunk where there are chunks enough.
    int64_t apart = 0;
    for (const WorkItem& item : decode_) apart += std::max(1, ceil_div(span(item), target));
    apart_ = plan_.decode_rows == limits_.few_rows && apart <= chunks;
    while (!cut(target, chunks)) target += round_up(target / 64 + 1, kSplitStep);
  }

  int chunks_per_head() const { return cuda::chunks_per_head(decode_slots(), key_.num_kv_heads); }

  bool cut(int target, int chunks) {
    // A merge costs more than a few percent of a chunk: whole sequences where they nearly fit.
    const int sliver = std::clamp(target / 32, kSliver, kLongSliver);
    WorkList& list = plan_.decode;
    list.clear();
    list.header.chunked = 1;
    plan_.part_rows = plan_.semaphores = 0;
    int filled = 0, in_chunk = 0;
    list.header.chunk_start[0] = 0;
    auto close = [&] {
      list.header.chunk_start[++list.header.num_chunks] = static_cast<int>(list.items.size());
      filled = in_chunk = 0;
    };
    for (const WorkItem& whole : decode_) {
      size_t first = list.items.size();
      int begin = whole.kv_begin;
      do {
        if (in_chunk == kMaxChunkItems || (in_chunk > 0 && target - filled < sliver)) close();
        // Too many items for the chunks: the caller makes them longer, unless it is their number that fills
        // them; then there are more chunks than thread blocks run at once.
        if (list.header.num_chunks + 2 >= kMaxChunks) return single_chunks();
        WorkItem item = whole;
        item.kv_begin = begin;
        const int end = begin / kSplitStep * kSplitStep + (target - filled) / kSplitStep * kSplitStep;
        item.kv_end = whole.kv_end - end < sliver ? whole.kv_end : end;
        filled += span(item) + (decode_.size() > 1 ? kSegmentCost : 0);
        ++in_chunk;
        list.items.push_back(item);
        begin = item.kv_end;
      } while (begin < whole.kv_end);
      finish_group(list.items, first);
      if (apart_) close();
    }
    if (in_chunk > 0) close();
    return list.header.num_chunks <= std::max(chunks, ceil_div(list.items.size(), kMaxChunkItems) + 1);
  }

  // Very many sequences: each is a chunk.
  bool single_chunks() {
    WorkList& list = plan_.decode;
    list.clear();
    plan_.part_rows = plan_.semaphores = 0;
    list.items = decode_;
    list.header.num_chunks = static_cast<int>(decode_.size());
    return true;
  }

  // The batch-invariant mode: cuts at multiples of kFixedSplit, so that the arithmetic of a row depends on
  // its own keys only. Runs of splits make up the chunks.
  void fixed_splits() {
    if (decode_.empty()) return;
    WorkList& list = plan_.decode;
    int64_t total = 0;
    for (const WorkItem& whole : decode_) {
      size_t first = list.items.size();
      int begin = whole.kv_begin;
      do {
        WorkItem item = whole;
        item.kv_begin = begin;
        item.kv_end = std::min(whole.kv_end, (begin / kFixedSplit + 1) * kFixedSplit);
        list.items.push_back(item);
        total += span(item) + kSegmentCost;
        begin = item.kv_end;
      } while (begin < whole.kv_end);
      finish_group(list.items, first);
    }
    int chunks = chunks_per_head();
    int64_t target = ceil_div(total, chunks);
    list.header.chunked = 1;
    list.header.chunk_start[0] = 0;
    int64_t filled = 0;
    int in_chunk = 0;
    for (size_t i = 0; i < list.items.size(); ++i) {
      int cost = span(list.items[i]) + kSegmentCost;
      if (in_chunk > 0 && (in_chunk == kMaxChunkItems || filled + cost / 2 > target)) {
        if (list.header.num_chunks + 2 >= kMaxChunks) {
          list.header.chunked = 0;
          list.header.num_chunks = static_cast<int>(list.items.size());
          return;
        }
        list.header.chunk_start[++list.header.num_chunks] = static_cast<int>(i);
        filled = in_chunk = 0;
      }
      filled += cost;
      ++in_chunk;
    }
    list.header.chunk_start[++list.header.num_chunks] = static_cast<int>(list.items.size());
  }

  // The tile kernel: keys are split where there are too few tiles for the device; the longest stand first.
  void spread_tiles() {
    if (tile_.empty()) return;
    WorkList& list = plan_.tile;
    int64_t total = 0;
    for (const WorkItem& item : tile_) total += span(item);
    int64_t blocks = static_cast<int64_t>(tile_.size()) * key_.num_kv_heads;
    const int slots = limits_.num_sms * (plan_.tile_rows == kSmallTile ? 2 : 1);
    bool split = !limits_.batch_invariant && blocks < slots;
    int target = 0;
    if (split) {
      int per_head = std::max(1, slots / key_.num_kv_heads);
      target = std::max(256, round_up(ceil_div(total, per_head), kTileStep));
    }
    for (const WorkItem& whole : tile_) {
      size_t first = list.items.size();
      int begin = whole.kv_begin;
      do {
        WorkItem item = whole;
        item.kv_begin = begin;
        int end = begin / kTileStep * kTileStep + target;
        item.kv_end = !split || whole.kv_end - end < kTileStep ? whole.kv_end : end;
        list.items.push_back(item);
        begin = item.kv_end;
      } while (begin < whole.kv_end);
      finish_group(list.items, first);
    }
    std::stable_sort(list.items.begin(), list.items.end(),
                     [](const WorkItem& a, const WorkItem& b) { return span(a) > span(b); });
    list.header.num_chunks = static_cast<int>(list.items.size());
  }

  const StepShape& shape_;
  const PlanKey& key_;
  const PlanLimits& limits_;
  Plan& plan_;
  const int group_;
  bool all_few_ = false, apart_ = false;
  std::vector<WorkItem> decode_, tile_, plain_;
  std::vector<int> long_, tiled_;
};

}  // namespace

// The decode kernel's splits are of items that a chunk's end cuts: two for each cut. Those of the tile kernel
// are as many as its tiles, which do not fill the slots, and the slots' shares.
int64_t usual_part_rows(const PlanKey& key, const PlanLimits& limits) {
  if (key.plain) return 0;
  auto decode = [&](int slots, int rows) {
    return 2 * (chunks_per_head(slots, key.num_kv_heads) + 1) * rows;
  };
  auto tile = [&](int slots, int rows) { return (2 * std::max(1, slots / key.num_kv_heads) + 1) * rows; };
  const int64_t rows =
      std::max(decode(limits.decode_slots, limits.decode_rows), decode(limits.few_slots, limits.few_rows)) +
      std::max(tile(2 * limits.num_sms, kSmallTile), tile(limits.num_sms, limits.tile_rows));
  return rows * key.num_kv_heads;
}

void make_plan(const StepShape& shape, const PlanKey& key, const PlanLimits& limits, Plan& plan) {
  Planner(shape, key, limits, plan).run();
}

}  // namespace taco::cuda
