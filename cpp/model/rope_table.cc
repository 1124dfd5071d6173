#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace taco {

RopeTable::RopeTable(const RopeSpec& spec, std::shared_ptr<Backend> backend, int max_positions)
    : spec_(spec), backend_(backend), max_positions_(max_positions) {
  size_t count = static_cast<size_t>(max_positions) * spec.rotary_dim;
  data_ = std::static_pointer_cast<float>(device_memory(backend, count * sizeof(float)));
}

const float* RopeTable::get(int positions) {
  if (positions <= filled_) return data_.get();
  constexpr int kChunk = 1024;
  int target = std::min(max_positions_, (positions + kChunk - 1) / kChunk * kChunk);
  int half = spec_.rotary_dim / 2;
  std::vector<float> rows(static_cast<size_t>(target - filled_) * spec_.rotary_dim);
  for (int p = filled_; p < target; ++p) {
    float* row = rows.data() + static_cast<size_t>(p - filled_) * spec_.rotary_dim;
    for (int i = 0; i < half; ++i) {
      float angle = static_cast<float>(p) * spec_.inv_freq[i];
      row[i] = std::cos(angle) * spec_.attention_factor;
      row[half + i] = std::sin(angle) * spec_.attention_factor;
    }
  }
  backend_->upload(data_.get() + static_cast<size_t>(filled_) * spec_.rotary_dim, rows.data(),
                   rows.size() * sizeof(float));
  filled_ = target;
  return data_.get();
}

std::vector<float> log_query_scales(int length, int positions) {
  std::vector<float> out(positions, 1.0f);
  for (int p = length; p < positions; ++p)
    out[p] = static_cast<float>(std::log(static_cast<double>(p) + 1) / std::log(static_cast<double>(length)));
  return out;
}

}  // namespace taco
