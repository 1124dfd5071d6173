// What steps of Llama-3-8B's shape take on one H100, as bench/lookahead/step_cost.py found it
// (bench/results/2026-11-23-lookahead-h100.md).
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "spec/step_cost.h"

namespace taco::simulation {

// The sizes that steps are padded to.
inline std::vector<int> h100_padding() {
  std::vector<int> sizes = {1, 2, 4};
  for (int rows = 8; rows <= 64; rows += 8) sizes.push_back(rows);
  for (int rows = 128; rows <= 8192; rows += 128) sizes.push_back(rows);
  return sizes;
}

// Seconds of a step that is waited for, context 512: by the number of sequences, (padded rows, ms).
inline const std::map<int, std::vector<std::pair<int, double>>>& h100_table() {
  static const std::map<int, std::vector<std::pair<int, double>>> table = {
      {1, {{1, 5.65}, {2, 6.06}, {4, 6.10}, {8, 6.23}, {16, 6.43}, {32, 7.10}, {64, 7.34}}},
      {4, {{4, 5.57}, {8, 6.12}, {16, 6.26}, {24, 6.44}, {32, 6.57}, {64, 7.50}, {128, 8.70}, {256, 8.84}}},
      {16,
       {{16, 6.01},
        {32, 6.74},
        {48, 7.35},
        {64, 7.37},
        {128, 7.60},
        {256, 8.80},
        {384, 12.27},
        {640, 20.71},
        {1024, 27.93}}},
      {64,
       {{64, 7.82},
        {128, 8.57},
        {256, 9.90},
        {384, 12.70},
        {512, 15.10},
        {640, 23.35},
        {896, 26.50},
        {1152, 34.35},
        {2176, 64.62}}},
      {128,
       {{128, 9.40},
        {256, 11.68},
        {384, 14.30},
        {512, 16.70},
        {640, 22.26},
        {768, 23.30},
        {896, 26.38},
        {1024, 27.65},
        {1152, 35.95},
        {2176, 65.13}}},
      {200,
       {{256, 12.40},
        {384, 15.60},
        {512, 18.20},
        {640, 23.94},
        {896, 28.05},
        {1024, 30.32},
        {1280, 35.68},
        {1408, 41.12},
        {1664, 47.72},
        {1920, 54.99}}},
      {256,
       {{256, 13.60},
        {384, 16.60},
        {512, 19.55},
        {768, 25.41},
        {1024, 30.86},
        {1280, 37.57},
        {1536, 45.49},
        {1792, 52.03},
        {2048, 53.71},
        {2304, 67.46}}}};
  return table;
}

// overlapped: what running ahead hides of a step of 256 sequences; of fewer, in proportion, and 0.1 ms.
inline double h100_seconds(StepKind kind, const StepSize& size, double overlapped) {
  static const std::vector<int> padding = h100_padding();
  const auto& table = h100_table();
  auto found = table.upper_bound(size.sequences);
  const auto& points = found == table.begin() ? found->second : std::prev(found)->second;
  const auto pad = std::lower_bound(padding.begin(), padding.end(), size.rows);
  const double rows = pad == padding.end() ? size.rows : *pad;
  size_t i = 1;
  while (i + 1 < points.size() && points[i].first < rows) ++i;
  const auto [r0, t0] = points[i - 1];
  const auto [r1, t1] = points[i];
  double ms = rows <= r0 ? t0 : t0 + (t1 - t0) * (rows - r0) / (r1 - r0);
  if (rows > points.back().first) ms = points.back().second + 0.025 * (rows - points.back().first);
  const double contexts = static_cast<double>(size.kv_tokens) - 512.0 * size.sequences;
  ms += 38e-6 * contexts;
  if (kind == StepKind::kOrdinary) ms -= 0.1 + overlapped * size.sequences / 256;
  return std::max(1.0, ms) * 1e-3;
}

}  // namespace taco::simulation
