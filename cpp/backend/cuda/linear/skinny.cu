#include "backend/cuda/linear/skinny.h"

#include "backend/cuda/linear/skinny_kernels.h"
#include "base/error.h"

namespace taco::cuda {
namespace {

SkinnyProduct make_product(const LinearParams& p, const QuantizedRows* x) {
  const CudaLinear& w = as_cuda(*p.weight);
  SkinnyProduct s;
  s.w = w.data, s.n = w.n, s.k = w.k;
  s.dtype = w.dtype;
  s.bias = w.bias;
  if (w.dtype == DType::kF8E4M3) s.w_scale = w.scale;
  s.x = p.in, s.m = p.rows, s.x_stride = p.in_stride;
  if (w.dtype == DType::kF8E4M3 && x != nullptr) {
    s.x = x->data, s.x_stride = x->cols;
    s.x_scales = x->scales;
  }
  s.out = p.out, s.out_stride = p.out_stride;
  s.out_dtype = p.float_out ? DType::kF32 : p.dtype;
  s.epilogue = p.epilogue, s.activation = p.activation, s.out_scale = p.out_scale;
  s.gating = p.gating;
  return s;
}

}  // namespace

SkinnyConfig skinny_config(const SkinnyProduct& p, const Context& ctx) { return {}; }

bool takes_skinny(const LinearParams& p, const Context& ctx) {
  const CudaLinear& w = as_cuda(*p.weight);
  const bool fp8 = w.dtype == DType::kF8E4M3;
  if (p.rows == 0 || w.n == 0 || w.k == 0) return false;
  if (p.dtype != DType::kBF16 && p.dtype != DType::kF16) return false;
  if (!fp8 && w.dtype != p.dtype) return false;
  if (p.epilogue == Epilogue::kGated && (!w.interleaved || w.n % 16 != 0)) return false;
  SkinnyProduct s = make_product(p, nullptr);
  if (fp8) s.x = nullptr, s.x_stride = w.k;  // the quantised rows: dense, aligned
  if (ctx.hopper()) {
    // Measured against cuBLASLt on an H100 (bench/results): beyond 32 rows, the sums of a small weight's cut
    // tiles cost more than is won.
    const int64_t limit = w.n * w.k >= 20'000'000 ? 64 : 32;
    return skinny_sm90_can(s) && (ctx.batch_invariant || p.rows <= limit);
  }
  return skinny_mma_can(s) && (ctx.batch_invariant || p.rows <= 32);
}

void run_skinny(const LinearParams& p, const QuantizedRows* x, Context& ctx) {
  const SkinnyProduct s = make_product(p, x);
  if (ctx.hopper())
    run_skinny_sm90(s, skinny_config(s, ctx), ctx);
  else
    run_skinny_mma(s, ctx);
}

}  // namespace taco::cuda
