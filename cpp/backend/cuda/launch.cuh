// Launching kernels with programmatic dependent launch (PDL): a kernel may start before the one ahead of it
// in the stream has ended, and does its first independent work (weights into shared memory) meanwhile.
//
// The rules, for every kernel of this backend:
//  * before `pdl_wait()` it reads nothing but weights and kernel parameters, and writes no global memory at
//    all: whatever stands in front of it in the stream may still be running, and reading or writing anything;
//    The step's inputs count as parameters where the host copied them ahead of the first kernel: positions,
//    slots, block tables, work lists. In a captured graph so do the keys and values of earlier steps;
//  * every thread that touches global memory calls `pdl_wait()` first, and every kernel calls it: the chain
//  of
//    waits is what orders kernel n+2 behind kernel n;
//  * `pdl_launch()` lets the next kernel start once all blocks have called it or ended. It promises nothing
//    about this kernel's results (the next one waits for them), so it stands early; late where the next
//    kernel's blocks would take the room of this one's own.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backend/cuda/context.h"

namespace taco::cuda {

__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void pdl_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// kernel<<<grid, block, smem, ctx.stream>>>(args...), with PDL where the device has it.
template <typename... Params, typename... Args>
void launch(const Context& ctx, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem,
            Args&&... args) {
  if (smem > 48 * 1024)
    TACO_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(smem)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = ctx.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = ctx.pdl && ctx.capability >= 90 && !ctx.behind_fence ? 1 : 0;
  ctx.behind_fence = false;
  TACO_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

}  // namespace taco::cuda
