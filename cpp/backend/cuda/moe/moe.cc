#include "backend/cuda/moe/moe.h"

#include <algorithm>
#include <bit>
#include <map>
#include <vector>

#include "backend/cuda/linear/epilogue.h"
#include "backend/cuda/linear/gated_sm90.h"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/moe/moe_kernels.h"

namespace taco::cuda {

// Experts' addresses on the device, one table for each layer's list. A list is known by its address; what it
// holds is compared at each call, since a new model may reuse the address.
struct MoeTables {
  struct Table {
    std::vector<Expert> host;
    int64_t n = 0, k = 0;
    DType dtype = DType::kF32;
    Expert* experts = nullptr;
    CUtensorMap* maps = nullptr;  // where the Hopper kernel can take them

    ~Table() { release(); }
    void release() {
      cudaFree(experts);
      cudaFree(maps);
      experts = nullptr;
      maps = nullptr;
      host.clear();
    }
  };
  std::map<const void*, Table> tables;

  const Table& get(const Linear* const* experts, int count, Context& ctx) {
    Table& table = tables[experts];
    const CudaLinear& first = as_cuda(*experts[0]);
    bool same = static_cast<int>(table.host.size()) == count && table.n == first.n && table.k == first.k &&
                table.dtype == first.dtype;
    for (int e = 0; same && e < count; ++e) {
      const CudaLinear& w = as_cuda(*experts[e]);
      same = table.host[e].weight == w.data && table.host[e].bias == w.bias && table.host[e].scale == w.scale;
    }
    if (same) return table;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    TACO_CUDA_CHECK(cudaStreamIsCapturing(ctx.stream, &status));
    TACO_CHECK(status == cudaStreamCaptureStatusNone, "experts must have run once before a graph holds them");
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
    table.release();
    bool mapped = ctx.hopper() && first.dtype != DType::kF32 &&
                  first.k * static_cast<int64_t>(dtype_size(first.dtype)) % 16 == 0;
    std::vector<Expert> host;
    std::vector<CUtensorMap> maps;
    for (int e = 0; e < count; ++e) {
      const CudaLinear& w = as_cuda(*experts[e]);
      TACO_CHECK(w.n == first.n && w.k == first.k && w.dtype == first.dtype, "experts of different shapes");
      host.push_back({w.data, w.bias, w.scale});
      mapped = mapped && w.bias == nullptr;
      if (mapped) maps.push_back(expert_map(w));
    }
    table.experts = static_cast<Expert*>(copied(host.data(), host.size() * sizeof(Expert), ctx));
    if (mapped)
      table.maps = static_cast<CUtensorMap*>(copied(maps.data(), maps.size() * sizeof(CUtensorMap), ctx));
    table.host = std::move(host);
    table.n = first.n;
    table.k = first.k;
    table.dtype = first.dtype;
    return table;
  }

  static void* copied(const void* source, size_t bytes, Context& ctx) {
    void* device = nullptr;
    TACO_CUDA_CHECK(cudaMalloc(&device, bytes));
    TACO_CUDA_CHECK(cudaMemcpyAsync(device, source, bytes, cudaMemcpyHostToDevice, ctx.stream));
    TACO_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
    return device;
  }
};

int grouped_tile(int64_t rows, int top_k, int num_experts) {
  // Twice the mean, so that most experts have one tile; no expert has more tokens than there are rows.
  const int64_t mean = (rows * top_k + num_experts - 1) / num_experts;
  const auto tokens = static_cast<uint64_t>(std::clamp<int64_t>(std::min(rows, 2 * mean), 8, 128));
  return static_cast<int>(std::bit_ceil(tokens));
}

void run_grouped(const GroupedParams& p, DType dtype, bool fp8, int tile, const Context& ctx) {
  if (dtype == DType::kBF16) return run_grouped_bf16(p, fp8, tile, ctx);
  TACO_CHECK(dtype == DType::kF16, "grouped products of ", dtype_name(dtype));
  run_grouped_f16(p, fp8, tile, ctx);
}

namespace {

constexpr int kMostSplits = 4;
constexpr int kSm90Mean = 128;  // rows of an expert, from which on wgmma's tiles are worth their padding
constexpr size_t kSm90Scratch = size_t{512} << 20;
constexpr size_t kScratch = size_t{256} << 20;  // more rows are done in parts

struct MoeRun {
  const MoeParams& p;
  Context& ctx;
  const CudaLinear &up, &down;  // of the first expert; the others are like it
  const MoeTables::Table &ups, &downs;

  DType type() const { return p.dtype; }
  int64_t up_width() const { return p.gated ? 2 * p.intermediate : p.intermediate; }

  // Whether the tensor cores' products take these experts.
  bool fast() const {
    if (type() != DType::kF16 && type() != DType::kBF16) return false;
    auto takes = [&](const CudaLinear& w) {
      return (w.dtype == type() && w.k % 8 == 0) || (w.dtype == DType::kF8E4M3 && w.k % 16 == 0);
    };
    return takes(up) && takes(down) && p.hidden % 8 == 0 && p.intermediate % 8 == 0 &&
           (!p.gated || up.interleaved) && reinterpret_cast<uintptr_t>(p.in) % 16 == 0;
  }

  // A few rows of a few experts are too few tiles for the chip where K is long. A batch-invariant sum has one
  // order.
  int splits(int tile) const {
    if (ctx.batch_invariant || tile > 32) return 1;
    return static_cast<int>(std::clamp<int64_t>(p.intermediate / 2048, 1, kMostSplits));
  }

  struct Memory {
    char* at;
    template <typename T>
    T* take(int64_t count, size_t size = sizeof(T)) {
      char* out = at;
      at += (static_cast<size_t>(count) * size + 255) / 256 * 256;
      return reinterpret_cast<T*>(out);
    }
  };
  MoePlan take_plan(Memory& memory, int64_t pairs) const {
    MoePlan plan{};
    plan.experts = memory.take<int32_t>(pairs);
    plan.weights = memory.take<float>(pairs);
    plan.pairs = memory.take<int32_t>(pairs);
    plan.offsets = memory.take<int32_t>(p.num_experts + 1);
    plan.tile_starts = memory.take<int32_t>(p.num_experts + 1);
    return plan;
  }

  // Whether experts have rows enough for wgmma's tiles. Its sums have an order of their own.
  bool takes_sm90() const {
    return fast() && ups.maps != nullptr && downs.maps != nullptr && up.dtype == down.dtype &&
           !ctx.batch_invariant && p.num_experts <= 256 && p.gating.plain() &&
           p.rows * p.top_k >= int64_t{kSm90Mean} * p.num_experts;
  }

  void run_sm90() const {
    const size_t size = dtype_size(type());
    const bool fp8 = up.dtype == DType::kF8E4M3;
    const int64_t widest = std::max(p.hidden, p.intermediate);
    const size_t row_bytes =
        static_cast<size_t>(p.top_k) *
        (static_cast<size_t>(2 * p.hidden + p.intermediate) * size + (fp8 ? static_cast<size_t>(widest) : 0));
    const int64_t limit = std::max<int64_t>(1024, static_cast<int64_t>(kSm90Scratch / row_bytes));
    const int64_t parts = (p.rows + limit - 1) / limit, part = (p.rows + parts - 1) / parts;
    const int64_t pairs = part * p.top_k;
    const int64_t room = (pairs / kExpertRows + std::min<int64_t>(pairs, p.num_experts)) * kExpertRows;
    const size_t bytes = static_cast<size_t>(room * (2 * p.hidden + p.intermediate)) * size +
                         (fp8 ? static_cast<size_t>(room * (widest + 4)) : 0) +
                         static_cast<size_t>(pairs) * 16 + static_cast<size_t>(p.num_experts + 1) * 8 +
                         16 * 256;
    Memory memory{static_cast<char*>(ctx.moe.reserve(bytes, ctx.stream))};
    MoePlan plan = take_plan(memory, pairs);
    plan.places = memory.take<int32_t>(pairs);
    char* x = memory.take<char>(room * p.hidden, size);
    char* inner = memory.take<char>(room * p.intermediate, size);
    char* y = memory.take<char>(room * p.hidden, size);
    char* narrow = fp8 ? memory.take<char>(room * widest) : nullptr;
    float* scales = fp8 ? memory.take<float>(room) : nullptr;
    // FP8 experts read FP8 rows. Those between the experts' are made too, and mean nothing.
    auto quantized = [&](const void* rows, int64_t width) -> const void* {
      if (!fp8) return rows;
      EpilogueParams q;
      q.in = rows;
      q.in_type = type();
      q.in_stride = q.n = width;
      q.rows = room;
      q.fp8 = narrow;
      q.fp8_scales = scales;
      run_epilogue(q, ctx);
      return narrow;
    };
    for (int64_t row = 0; row < p.rows; row += part) {
      const int64_t rows = std::min(part, p.rows - row);
      const size_t at = static_cast<size_t>(row * p.hidden) * size;
      run_routing(p, row, rows, kExpertRows, plan, ctx);
      run_gather_pairs(plan, static_cast<const char*>(p.in) + at, rows * p.top_k, p.hidden, p.top_k, x, ctx);
      ExpertsSm90 e{};
      e.dtype = type();
      e.weight_type = up.dtype;
      e.x_scales = scales;
      e.w_scales = &ups.experts->scale;
      e.w_scale_stride = sizeof(Expert);
      e.x = quantized(x, p.hidden);
      e.rows = room;
      e.n = up_width();
      e.k = p.hidden;
      e.groups = p.num_experts;
      e.tile_starts = plan.tile_starts;
      e.maps = ups.maps;
      e.gated = p.gated;
      e.activation = p.activation;
      e.out = inner;
      run_experts_sm90(e, ctx);
      e.x = quantized(inner, p.intermediate);
      e.w_scales = &downs.experts->scale;
      e.n = p.hidden;
      e.k = p.intermediate;
      e.maps = downs.maps;
      e.gated = false;
      e.activation = Activation::kNone;
      e.out = y;
      run_experts_sm90(e, ctx);
      run_combine(p, plan, y, type(), 1, row, rows, ctx);
    }
  }

  // Of the second products' results: what the combination reads.
  size_t result_bytes(int64_t rows, bool tensor_cores) const {
    const int parts = tensor_cores ? splits(grouped_tile(rows, p.top_k, p.num_experts)) : 1;
    const size_t each = tensor_cores && parts == 1 ? dtype_size(type()) : sizeof(float) * parts;
    return static_cast<size_t>(rows * p.top_k * p.hidden) * each;
  }

  void run(bool tensor_cores) const {
    const size_t row_bytes =
        static_cast<size_t>(p.top_k) * (static_cast<size_t>(p.intermediate + p.hidden) * dtype_size(type()) +
                                        (tensor_cores ? 0 : static_cast<size_t>(up_width()) * sizeof(float)));
    const int64_t limit = std::max<int64_t>(64, static_cast<int64_t>(kScratch / row_bytes));
    const int64_t parts = (p.rows + limit - 1) / limit, part = (p.rows + parts - 1) / parts;
    const int64_t pairs = part * p.top_k;
    const int64_t last = p.rows - (parts - 1) * part;
    // Fewer rows may need more, where they are split: memory must not have to grow for them later.
    const int64_t split_rows = std::min<int64_t>(part, std::max(32, 16 * p.num_experts / p.top_k));
    const size_t results = std::max({result_bytes(part, tensor_cores), result_bytes(last, tensor_cores),
                                     result_bytes(split_rows, tensor_cores)});
    const size_t bytes = static_cast<size_t>(part) * row_bytes + results + static_cast<size_t>(pairs) * 12 +
                         static_cast<size_t>(p.num_experts + 1) * 8 + 16 * 256;
    Memory memory{static_cast<char*>(ctx.moe.reserve(bytes, ctx.stream))};
    const MoePlan plan = take_plan(memory, pairs);
    void* inner = memory.take<char>(pairs * p.intermediate, dtype_size(type()));
    void* y = memory.take<char>(static_cast<int64_t>(results));
    float* raw = tensor_cores ? nullptr : memory.take<float>(pairs * up_width());
    for (int64_t row = 0; row < p.rows; row += part)
      run_part(row, std::min(part, p.rows - row), plan, inner, y, raw);
  }

  void run_part(int64_t row, int64_t rows, const MoePlan& plan, void* inner, void* y, float* raw) const {
    const bool tensor_cores = raw == nullptr;
    const int tile = tensor_cores ? grouped_tile(rows, p.top_k, p.num_experts) : kPlainTile;
    const size_t size = dtype_size(type());
    run_routing(p, row, rows, tile, plan, ctx);
    GroupedParams g{};
    g.splits = 1;
    g.plan = plan;
    g.experts = ups.experts;
    g.num_experts = p.num_experts;
    g.top_k = p.top_k;
    g.pairs = rows * p.top_k;
    g.x = static_cast<const char*>(p.in) + static_cast<size_t>(row * p.hidden) * size;
    g.x_stride = p.hidden;
    g.by_row = true;
    g.n = up_width();
    g.k = p.hidden;
    g.activation = p.activation;
    g.gating = p.gating;
    g.gated = p.gated;
    g.out = tensor_cores ? inner : raw;
    if (tensor_cores) {
      run_grouped(g, type(), up.dtype == DType::kF8E4M3, tile, ctx);
    } else {
      run_grouped_plain(g, type(), up.dtype, ctx);
      EpilogueParams e;
      e.in = raw;
      e.in_type = DType::kF32;
      e.in_stride = up_width();
      e.rows = g.pairs;
      e.n = up_width();
      e.activation = p.activation;
      e.gating = p.gating;
      e.gated = p.gated;
      e.interleaved = up.interleaved;
      e.out = inner;
      e.out_type = type();
      e.out_stride = p.intermediate;
      run_epilogue(e, ctx);
    }
    g.experts = downs.experts;
    g.x = inner;
    g.x_stride = p.intermediate;
    g.by_row = false;
    g.n = p.hidden;
    g.k = p.intermediate;
    g.activation = Activation::kNone;
    g.gated = false;
    g.out = y;
    DType y_type = DType::kF32;
    if (tensor_cores) {
      g.splits = splits(tile);
      if (g.splits == 1) y_type = type();
      run_grouped(g, type(), down.dtype == DType::kF8E4M3, tile, ctx);
    } else {
      run_grouped_plain(g, type(), down.dtype, ctx);
    }
    run_combine(p, plan, y, y_type, g.splits, row, rows, ctx);
  }
};

}  // namespace

void run_moe(const MoeParams& p, Context& ctx) {
  TACO_CHECK(p.top_k > 0 && p.top_k <= p.num_experts, p.top_k, " of ", p.num_experts, " experts");
  if (p.num_experts > kMaxExperts) {
    fail(ErrorCode::kUnimplemented, "the CUDA backend has room for ", kMaxExperts,
         " experts in a layer; this has ", p.num_experts);
  }
  if (p.rows <= 0) return;
  if (!ctx.moe_tables) ctx.moe_tables = std::make_shared<MoeTables>();
  const MoeRun run{p,
                   ctx,
                   as_cuda(*p.gate_up[0]),
                   as_cuda(*p.down[0]),
                   ctx.moe_tables->get(p.gate_up, p.num_experts, ctx),
                   ctx.moe_tables->get(p.down, p.num_experts, ctx)};
  TACO_CHECK(run.up.n == run.up_width() && run.up.k == p.hidden && run.down.n == p.hidden &&
                 run.down.k == p.intermediate,
             "experts of another shape");
  if (run.takes_sm90()) return run.run_sm90();
  run.run(run.fast());
}

}  // namespace taco::cuda
