#include "backend/cuda/linear/linear.h"

#include <algorithm>
#include <utility>

#include "backend/cuda/linear/cublaslt.h"
#include "backend/cuda/linear/epilogue.h"
#include "backend/cuda/linear/gated_sm90.h"
#include "backend/cuda/linear/skinny.h"

namespace taco::cuda {
namespace {

constexpr size_t kProductBytes = size_t{256} << 20;  // of gemm_out: products of more rows are made in parts

size_t bytes_of(DType dtype, int64_t count) { return static_cast<size_t>(count) * dtype_size(dtype); }
const void* at(const void* p, DType dtype, int64_t index) {
  return static_cast<const char*>(p) + index * static_cast<int64_t>(dtype_size(dtype));
}
void* at(void* p, DType dtype, int64_t index) {
  return static_cast<char*>(p) + index * static_cast<int64_t>(dtype_size(dtype));
}

struct DenseLinear {
  const LinearParams& p;
  const CudaLinear& w;
  const QuantizedRows* x;  // FP8 weights only
  Context& ctx;

  DType out_type() const { return p.float_out ? DType::kF32 : p.dtype; }
  bool gated() const { return p.epilogue == Epilogue::kGated; }
  Activation activation() const {
    return gated() || p.epilogue == Epilogue::kActivation ? p.activation : Activation::kNone;
  }

  // The product of rows [row, row + rows).
  Matmul matmul(int64_t row, int64_t rows) const {
    Matmul m;
    m.m = rows;
    m.n = w.n;
    m.k = w.k;
    m.in = w.dtype;
    m.w = w.data;
    if (x != nullptr) {
      m.x = at(x->data, w.dtype, row * w.k);
      m.x_stride = w.k;
      m.w_scales = w.scale;
      m.x_scales = x->scales + row;
    } else {
      m.x = at(p.in, p.dtype, row * p.in_stride);
      m.x_stride = p.in_stride;
    }
    return m;
  }

  EpilogueParams epilogue(int64_t row, int64_t rows) const {
    EpilogueParams e;
    e.rows = rows;
    e.n = w.n;
    e.bias = w.bias;
    e.activation = activation();
    e.gating = p.gating;
    e.gated = gated();
    e.interleaved = w.interleaved;
    e.accumulate = p.epilogue == Epilogue::kAccumulate;
    e.out_scale = p.out_scale;
    e.out = at(p.out, out_type(), row * p.out_stride);
    e.out_type = out_type();
    e.out_stride = p.out_stride;
    return e;
  }

  // The product into `y`, without the rows' scales if the library cannot apply them. Returns whether they are
  // missing.
  bool product(Matmul m, void* y, DType type, int64_t stride, bool scales_can_wait) const {
    m.y = y;
    m.out = type;
    m.y_stride = stride;
    if (ctx.lt->matmul(m, ctx)) return false;
    if (scales_can_wait && m.x_scales != nullptr) {
      Matmul unscaled = m;
      unscaled.x_scales = nullptr;
      if (ctx.lt->matmul(unscaled, ctx)) return true;
    }
    plain_matmul(m, ctx);
    return false;
  }

  // Into gemm_out, then everything else in a pass of its own.
  void run_in_two() const {
    // FP8 rows whose scales wait may be out of 16 bits' range.
    const DType type = x != nullptr && !rows_scaled() ? DType::kF32 : p.dtype;
    const auto limit =
        std::max<int64_t>(128, static_cast<int64_t>(kProductBytes / bytes_of(type, w.n)) / 128 * 128);
    const int64_t parts = (p.rows + limit - 1) / limit;
    const int64_t part = std::min(p.rows, ((p.rows + parts - 1) / parts + 127) / 128 * 128);
    void* y = ctx.gemm_out.reserve(bytes_of(type, part * w.n), ctx.stream);
    QuantizedRows* quantized =
        gated() && reads_fp8(p.consumer) ? ctx.make_quantized(p.out, p.rows, w.n / 2) : nullptr;
    for (int64_t row = 0; row < p.rows; row += part) {
      const int64_t rows = std::min(part, p.rows - row);
      const bool waiting = product(matmul(row, rows), y, type, w.n, type == DType::kF32);
      EpilogueParams e = epilogue(row, rows);
      e.in = y;
      e.in_type = type;
      e.in_stride = w.n;
      if (waiting) e.row_scales = x->scales + row;
      if (quantized != nullptr) {
        e.fp8 = at(quantized->data, DType::kF8E4M3, row * (w.n / 2));
        e.fp8_scales = quantized->scales + row;
      }
      run_epilogue(e, ctx);
    }
  }

  // Whether cuBLASLt applies a scale to each row of this FP8 product.
  bool rows_scaled() const {
    Matmul m = matmul(0, p.rows);
    m.beta = p.epilogue == Epilogue::kAccumulate ? 1.0f : 0.0f;
    m.out = out_type();
    m.y = p.out;
    m.y_stride = gated() ? w.n : p.out_stride;
    return ctx.lt->takes(m);
  }

  void run() const {
    if (takes_gated_sm90(p, x, ctx)) {
      // Fewer rows go the other way, and memory must not have to grow for them later.
      ctx.gemm_out.reserve(bytes_of(p.dtype, std::min<int64_t>(p.rows, kGatedRows) * w.n), ctx.stream);
      run_gated_sm90(p, x, ctx);
      if (reads_fp8(p.consumer)) quantize_rows(p.out, p.rows, w.n / 2, p.out_stride, p.dtype, ctx);
      return;
    }
    if (gated() || (x != nullptr && !rows_scaled())) return run_in_two();
    Matmul m = matmul(0, p.rows);
    const bool accumulate = p.epilogue == Epilogue::kAccumulate;
    m.alpha = accumulate ? p.out_scale : 1.0f;
    m.beta = accumulate ? 1.0f : 0.0f;
    product(m, p.out, out_type(), p.out_stride, false);
    if (w.bias == nullptr && activation() == Activation::kNone) return;
    EpilogueParams e = epilogue(0, p.rows);
    e.in = e.out;
    e.in_type = e.out_type;
    e.in_stride = e.out_stride;
    e.accumulate = false;
    e.bias_scale = m.alpha;
    run_epilogue(e, ctx);
  }
};

}  // namespace

void run_dense(const LinearParams& p, const QuantizedRows* x, Context& ctx) {
  DenseLinear{p, as_cuda(*p.weight), x, ctx}.run();
}

void run_linear(const LinearParams& p, Context& ctx) {
  const CudaLinear& w = as_cuda(*p.weight);
  if (p.rows <= 0 || w.n == 0) return;
  const QuantizedRows* x = nullptr;
  if (w.dtype == DType::kF8E4M3) {
    x = ctx.find_quantized(p.in, p.rows, w.k);
    if (x == nullptr) x = quantize_rows(p.in, p.rows, w.k, p.in_stride, p.dtype, ctx);
  } else {
    TACO_CHECK(w.dtype == p.dtype, "activations of ", dtype_name(p.dtype), " and weights of ",
               dtype_name(w.dtype));
  }
  if (takes_skinny(p, ctx)) return run_skinny(p, x, ctx);
  if (!ctx.lt->available()) {
    // Without the library our own kernels do better than the plain ones, at any row count that they can take.
    const bool invariant = std::exchange(ctx.batch_invariant, true);
    const bool takes = takes_skinny(p, ctx);
    if (takes) run_skinny(p, x, ctx);
    ctx.batch_invariant = invariant;
    if (takes) return;
  }
  run_dense(p, x, ctx);
}

}  // namespace taco::cuda
