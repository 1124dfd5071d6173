#include "backend/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/activations.h"
#include "backend/cpu/isa/dispatch.h"
#include "backend/cpu/linear_pack.h"
#include "base/error.h"

namespace taco {
namespace {

using cpu::kMaxPanels;
using cpu::kPanelRows;
using cpu::LinearKernels;
using cpu::PanelFormat;
using cpu::RowFormat;
using Segment = CpuLinear::Segment;

constexpr int64_t kChunkBytes =
    256 << 10;  // weights a product takes at once: well inside the second-level cache
constexpr int64_t kPrivatePack = 8 << 10;  // elements that a thread packs sooner than others could for it
constexpr int64_t kFirstLines = 16;        // cache lines of each panel asked for before anything else

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
int64_t div_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t amx_rows(PanelFormat format) {
  const LinearTuning& tuning = linear_tuning();
  switch (format) {
    case PanelFormat::kBF16:
      return tuning.amx_bf16_rows;
    case PanelFormat::kQ8:
      return tuning.amx_q8_rows;
    case PanelFormat::kQ4:
      return tuning.amx_q4_rows;
    default:
      return INT64_MAX;  // no tiles of float32 or float16
  }
}

const LinearKernels* select_kernels(PanelFormat format, int64_t rows) {
#if defined(__x86_64__)
  switch (cpu::active_isa()) {
    case cpu::Isa::kAmx:
      if (rows >= amx_rows(format)) return cpu::amx::linear_kernels(format);
      [[fallthrough]];
    case cpu::Isa::kAvx512:
      if (cpu::use_avx512_bf16()) {
        if (const LinearKernels* k = cpu::avx512_bf16::linear_kernels(format)) return k;
      }
      return cpu::avx512::linear_kernels(format);
    case cpu::Isa::kAvx2:
      return cpu::avx2::linear_kernels(format);
    case cpu::Isa::kGeneric:
      break;
  }
#endif
  return cpu::generic::linear_kernels(format);
}

using Unit = CpuLinear::Unit;

// The activations as one kind of kernel wants them.
struct PackedInput {
  RowFormat format;
  cpu::PackedRows rows;
};

struct Workspace {
  cpu::PageBuffer rows[3];  // by RowFormat, kF32 excepted
  cpu::PageBuffer products;
};

// Of the calling thread; grows to what its largest product needs.
Workspace& workspace() {
  thread_local Workspace w;
  return w;
}

struct ThreadScratch {
  cpu::PageBuffer products, expanded, rows;
};
ThreadScratch& thread_scratch() {
  thread_local ThreadScratch s;
  return s;
}

struct Run {
  const LinearParams* params;
  const CpuLinear* weight;
  const std::vector<Unit>* units;
  // Packed rows by RowFormat, those that are shared by all threads.
  PackedInput inputs[4];
  int num_inputs = 0;
  bool private_rows =
      false;  // few rows: each thread packs them for itself, sooner than it could be told of them
};

cpu::PackedRows rows_from(const cpu::PackedRows& in, RowFormat format, int64_t row) {
  cpu::PackedRows out = in;
  int64_t groups = in.stride / cpu::kQuantGroup;
  switch (format) {
    case RowFormat::kF32:
      out.data = static_cast<const float*>(in.data) + row * in.stride;
      break;
    case RowFormat::kBF16:
    case RowFormat::kBF16Tiles:  // `row` is a multiple of 16 there: a row's share of the tiles is `stride`
      out.data = static_cast<const uint16_t*>(in.data) + row * in.stride;
      break;
    case RowFormat::kInt8:
      out.data = static_cast<const int8_t*>(in.data) + row * in.stride;
      out.scale += row * groups;
      out.offset += row * groups;
      out.scaled_sum += row * groups;
      break;
  }
  return out;
}

// Where packed rows are to stand in `buffer`.
cpu::PackRowsParams packed_layout(const LinearParams& p, RowFormat format, cpu::PageBuffer& buffer) {
  bool int8 = format == RowFormat::kInt8, tiles = format == RowFormat::kBF16Tiles;
  int64_t k = p.weight->in_features();
  int64_t stride = round_up(k, int8 ? 64 : 32), rows = tiles ? round_up(p.rows, 16) : p.rows;
  int64_t groups = stride / cpu::kQuantGroup;
  size_t data_bytes = static_cast<size_t>(round_up(rows * stride * (int8 ? 1 : 2), 64));
  size_t group_bytes = static_cast<size_t>(round_up(rows * groups * 4, 64));
  buffer.reserve(data_bytes + (int8 ? 3 * group_bytes : 0));
  uint8_t* base = buffer.as<uint8_t>();
  cpu::PackRowsParams s{};
  s.in = f32(p.in);
  s.rows = p.rows;
  s.k = k;
  s.in_stride = p.in_stride;
  s.first = 0;
  s.last = p.rows;
  s.data = base;
  s.stride = stride;
  if (int8) {
    s.scale = reinterpret_cast<float*>(base + data_bytes);
    s.offset = reinterpret_cast<int32_t*>(base + data_bytes + group_bytes);
    s.scaled_sum = reinterpret_cast<float*>(base + data_bytes + 2 * group_bytes);
  }
  return s;
}

cpu::PackedRows packed_rows(const cpu::PackRowsParams& s) {
  return {s.data, s.stride, s.scale, s.offset, s.scaled_sum};
}

// Rows for all threads, packed by all of them.
PackedInput pack_rows(const LinearParams& p, const LinearKernels& kernels, ThreadPool& pool) {
  PackedInput out;
  out.format = kernels.row_format;
  if (kernels.row_format == RowFormat::kF32) {
    out.rows = {f32(p.in), p.in_stride, nullptr, nullptr, nullptr};
    return out;
  }
  cpu::PackRowsParams s =
      packed_layout(p, kernels.row_format, workspace().rows[static_cast<int>(kernels.row_format) - 1]);
  int64_t unit = kernels.row_format == RowFormat::kBF16Tiles ? 16 : 1;
  pool.parallel_for(div_up(p.rows, unit), 1, [&](int64_t begin, int64_t end) {
    cpu::PackRowsParams mine = s;
    mine.first = begin * unit;
    mine.last = std::min(end * unit, p.rows);
    kernels.pack_rows(mine);
  });
  out.rows = packed_rows(s);
  return out;
}

cpu::PackedRows input_of(const Run& run, const LinearKernels& kernels) {
  if (!run.private_rows) {
    for (int i = 0; i < run.num_inputs; ++i) {
      if (run.inputs[i].format == kernels.row_format) return run.inputs[i].rows;
    }
  }
  if (kernels.row_format == RowFormat::kF32)
    return {run.params->in, run.params->in_stride, nullptr, nullptr, nullptr};
  cpu::PackRowsParams s = packed_layout(*run.params, kernels.row_format, thread_scratch().rows);
  kernels.pack_rows(s);
  return packed_rows(s);
}

int64_t bytes_to_column(PanelFormat format, int64_t k, int64_t cols) {
  return k >= cols ? static_cast<int64_t>(cpu::panel_bytes(format, cols))
                   : static_cast<int64_t>(cpu::panel_bytes(format, k));
}

// Columns taken at once: a multiple of 64.
int64_t chunk_cols(const Unit& unit, const LinearKernels& kernels, int64_t cols) {
  int64_t per_col = div_up(static_cast<int64_t>(cpu::panel_bytes(unit.segment->format, 64)), 64);
  if (kernels.expand) per_col = std::max<int64_t>(per_col, 32);
  int64_t bytes = linear_tuning().chunk_bytes ? linear_tuning().chunk_bytes : kChunkBytes;
  int64_t fit = bytes / (kMaxPanels * per_col) / 64 * 64;
  if (cols <= fit) return round_up(cols, 64);
  // Even chunks rather than a short last one.
  return round_up(div_up(cols, div_up(cols, fit)), 64);
}

int64_t row_block(const LinearKernels& kernels, int64_t chunk) {
  int64_t element = kernels.row_format == RowFormat::kF32    ? 4
                    : kernels.row_format == RowFormat::kInt8 ? 1
                                                             : 2;
  int64_t bytes = linear_tuning().row_bytes ? linear_tuning().row_bytes : kernels.row_bytes;
  return std::clamp<int64_t>(bytes / (chunk * element) / 96 * 96, 96, kernels.max_rows);
}

// The panels of one group of a unit: up to 4, or up to 2 gates and their 2 ups.
int group_panels(const Unit& u, int64_t panel, int64_t count, const uint8_t** out) {
  int n = 0;
  const Segment& s = *u.segment;
  for (int64_t i = 0; i < count; ++i) out[n++] = s.data + (u.first + panel + i) * s.panel_bytes;
  if (u.up) {
    for (int64_t i = 0; i < count; ++i) out[n++] = u.up->data + (u.up_first + panel + i) * u.up->panel_bytes;
  }
  return n;
}

void store_group(const Run& run, const Unit& u, const LinearKernels& kernels, int64_t panel, int64_t count,
                 int64_t row, int64_t rows, float* c) {
  const LinearParams& p = *run.params;
  cpu::StoreParams s{};
  s.c = c;
  s.c_up = u.up ? c + count * kPanelRows : nullptr;
  s.c_stride = kMaxPanels * kPanelRows;
  s.rows = rows;
  s.cols = std::min(count * kPanelRows, u.rows - panel * kPanelRows);
  int64_t col = u.out_col + panel * kPanelRows;
  if (const float* bias = run.weight->bias()) {
    s.bias = bias + u.segment->first_row + (u.first + panel) * kPanelRows;
    if (u.up) s.bias_up = bias + u.up->first_row + (u.up_first + panel) * kPanelRows;
  }
  s.epilogue = static_cast<int>(p.epilogue);
  s.activation = static_cast<int>(p.activation);
  s.out_scale = p.out_scale;
  s.gate_limit = p.gating.limit;
  s.up_offset = p.gating.up_offset;
  s.out = f32(p.out) + row * p.out_stride + col;
  s.out_stride = p.out_stride;
  kernels.store(s);
}

// Panels [begin, end) of a unit times rows [row_begin, row_end).
void run_unit(const Run& run, const Unit& u, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end) {
  const PanelFormat format = u.segment->format;
  const LinearKernels& kernels = *select_kernels(format, run.params->rows);
  const int64_t cols = run.weight->in_features();
  const int64_t chunk = chunk_cols(u, kernels, cols), chunks = div_up(cols, chunk);
  const int64_t block = row_block(kernels, std::min(chunk, round_up(cols, 64)));
  const int64_t group = u.up ? kMaxPanels / 2 : kMaxPanels;
  ThreadScratch& scratch = thread_scratch();
  scratch.products.reserve(static_cast<size_t>(block) * kMaxPanels * kPanelRows * sizeof(float));
  float* c = scratch.products.as<float>();
  // The first weights are on their way while the rows are packed.
  const uint8_t* first[kMaxPanels];
  int first_panels = group_panels(u, begin, std::min(group, end - begin), first);
  for (int64_t line = 0; line < kFirstLines; ++line) {
    for (int p = 0; p < first_panels; ++p) __builtin_prefetch(first[p] + line * 64, 0, 2);
  }
  const cpu::PackedRows input = input_of(run, kernels);
  if (kernels.begin) kernels.begin();
  for (int64_t row = row_begin; row < row_end; row += block) {
    int64_t rows = std::min(block, row_end - row);
    int64_t step =
        chunks == 1 ? (linear_tuning().store_rows ? linear_tuning().store_rows : kernels.store_rows) : rows;
    int64_t steps = div_up(rows, step);
    for (int64_t panel = begin; panel < end; panel += group) {
      int64_t count = std::min(group, end - panel);
      cpu::ProductParams t{};
      t.panels = group_panels(u, panel, count, t.panel);
      t.c = c;
      t.c_stride = kMaxPanels * kPanelRows;
      const uint8_t* stored[kMaxPanels];
      std::copy(t.panel, t.panel + kMaxPanels, stored);
      for (int64_t i = 0; i < chunks; ++i) {
        t.k_begin = i * chunk;
        t.k_end = std::min(cols, t.k_begin + chunk);
        t.accumulate = i > 0;
        // What comes after this chunk: the next one of these panels, or the first of the next panels.
        const uint8_t* next[kMaxPanels] = {};
        int64_t next_bytes = 0;
        if (i + 1 < chunks) {
          int64_t from = bytes_to_column(format, t.k_end, cols);
          next_bytes = bytes_to_column(format, t.k_end + chunk, cols) - from;
          for (int p = 0; p < t.panels; ++p) next[p] = stored[p] + from;
        } else if (panel + group < end) {
          next_bytes = bytes_to_column(format, chunk, cols);
          group_panels(u, panel + group, std::min(group, end - panel - group), next);
        }
        for (int p = 1; p < kMaxPanels; ++p) {
          if (!next[p]) next[p] = next[0];
        }
        if (kernels.expand) {
          cpu::ExpandParams e{};
          std::copy(stored, stored + kMaxPanels, e.panel);
          e.panels = t.panels;
          e.k_begin = t.k_begin;
          e.k_end = t.k_end;
          e.out_panel_bytes = static_cast<int64_t>(cpu::panel_bytes(PanelFormat::kBF16, t.k_end - t.k_begin));
          scratch.expanded.reserve(static_cast<size_t>(kMaxPanels * e.out_panel_bytes));
          e.out = scratch.expanded.as<uint8_t>();
          std::copy(next, next + kMaxPanels, e.next);
          e.next_bytes = next_bytes;
          kernels.expand(e);
          for (int p = 0; p < t.panels; ++p) t.panel[p] = e.out + p * e.out_panel_bytes;
          t.panel_k = t.k_begin;
          next_bytes = 0;  // fetched by now
        }
        int64_t share = round_up(div_up(next_bytes, steps), 64);
        for (int64_t s = 0; s < steps; ++s) {
          int64_t first_row = s * step;
          t.rows = std::min(step, rows - first_row);
          t.in = rows_from(input, kernels.row_format, row + first_row);
          int64_t done = std::min(next_bytes, s * share);
          t.next_bytes = std::min(share, next_bytes - done);
          for (int p = 0; p < kMaxPanels; ++p) t.next[p] = next[p] ? next[p] + done : nullptr;
          kernels.product(t);
          if (i + 1 == chunks) store_group(run, u, kernels, panel, count, row + first_row, t.rows, c);
        }
      }
    }
  }
  if (kernels.end) kernels.end();
}

// A share of all panels, weighed by their bytes, so that every thread reads as much.
struct Share {
  int64_t begin, end;  // of the concatenated panels of all units
};

Share share_of(const std::vector<Unit>& units, int part, int parts) {
  int64_t bytes = 0;
  for (const Unit& u : units) bytes += u.panels * static_cast<int64_t>(u.segment->panel_bytes);
  auto cut = [&](int i) {
    double target = static_cast<double>(bytes) * i / parts;
    int64_t panels = 0;
    for (const Unit& u : units) {
      double size = static_cast<double>(u.segment->panel_bytes), all = size * static_cast<double>(u.panels);
      if (target < all) return panels + static_cast<int64_t>(target / size + 0.5);
      target -= all;
      panels += u.panels;
    }
    return panels;
  };
  return {cut(part), cut(part + 1)};
}

void run_units(const Run& run, ThreadPool& pool) {
  const LinearParams& p = *run.params;
  int64_t panels = 0;
  for (const Unit& u : *run.units) panels += u.panels;
  // Threads split the panels; where many threads would leave some of them idle, the rows as well.
  int threads = pool.size(), row_parts = 1;
  if (p.rows >= 64) {
    double best = 1e30;
    for (int parts = 1; parts <= threads; ++parts) {
      if (threads % parts) continue;
      double cost = static_cast<double>(div_up(panels, threads / parts)) *
                    static_cast<double>(round_up(div_up(p.rows, parts), 32));
      if (cost < best * 0.97) {
        best = cost;
        row_parts = parts;
      }
    }
  }
  int64_t rows_each = row_parts == 1 ? p.rows : round_up(div_up(p.rows, row_parts), 32);
  auto work = [&](int thread, int count) {
    int panel_parts = count / row_parts;
    Share share = share_of(*run.units, thread % panel_parts, panel_parts);
    int64_t row_begin = std::min(p.rows, thread / panel_parts * rows_each);
    int64_t row_end = std::min(p.rows, row_begin + rows_each);
    if (row_begin >= row_end) return;
    int64_t at = 0;
    for (const Unit& u : *run.units) {
      int64_t begin = std::max(share.begin - at, int64_t{0}), end = std::min(share.end - at, u.panels);
      if (begin < end) run_unit(run, u, begin, end, row_begin, row_end);
      at += u.panels;
    }
  };
  pool.run(work);
}

std::vector<Unit> plain_units(const std::vector<Segment>& segments) {
  std::vector<Unit> units;
  for (const Segment& s : segments) units.push_back({&s, 0, s.panels, nullptr, 0, s.rows, s.first_row});
  return units;
}

// Empty unless each panel of gates has a panel of ups.
std::vector<Unit> gated_units(const std::vector<Segment>& s, int64_t out_features) {
  std::vector<Unit> units;
  int64_t half = out_features / 2;
  if (s.size() == 1 && half % kPanelRows == 0 && out_features % 2 == 0) {
    units.push_back({&s[0], 0, half / kPanelRows, &s[0], half / kPanelRows, half, 0});
    return units;
  }
  if (s.size() % 2) return {};
  size_t pairs = s.size() / 2;
  for (size_t i = 0; i < pairs; ++i) {
    const Segment &gate = s[i], &up = s[i + pairs];
    if (gate.format != up.format || gate.rows != up.rows || up.first_row != gate.first_row + half) return {};
    units.push_back({&gate, 0, gate.panels, &up, 0, gate.rows, gate.first_row});
  }
  return units;
}

void run_product(const LinearParams& p, const std::vector<Unit>& units, ThreadPool& pool) {
  Run run;
  run.params = &p;
  run.weight = static_cast<const CpuLinear*>(p.weight);
  run.units = &units;
  run.private_rows = p.rows * run.weight->in_features() <= kPrivatePack;
  for (const Unit& u : units) {
    if (run.private_rows) break;
    const LinearKernels& kernels = *select_kernels(u.segment->format, p.rows);
    bool packed = false;
    for (int i = 0; i < run.num_inputs; ++i) packed |= run.inputs[i].format == kernels.row_format;
    if (!packed) run.inputs[run.num_inputs++] = pack_rows(p, kernels, pool);
  }
  run_units(run, pool);
}

// Gates and ups that do not line up panel by panel: all products first, then the gating.
void run_gated_apart(const LinearParams& p, ThreadPool& pool) {
  int64_t n = p.weight->out_features(), half = n / 2;
  cpu::PageBuffer& buffer = workspace().products;
  buffer.reserve(static_cast<size_t>(p.rows * n + kPanelRows) *
                 sizeof(float));  // `store` reads whole vectors
  LinearParams all = p;
  all.epilogue = Epilogue::kStore;
  all.out = buffer.as<float>();
  all.out_stride = n;
  run_product(all, static_cast<const CpuLinear*>(p.weight)->plain_units(), pool);
  const LinearKernels* kernels = select_kernels(PanelFormat::kF32, p.rows);
  pool.parallel_for(p.rows, 4, [&](int64_t begin, int64_t end) {
    cpu::StoreParams s{};
    s.c = f32(all.out) + begin * n;
    s.c_up = s.c + half;
    s.c_stride = n;
    s.rows = end - begin;
    s.cols = half;
    s.epilogue = static_cast<int>(Epilogue::kGated);
    s.activation = static_cast<int>(p.activation);
    s.gate_limit = p.gating.limit;
    s.up_offset = p.gating.up_offset;
    s.out = f32(p.out) + begin * p.out_stride;
    s.out_stride = p.out_stride;
    kernels->store(s);
  });
}

}  // namespace

LinearTuning& linear_tuning() {
  static LinearTuning tuning;
  return tuning;
}

std::unique_ptr<CpuLinear> prepare_cpu_linear(std::span<const HostMatrix> parts, const float* bias,
                                              DType compute, ThreadPool& pool) {
  TACO_REQUIRE(!parts.empty(), "a linear layer needs at least one weight matrix");
  auto linear = std::make_unique<CpuLinear>();
  linear->cols_ = parts[0].cols;
  size_t bytes = 0;
  for (const HostMatrix& m : parts) {
    const FormatInfo& info = format_info(m.format);
    TACO_REQUIRE(m.rows > 0 && m.cols > 0 && m.data, "a weight matrix is empty: [", m.rows, ", ", m.cols,
                 "]");
    TACO_REQUIRE(m.cols == linear->cols_, "stacked weight matrices differ in columns: ", linear->cols_,
                 " and ", m.cols);
    TACO_REQUIRE(m.cols % info.block_cols == 0, "a ", info.name, " matrix has ", m.cols,
                 " columns, which is no multiple of its block of ", info.block_cols);
    Segment s;
    s.format = cpu::panel_format(m.format, compute);
    s.first_row = linear->rows_;
    s.rows = m.rows;
    s.panels = div_up(m.rows, kPanelRows);
    s.panel_bytes = cpu::panel_bytes(s.format, m.cols);
    s.data = nullptr;
    bytes += static_cast<size_t>(s.panels) * s.panel_bytes;
    linear->rows_ += m.rows;
    linear->segments_.push_back(s);
  }
  if (bias) linear->bias_.assign(bias, bias + linear->rows_);
  linear->memory_ = cpu::PageBuffer(bytes);
  uint8_t* at = linear->memory_.as<uint8_t>();
  for (size_t i = 0; i < parts.size(); ++i) {
    Segment& s = linear->segments_[i];
    s.data = at;
    const HostMatrix& m = parts[i];
    uint8_t* out = at;
    pool.parallel_for(s.panels, 4, [&](int64_t begin, int64_t end) {
      cpu::PackScratch scratch;
      for (int64_t p = begin; p < end; ++p) {
        cpu::pack_panel(m, p * kPanelRows, s.format, scratch, out + p * s.panel_bytes);
      }
    });
    at += static_cast<size_t>(s.panels) * s.panel_bytes;
  }
  linear->plain_units_ = plain_units(linear->segments_);
  linear->gated_units_ = gated_units(linear->segments_, linear->rows_);
  return linear;
}

void run_cpu_linear(const LinearParams& p, ThreadPool& pool) {
  const CpuLinear& w = *static_cast<const CpuLinear*>(p.weight);
  TACO_CHECK(p.rows >= 0);
  if (p.rows == 0) return;
  TACO_CHECK(p.rows == 1 || p.in_stride >= w.in_features(), "rows overlap");
  if (p.epilogue != Epilogue::kGated) return run_product(p, w.plain_units(), pool);
  TACO_CHECK(w.out_features() % 2 == 0, "a gated weight has an odd number of rows");
  if (w.gated_units().empty()) return run_gated_apart(p, pool);
  run_product(p, w.gated_units(), pool);
}

std::unique_ptr<CpuEmbedding> prepare_cpu_embedding(const HostMatrix& table) {
  const FormatInfo& info = format_info(table.format);
  TACO_REQUIRE(table.rows > 0 && table.cols > 0 && table.data, "an embedding table is empty");
  TACO_REQUIRE(table.cols % info.block_cols == 0, "a ", info.name, " embedding table has ", table.cols,
               " columns, which is no multiple of its block of ", info.block_cols);
  return std::make_unique<CpuEmbedding>(table);
}

void run_cpu_embedding(const EmbeddingParams& p, ThreadPool& pool) {
  const HostMatrix& table = static_cast<const CpuEmbedding*>(p.table)->table();
  for (int64_t r = 0; r < p.rows; ++r) {
    int64_t row = int64_t{p.ids[r]} + p.id_offset;
    TACO_REQUIRE(row >= 0 && row < table.rows, "id ", row, " is outside the table of ", table.rows, " rows");
  }
  pool.parallel_for(p.rows, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> row(p.accumulate ? static_cast<size_t>(table.cols) : 0);
    for (int64_t r = begin; r < end; ++r) {
      float* out = f32(p.out) + r * table.cols;
      float* looked_up = p.accumulate ? row.data() : out;
      dequantize_row(table, p.ids[r] + p.id_offset, looked_up);
      for (int64_t i = 0; i < table.cols; ++i) {
        float v = looked_up[i] * p.scale;
        out[i] = p.accumulate ? out[i] + v : v;
      }
    }
  });
}

}  // namespace taco
