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

// The panel of rows [row, row + 16) of `matrix`; rows past its end are zero. `rows` is scratch.
void pack_panel(const HostMatrix& matrix, int64_t row, PanelFormat format, std::vector<float>& rows, uint8_t* out);

}  // namespace taco::cpu
