// The shapes of tile that are compiled, for each element type in a file of its own.
#pragma once

#include "backend/cuda/linear/skinny_sm90.cuh"

namespace taco::cuda::skinny {

template <typename T, int kTokens>
void launch_config(const SkinnyProduct& p, const SkinnyConfig& c, const CUtensorMap& w_map,
                   const CUtensorMap& x_map, Context& ctx) {
  if (c.row_tiles == 1 && c.k_boxes == 4) return launch_tile<T, kTokens, 1, 4>(p, c, w_map, x_map, ctx);
  if (c.row_tiles == 1 && c.k_boxes == 2) return launch_tile<T, kTokens, 1, 2>(p, c, w_map, x_map, ctx);
  if constexpr (kTokens >= 64) {
    if (c.row_tiles == 2 && c.k_boxes == 2) return launch_tile<T, kTokens, 2, 2>(p, c, w_map, x_map, ctx);
  }
  fail(ErrorCode::kInternal, "no skinny kernel for ", c.row_tiles, " x 64 rows, ", c.k_boxes, " boxes");
}

template <typename T>
void launch_tokens(int tokens, const SkinnyProduct& p, const SkinnyConfig& config, const CUtensorMap& w_map,
                   const CUtensorMap& x_map, Context& ctx) {
  switch (tokens) {
    case 8:
      return launch_config<T, 8>(p, config, w_map, x_map, ctx);
    case 16:
      return launch_config<T, 16>(p, config, w_map, x_map, ctx);
    case 32:
      return launch_config<T, 32>(p, config, w_map, x_map, ctx);
    case 64:
      return launch_config<T, 64>(p, config, w_map, x_map, ctx);
    default:
      return launch_config<T, 128>(p, config, w_map, x_map, ctx);
  }
}

}  // namespace taco::cuda::skinny
