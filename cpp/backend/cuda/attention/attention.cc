#include "backend/cuda/attention/attention.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "backend/cuda/attention/mma.h"
#include "backend/cuda/attention/plan.h"
#include "backend/cuda/ops/ops.h"

namespace taco::cuda {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

// Host memory for copies to the device, in turn; one is written again only when its copy has run.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    for (Slot& slot : slots_) {
      cudaFreeHost(slot.data);
      if (slot.copied != nullptr) cudaEventDestroy(slot.copied);
    }
  }
  void upload(void* device, const void* a, size_t a_bytes, const void* b, size_t b_bytes,
              const Context& ctx) {
    Slot& slot = slots_[next_++ % kSlots];
    if (slot.copied == nullptr) {
      TACO_CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    } else {
      TACO_CUDA_CHECK(cudaEventSynchronize(slot.copied));
    }
    if (slot.size < a_bytes + b_bytes) {
      cudaFreeHost(slot.data);
      slot.data = nullptr;
      slot.size = 0;
      size_t size = std::bit_ceil(std::max<size_t>(a_bytes + b_bytes, 1 << 14));
      TACO_CUDA_CHECK(cudaMallocHost(&slot.data, size));
      slot.size = size;
    }
    std::memcpy(slot.data, a, a_bytes);
    if (b_bytes > 0) std::memcpy(static_cast<char*>(slot.data) + a_bytes, b, b_bytes);
    const size_t bytes = a_bytes + b_bytes;
    if (!run_small_copy(device, bytes, slot.data, bytes, 1, ctx))
      TACO_CUDA_CHECK(cudaMemcpyAsync(device, slot.data, bytes, cudaMemcpyHostToDevice, ctx.stream));
    TACO_CUDA_CHECK(cudaEventRecord(slot.copied, ctx.stream));
  }

 private:
  static constexpr int kSlots = 8;
  struct Slot {
    void* data = nullptr;
    size_t size = 0;
    cudaEvent_t copied = nullptr;
  };
  Slot slots_[kSlots];
  int next_ = 0;
};

// For divide() of the kernels: exact while quotients times the square of the divisor stay below 2^32.
uint32_t inverse(int divisor) {
  return divisor == 1 ? 0 : static_cast<uint32_t>(((uint64_t{1} << 32) + divisor - 1) / divisor);
}

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TACO_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Memory of lists moves when it grows, and with it every captured graph is void: room for all but the largest
// steps from the start.
constexpr size_t kListItems = 4096, kPrefillListBytes = size_t{1} << 14;

// A list on the device: the header, then the items. It moves only when it grows.
struct DeviceList {
  Scratch memory;
  bool used = false;  // has held anything: from then on it is kept up to date

  const WorkHeader* header(const Context& ctx) { return static_cast<const WorkHeader*>(reserve(0, ctx)); }
  const WorkItem* items(const Context& ctx) { return reinterpret_cast<const WorkItem*>(header(ctx) + 1); }
  void* reserve(size_t items, const Context& ctx) {
    if (items > capacity_) capacity_ = std::bit_ceil(items);
    return memory.reserve_zeroed(sizeof(WorkHeader) + sizeof(WorkItem) * capacity_, ctx.stream);
  }
  void upload(const WorkList& list, Staging& staging, const Context& ctx) {
    if (list.header.num_chunks == 0 && !used) return;
    used = true;
    staging.upload(reserve(list.items.size(), ctx), &list.header, sizeof(WorkHeader), list.items.data(),
                   list.items.size() * sizeof(WorkItem), ctx);
  }

 private:
  size_t capacity_ = kListItems;
};

// The step's plan for all layers of one kind, on the device.
struct LayerPlan {
  PlanKey key;
  PlanLimits limits;
  bool tree;
  Plan plan;
  DeviceList decode, tile, plain;
  Scratch sm90;
};

}  // namespace

struct Attention::Impl {
  explicit Impl(Context& context) : ctx(context) {}

  void update(LayerPlan& layer) {
    StepShape now = shape;
    if (now.tree != layer.tree) now.num_seqs = 0;  // the other kind of step has its own plan
    make_plan(now, layer.key, layer.limits, layer.plan);
    layer.decode.upload(layer.plan.decode, staging, ctx);
    layer.tile.upload(layer.plan.tile, staging, ctx);
    layer.plain.upload(layer.plan.plain, staging, ctx);
    if (!layer.plan.sm90.empty()) {
      // [count, 0], then the items.
      const int32_t head[2] = {static_cast<int32_t>(layer.plan.sm90.size()), 0};
      size_t bytes = layer.plan.sm90.size() * sizeof(PrefillSm90Item);
      void* device =
          layer.sm90.reserve(std::max(kPrefillListBytes, std::bit_ceil(sizeof head + bytes)), ctx.stream);
      staging.upload(device, head, sizeof head, layer.plan.sm90.data(), bytes, ctx);
    }
    if (layer.plan.part_rows > 0) {
      // Results, then maxima and sums.
      size_t rows = std::bit_ceil(static_cast<size_t>(layer.plan.part_rows));
      part_floats = std::max(part_floats, rows * layer.key.head_dim);
      part_rows = std::max(part_rows, rows);
      semaphores = std::max(semaphores, static_cast<size_t>(layer.plan.semaphores) * layer.key.num_kv_heads);
    }
    ctx.split_partials.reserve(sizeof(float) * (part_floats + 2 * part_rows), ctx.stream);
    ctx.split_semaphores.reserve_zeroed(sizeof(int) * std::bit_ceil(semaphores), ctx.stream);
  }

  LayerPlan& find(const PlanKey& key, const AttentionParams& p, bool tree, int decode_rows, int tile_rows) {
    for (auto& layer : layers) {
      if (layer->key == key && layer->tree == tree && layer->limits.decode_rows == decode_rows) return *layer;
    }
    TACO_CHECK(!capturing(ctx.stream), "a layer's attention must run once before a graph is captured");
    auto layer = std::make_unique<LayerPlan>();
    layer->key = key;
    layer->tree = tree;
    layer->limits.decode_rows = decode_rows;
    layer->limits.tile_rows = tile_rows;
    layer->limits.few_rows = key.plain ? 0 : few_rows(key.head_dim);
    if (layer->limits.few_rows > 0)
      layer->limits.few_slots =
          decode_launch(ctx, p.cache.dtype, key.head_dim, layer->limits.few_rows).blocks_per_sm * ctx.num_sms;
    layer->limits.num_sms = ctx.num_sms;
    layer->limits.decode_slots =
        key.plain ? 1
                  : decode_launch(ctx, p.cache.dtype, key.head_dim, decode_rows).blocks_per_sm * ctx.num_sms;
    layer->limits.batch_invariant = ctx.batch_invariant;
    part_rows = std::max(part_rows, std::bit_ceil(static_cast<size_t>(usual_part_rows(key, layer->limits))));
    part_floats = std::max(part_floats, part_rows * key.head_dim);
    layers.push_back(std::move(layer));
    update(*layers.back());
    return *layers.back();
  }

  void run(const AttentionParams& p);

  Context& ctx;
  StepShape shape;
  std::vector<int32_t> q_start, kv_len;
  Staging staging;
  std::vector<std::unique_ptr<LayerPlan>> layers;
  size_t part_floats = 1 << 20, part_rows = 1 << 13, semaphores = 1 << 12;
};

void Attention::Impl::run(const AttentionParams& p) {
  const KvCacheView& cache = p.cache;
  const bool tree = p.tree_mask != nullptr,
             fp8 = cache.dtype == DType::kF8E4M3 || cache.dtype == DType::kF8E5M2;
  TACO_CHECK(tree == shape.tree, "the step was announced with tree = ", shape.tree);
  const int group = p.num_heads / cache.num_kv_heads;
  PlanKey key{p.num_heads, cache.num_kv_heads, cache.head_dim, p.window, !takes_mma(p), false};
  key.sm90 = !key.plain && takes_prefill_sm90(ctx, p);
  const int decode_rows = cuda::decode_rows(cache.dtype, cache.head_dim, group);
  const int tile_rows = cache.head_dim > 128 ? 64 : 128;
  LayerPlan& layer = find(key, p, tree, decode_rows, tile_rows);
  const Plan& plan = layer.plan;

  PagedParams d{};
  d.q = p.q;
  d.out = p.out;
  d.cache = cache.data;
  d.block_tables = p.block_tables;
  d.positions = p.positions;
  d.tree_mask = p.tree_mask;
  d.alibi_slopes = p.alibi_slopes;
  d.sinks = p.sinks;
  d.pattern = p.pattern;
  d.part_out = static_cast<float*>(ctx.split_partials.reserve(0, ctx.stream));
  d.part_max_sum = d.part_out + part_floats;
  d.semaphores = static_cast<int*>(ctx.split_semaphores.reserve_zeroed(0, ctx.stream));
  d.q_stride = p.q_stride;
  d.out_stride = p.out_stride;
  d.max_blocks = p.max_blocks;
  d.value_offset = int64_t{cache.num_kv_heads} * cache.block_size * cache.head_dim;
  d.num_heads = p.num_heads;
  d.num_kv_heads = cache.num_kv_heads;
  d.group = group;
  d.group_inverse = inverse(group);
  d.kv_heads_inverse = inverse(cache.num_kv_heads);
  d.head_dim = cache.head_dim;
  d.block_size = cache.block_size;
  d.block_shift = std::countr_zero(static_cast<unsigned>(cache.block_size));
  d.window = p.window;
  d.capped = p.softcap > 0.0f;
  d.q_half = p.dtype == DType::kF16;
  d.e5m2 = cache.dtype == DType::kF8E5M2;
  d.q_dtype = p.dtype;
  d.kv_dtype = cache.dtype;
  // The mma kernels read e4m3 as numbers that are 2^-8 of what they are.
  const float widened = cache.dtype == DType::kF8E4M3 && !key.plain ? 256.0f : 1.0f;
  const float k_scale = p.scale * (fp8 ? cache.k_scale * widened : 1.0f);
  const float log2e = key.plain ? 1.0f : kLog2e;
  d.score_scale = d.capped ? k_scale / p.softcap : k_scale * log2e;
  d.score_cap = p.softcap * log2e;
  d.value_scale = fp8 ? cache.v_scale * widened : 1.0f;

  // A graph holds fixed sizes; elsewhere no more is launched than there is to do.
  const bool fixed = capturing(ctx.stream);
  auto grid = [&](const WorkList& list, int64_t heads, int slots) {
    int64_t work = list.header.num_chunks * heads;
    return static_cast<int>(fixed ? slots : std::min<int64_t>(work, slots));
  };
  if (key.plain) {
    if (plan.plain.header.num_chunks == 0 && !fixed) return;
    d.header = layer.plain.header(ctx);
    d.items = layer.plain.items(ctx);
    launch_plain(ctx, grid(plan.plain, p.num_heads, 16 * ctx.num_sms), d);
    return;
  }
  if (!plan.sm90.empty()) {
    TACO_CHECK(!fixed, "prefill cannot be captured");
    const int32_t* count = static_cast<const int32_t*>(layer.sm90.reserve(0, ctx.stream));
    run_prefill_sm90(ctx, p,
                     {.items = reinterpret_cast<const PrefillSm90Item*>(count + 2),
                      .num_items = count,
                      .max_items = static_cast<int64_t>(plan.sm90.size())});
  }
  if (plan.tile.header.num_chunks > 0) {
    TACO_CHECK(!fixed || shape.max_q_len <= kFewRows, "prefill cannot be captured");
    d.header = layer.tile.header(ctx);
    d.items = layer.tile.items(ctx);
    // Blocks beyond those that run at once start as others end, so the longest come first.
    launch_tile(ctx, cache.dtype, plan.tile_rows,
                grid(plan.tile, cache.num_kv_heads, fixed ? 2 * ctx.num_sms : 1 << 20), d);
  }
  if (plan.decode.header.num_chunks > 0 || fixed) {
    const int rows = plan.decode_rows;
    const DecodeLaunch sizes = decode_launch(ctx, cache.dtype, cache.head_dim, rows);
    d.stages = sizes.stages;
    d.early = fixed;
    d.header = layer.decode.header(ctx);
    d.items = layer.decode.items(ctx);
    launch_decode(ctx, cache.dtype, rows,
                  grid(plan.decode, cache.num_kv_heads, sizes.blocks_per_sm * ctx.num_sms), d);
  }
}

Attention::Attention(Context& ctx) : impl_(std::make_unique<Impl>(ctx)) {}
Attention::~Attention() = default;

void Attention::begin_step(const StepShape& shape) {
  Impl& impl = *impl_;
  impl.q_start.assign(shape.q_start, shape.q_start + shape.num_seqs + 1);
  impl.kv_len.assign(shape.kv_len, shape.kv_len + shape.num_seqs);
  impl.shape = shape;
  impl.shape.q_start = impl.q_start.data();
  impl.shape.kv_len = impl.kv_len.data();
  for (auto& layer : impl.layers) impl.update(*layer);
}

void Attention::run(const AttentionParams& p) { impl_->run(p); }

}  // namespace taco::cuda
