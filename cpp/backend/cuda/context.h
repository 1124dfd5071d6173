// What every op of the CUDA backend needs of its device: the stream, scratch memory, what the chip can do.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda/check.h"

namespace taco::cuda {

class CublasLt;    // linear/cublaslt.h
class Uploader;    // linear/upload.h
struct MoeTables;  // moe/moe.cc

// Rows that a producer wrote in FP8 for the product that reads them, beside their 16-bit place `source`.
struct QuantizedRows {
  const void* source = nullptr;  // the activation buffer that they stand for
  int64_t rows = 0, cols = 0;    // rows 0: forgotten
  void* data = nullptr;          // e4m3 [rows, cols], dense
  float* scales = nullptr;       // [rows]: value = data * scale
};

// Scratch of one kind, grown on demand outside of graph capture; addresses are stable once grown.
class Scratch {
 public:
  ~Scratch();
  // Throws kInternal when it would have to grow while a graph is captured: sizes are reserved before.
  void* reserve(size_t bytes, cudaStream_t stream);
  // As reserve; the memory is zero the first time that a kernel sees it (semaphores that reset themselves).
  void* reserve_zeroed(size_t bytes, cudaStream_t stream);
  static uint64_t generation();  // of all scratch memory of the process: grows with each move

 private:
  void grow(size_t bytes, cudaStream_t stream, bool zero);
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Context {
  int device = 0;
  cudaStream_t stream = nullptr;
  int num_sms = 0;
  int capability = 0;    // 80, 89, 90; lowered by TACO_CUDA_ISA=80 for tests of the older paths
  size_t max_smem = 0;   // bytes a block can have
  size_t max_pitch = 0;  // bytes between rows of a pitched copy
  bool batch_invariant = false;
  bool pdl = true;  // programmatic dependent launch; TACO_PDL=0 turns it off
  // The stream waits for a copy stream next, or for a small copy: the kernel after that must not start early.
  mutable bool behind_fence = false;
  std::shared_ptr<CublasLt> lt;
  std::shared_ptr<Uploader> uploader;  // made with the first weight
  std::shared_ptr<MoeTables> moe_tables;

  Scratch split_partials, split_semaphores;  // attention's
  Scratch gemm_partials, gemm_semaphores;    // the skinny products'
  Scratch gemm_workspace, gemm_out;          // cuBLASLt's; products before their epilogue
  Scratch sampling, moe;

  bool hopper() const { return capability >= 90; }

  // FP8 rows for `source`: room for them, and finding them again. A buffer that is overwritten by other
  // means is forgotten.
  QuantizedRows* make_quantized(const void* source, int64_t rows, int64_t cols);
  const QuantizedRows* find_quantized(const void* source, int64_t rows, int64_t cols) const;
  void forget_quantized(const void* source);

 private:
  static constexpr int kQuantizedSlots = 8;
  QuantizedRows quantized_[kQuantizedSlots];
  Scratch quantized_data_[kQuantizedSlots], quantized_scales_[kQuantizedSlots];
  int next_quantized_ = 0;
};

}  // namespace taco::cuda
