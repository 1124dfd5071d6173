// Matrix products of the CPU backend.
//
// A weight is repacked once into panels of 16 output features, k-order inside a panel as the dot-product
// instructions want it (isa/linear_kernels.h). Every instruction set reads the same layout.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/cpu/isa/linear_kernels.h"
#include "backend/cpu/memory.h"
#include "backend/ops.h"
#include "base/thread_pool.h"

namespace taco {

class CpuLinear final : public Linear {
 public:
  // Rows of one part of the weight, in panels of one format. Every segment starts with a panel of its own.
  struct Segment {
    cpu::PanelFormat format;
    int64_t first_row, rows, panels;
    size_t panel_bytes;
    const uint8_t* data;
  };

  // Panels that are worked through together: those of a segment, or for a gated product a segment's gates and
  // the ups that belong to them, panel by panel.
  struct Unit {
    const Segment* segment;  // its panels [first, first + panels)
    int64_t first, panels;
    const Segment* up;  // null, or [up_first, up_first + panels) of this
    int64_t up_first;
    int64_t rows;     // output features
    int64_t out_col;  // of the first
  };

  int64_t out_features() const override { return rows_; }
  int64_t in_features() const override { return cols_; }
  const std::vector<Unit>& plain_units() const { return plain_units_; }
  const std::vector<Unit>& gated_units() const {
    return gated_units_;
  }  // empty: gates and ups do not line up
  size_t bytes() const override { return memory_.size() + bias_.size() * sizeof(float); }
  const std::vector<Segment>& segments() const { return segments_; }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }

 private:
  friend std::unique_ptr<CpuLinear> prepare_cpu_linear(std::span<const HostMatrix>, const float*, DType,
                                                       ThreadPool&);
  int64_t rows_ = 0, cols_ = 0;
  std::vector<Segment> segments_;
  std::vector<Unit> plain_units_, gated_units_;
  std::vector<float> bias_;
  cpu::PageBuffer memory_;
};

// Stacks `parts` by rows. Unquantised parts are kept as `compute` (float32, float16 or bfloat16). Quantised
// parts are kept as 8-bit (Q8_0, Q6_K) or 4-bit (Q4_0, Q4_1, Q4_K) panels, whose products quantise the
// activations to 8 bits per 32 columns; with compute == float32 they are dequantised exactly instead. bias:
// [sum of rows] or null; copied. Throws kInvalidArgument, kUnimplemented.
std::unique_ptr<CpuLinear> prepare_cpu_linear(std::span<const HostMatrix> parts, const float* bias,
                                              DType compute, ThreadPool& pool);

// params.weight must come from prepare_cpu_linear. `in` and `out` must not overlap. Call from one thread of
// the pool at a time; returns when `out` is written. With float32 panels every output element is the same
// bits whatever `rows` is.
void run_cpu_linear(const LinearParams& params, ThreadPool& pool);

// From how many rows on the tiles of AMX are used rather than AVX-512; below, loading tiles costs more than
// it gains. Variables for benchmarks only.
struct LinearTuning {
  int64_t amx_bf16_rows = 3, amx_q8_rows = 16, amx_q4_rows = 16;
  int64_t chunk_bytes = 0, row_bytes = 0, store_rows = 0;
};
LinearTuning& linear_tuning();

// A look-up table that stays where it is (a memory-mapped checkpoint costs nothing), in any format.
class CpuEmbedding final : public Embedding {
 public:
  explicit CpuEmbedding(const HostMatrix& table) : table_(table) {}
  int64_t rows() const override { return table_.rows; }
  int64_t cols() const override { return table_.cols; }
  size_t bytes() const override { return table_.bytes(); }
  const HostMatrix& table() const { return table_; }

 private:
  HostMatrix table_;
};

std::unique_ptr<CpuEmbedding> prepare_cpu_embedding(const HostMatrix& table);

// Throws kInvalidArgument for an id outside the table, before anything is written.
void run_cpu_embedding(const EmbeddingParams& params, ThreadPool& pool);

}  // namespace taco
