// Tensor maps: what the bulk copy engine of Hopper knows of an array in device memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "base/dtype.h"

namespace taco::cuda {

// The driver's cuTensorMapEncodeTiled, found at run time: this library must load where there is no driver.
// Throws kUnavailable where the driver is older than CUDA 12.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder();

// Row-major [rows, cols] in boxes of 128 bytes by box_rows, swizzled; zeros beyond the borders. `data` and
// the rows are 16-byte aligned; stride in elements.
CUtensorMap swizzled_map(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride,
                         int box_rows);

}  // namespace taco::cuda
