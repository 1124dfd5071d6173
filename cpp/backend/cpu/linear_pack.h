// Packs checkpoint matrices into the panels of isa/linear_kernels.h. Internal to linear.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/cpu/isa/linear_kernels.h"
#include "backend/matrix.h"

namespace taco::cpu {

// How a matrix of `format` is kept when unquantised weights are kept as `compute`.
PanelFormat panel_format(WeightFormat format, DType compute);

size_t panel_bytes(PanelFormat format, int64_t cols);

struct PackScratch {
  std::vector<float> values;
  std::vector<uint8_t> rows;
};

// The panel of rows [row, row + 16) of `matrix`; rows past its end are zero.
void pack_panel(const HostMatrix& matrix, int64_t row, PanelFormat format, PackScratch& scratch,
                uint8_t* out);

}  // namespace taco::cpu
