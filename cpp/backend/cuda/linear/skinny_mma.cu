// y = x W^T for few rows by mma.sync: every device from capability 8.0 on.
//
// The weight goes straight from global memory to registers: both operands of an mma may have their k in any
// order as long as it is the same, so a thread's 16 bytes of a row stand for the places of two (FP8: four)
// instructions. The eight warps of a block take pieces of k in turn; their sums meet in shared memory, always
// in the same order.
#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear/skinny_epilogue.cuh"

namespace taco::cuda {
namespace skinny {
namespace {

constexpr int kWarps = 8;

struct MmaArgs {
  SkinnyEpilogue epilogue;
  const uint8_t* w;
  const uint8_t* x;
  int64_t n, k_bytes, x_stride_bytes;
  int m;
};

template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
#define TACO_MMA(TYPE)                                                                \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    TACO_MMA("bf16");
  else
    TACO_MMA("f16");
#undef TACO_MMA
}

// Two e4m3 to two halves of 2^-8 their value: the exponents' biases differ by eight.
__device__ __forceinline__ uint32_t widen(uint32_t bytes, int high) {
  const uint32_t v = __byte_perm(bytes, 0, high ? 0x3424 : 0x1404);  // each byte in the upper half of 16 bits
  return (v & 0x80008000u) | ((v & 0x7f007f00u) >> 1);
}

// kTokens columns, kSlabs x 16 rows.
template <typename T, int kTokens, int kSlabs>
__global__ void __launch_bounds__(kWarps * 32) mma_kernel(const __grid_constant__ MmaArgs args) {
  constexpr int kRows = kSlabs * 16, kPitch = kRows + 4;
  constexpr int kPiece = 256;                   // bytes of k that a warp takes: the same for all kTokens
  constexpr int kAhead = kTokens <= 8 ? 4 : 2;  // 64-byte parts of each row in flight
  __shared__ __align__(16) float sums[kWarps][kTokens * kPitch];
  pdl_launch();
  pdl_wait();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row0 = int64_t{blockIdx.x} * kRows;
  const uint8_t* w[kSlabs * 2];
  const uint8_t* x[kTokens / 8];
  // Rows that are not there repeat the last: their results are not stored.
#pragma unroll
  for (int i = 0; i < kSlabs * 2; ++i)
    w[i] = args.w + min(row0 + lane / 4 + i * 8, args.n - 1) * args.k_bytes + lane % 4 * 16;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i)
    x[i] = args.x + min(lane / 4 + i * 8, args.m - 1) * args.x_stride_bytes + lane % 4 * 16;
  float acc[kSlabs][kTokens / 8][4] = {};
  constexpr int kParts = kPiece / (kAhead * 64);
  for (int64_t i = 0; warp * kPiece + i / kParts * (kWarps * kPiece) < args.k_bytes; ++i) {
    const int64_t k = warp * kPiece + i / kParts * (kWarps * kPiece) + i % kParts * (kAhead * 64);
    uint4 a[kAhead][kSlabs * 2];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t at = k + u * 64;
      const bool inside = at + lane % 4 * 16 < args.k_bytes;
#pragma unroll
      for (int i = 0; i < kSlabs * 2; ++i)
        a[u][i] = inside ? __ldcs(reinterpret_cast<const uint4*>(w[i] + at)) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t at = k + u * 64;
      const bool inside = at + lane % 4 * 16 < args.k_bytes;
#pragma unroll
      for (int t = 0; t < kTokens / 8; ++t) {
        const uint4 b = inside ? *reinterpret_cast<const uint4*>(x[t] + at) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int s = 0; s < kSlabs; ++s) {
          const uint4 lo = a[u][2 * s], hi = a[u][2 * s + 1];
          if constexpr (sizeof(T) == 2) {
            mma_16x8x16<T>(acc[s][t], lo.x, hi.x, lo.y, hi.y, b.x, b.y);
            mma_16x8x16<T>(acc[s][t], lo.z, hi.z, lo.w, hi.w, b.z, b.w);
          } else {
            const uint32_t l[4] = {lo.x, lo.y, lo.z, lo.w}, h[4] = {hi.x, hi.y, hi.z, hi.w},
                           c[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
              mma_16x8x16<__half>(acc[s][t], widen(l[i], 0), widen(h[i], 0), widen(l[i], 1), widen(h[i], 1),
                                  widen(c[i], 0), widen(c[i], 1));
          }
        }
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSlabs; ++s) {
#pragma unroll
    for (int t = 0; t < kTokens / 8; ++t) {
      float* to = sums[warp] + (t * 8 + lane % 4 * 2) * kPitch + s * 16 + lane / 4;
      to[0] = acc[s][t][0];
      to[kPitch] = acc[s][t][1];
      to[8] = acc[s][t][2];
      to[kPitch + 8] = acc[s][t][3];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kPitch; i += kWarps * 32) {
    float sum = sums[0][i];  // the padding holds nothing that counts
#pragma unroll
    for (int j = 1; j < kWarps; ++j) sum += sums[j][i];
    sums[0][i] = sum;
  }
  __syncthreads();
  skinny_finish<kRows, kWarps * 32>(args.epilogue, sums[0], kPitch, row0, args.n, 0, args.m, threadIdx.x,
                                    sizeof(T) == 1 ? 65536.0f : 1.0f);
}

template <typename T, int kTokens, int kSlabs>
void launch_mma(const SkinnyProduct& p, Context& ctx) {
  MmaArgs a;
  a.epilogue = skinny_epilogue(p);
  a.w = static_cast<const uint8_t*>(p.w);
  a.x = static_cast<const uint8_t*>(p.x);
  a.n = p.n;
  a.k_bytes = p.k * static_cast<int64_t>(sizeof(T));
  a.x_stride_bytes = p.x_stride * static_cast<int64_t>(sizeof(T));
  a.m = static_cast<int>(p.m);
  const int64_t rows = kSlabs * 16;
  launch(ctx, mma_kernel<T, kTokens, kSlabs>, dim3(static_cast<unsigned>((p.n + rows - 1) / rows)),
         dim3(kWarps * 32), 0, a);
}

template <typename T>
void run_mma(const SkinnyProduct& p, Context& ctx) {
  if (p.m <= 8) return launch_mma<T, 8, 1>(p, ctx);
  if (p.m <= 16) return launch_mma<T, 16, 1>(p, ctx);
  launch_mma<T, 32, 2>(p, ctx);
}

}  // namespace
}  // namespace skinny

bool skinny_mma_can(const SkinnyProduct& p) {
  const int64_t size = static_cast<int64_t>(dtype_size(p.dtype));
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return p.k * size % 16 == 0 && p.x_stride * size % 16 == 0 && aligned(p.w) && aligned(p.x);
}

void run_skinny_mma(const SkinnyProduct& p, Context& ctx) {
  for (int64_t row = 0; row < p.m; row += 32) {
    const SkinnyProduct part = skinny_rows(p, row, std::min<int64_t>(32, p.m - row));
    if (p.dtype == DType::kBF16)
      skinny::run_mma<__nv_bfloat16>(part, ctx);
    else if (p.dtype == DType::kF16)
      skinny::run_mma<__half>(part, ctx);
    else
      skinny::run_mma<__nv_fp8_e4m3>(part, ctx);
  }
}

}  // namespace taco::cuda
