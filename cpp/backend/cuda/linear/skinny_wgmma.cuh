// wgmma with both operands in shared memory: D[64, N] (+)= A[64, k] B[N, k]^T, float32 accumulators.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace taco::cuda {

// A K-major operand in shared memory, rows of 128 bytes in TMA's 128-byte swizzle (1 KiB for eight rows):
// address in units of 16 bytes, leading offset (unused by this layout) 1, stride between groups of eight rows
// 64, swizzle 1.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t smem_address) {
  return (uint64_t{(smem_address & 0x3ffff) >> 4}) | (uint64_t{1} << 16) | (uint64_t{64} << 32) |
         (uint64_t{1} << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d of a thread: d[4 j + 2 h + i] is row 16 * warp + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i. 32 bytes
// of k.

#define TACO_WGMMA_N8(SHAPE_K, TYPES, TAIL)                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\nwgmma.mma_async.sync.aligned.m64n8" SHAPE_K \
               ".f32." TYPES                                                                         \
               " {"                                                                                  \
               "%0, %1, %2, %3"                                                                      \
               "}, %4, %5, p, " TAIL ";\n}\n"                                                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                      \
               : "l"(a), "l"(b), "r"(accumulate))

#define TACO_WGMMA_N16(SHAPE_K, TYPES, TAIL)                                                                \
  asm volatile(                                                                                             \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\nwgmma.mma_async.sync.aligned.m64n16" SHAPE_K ".f32." TYPES \
      " {"                                                                                                  \
      "%0, %1, %2, %3, %4, %5, %6, %7"                                                                      \
      "}, %8, %9, p, " TAIL ";\n}\n"                                                                        \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])      \
      : "l"(a), "l"(b), "r"(accumulate))

#define TACO_WGMMA_N32(SHAPE_K, TYPES, TAIL)                                                                 \
  asm volatile(                                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32" SHAPE_K ".f32." TYPES  \
      " {"                                                                                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                                 \
      "}, %16, %17, p, " TAIL ";\n}\n"                                                                       \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),      \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]) \
      : "l"(a), "l"(b), "r"(accumulate))

#define TACO_WGMMA_N64(SHAPE_K, TYPES, TAIL)                                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64" SHAPE_K      \
               ".f32." TYPES                                                                                \
               " {"                                                                                         \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                     \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"             \
               "}, %32, %33, p, " TAIL ";\n}\n"                                                             \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),        \
                 "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),    \
                 "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
                 "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
                 "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                         \
               : "l"(a), "l"(b), "r"(accumulate))

#define TACO_WGMMA_N128(SHAPE_K, TYPES, TAIL)                                                                \
  asm volatile(                                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128" SHAPE_K ".f32." TYPES \
      " {"                                                                                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                     \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                     \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                       \
      "}, %64, %65, p, " TAIL ";\n}\n"                                                                       \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),      \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),             \
        "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),           \
        "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),           \
        "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),           \
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),           \
        "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),           \
        "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),           \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])            \
      : "l"(a), "l"(b), "r"(accumulate))

template <typename T, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
#define TACO_WGMMA_TYPES(N)                            \
  if constexpr (std::is_same_v<T, __nv_bfloat16>)      \
    TACO_WGMMA_N##N("k16", "bf16.bf16", "1, 1, 0, 0"); \
  else if constexpr (std::is_same_v<T, __half>)        \
    TACO_WGMMA_N##N("k16", "f16.f16", "1, 1, 0, 0");   \
  else                                                 \
    TACO_WGMMA_N##N("k32", "e4m3.e4m3", "1, 1")
  if constexpr (kN == 8) {
    TACO_WGMMA_TYPES(8);
  } else if constexpr (kN == 16) {
    TACO_WGMMA_TYPES(16);
  } else if constexpr (kN == 32) {
    TACO_WGMMA_TYPES(32);
  } else if constexpr (kN == 64) {
    TACO_WGMMA_TYPES(64);
  } else {
    static_assert(kN == 128);
    TACO_WGMMA_TYPES(128);
  }
#undef TACO_WGMMA_TYPES
}
#undef TACO_WGMMA_N8
#undef TACO_WGMMA_N16
#undef TACO_WGMMA_N32
#undef TACO_WGMMA_N64
#undef TACO_WGMMA_N128

}  // namespace taco::cuda
