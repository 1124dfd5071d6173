// Cosines and sines of one RopeSpec for the positions of a context, filled as far as they are needed.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/model_spec.h"

namespace taco {

class RopeTable {
 public:
  RopeTable(const RopeSpec& spec, std::shared_ptr<Backend> backend, int max_positions);

  // [max_positions][rotary_dim], valid below `positions`. Angles are formed in float32, as checkpoints were
  // trained with: float(position) * inv_freq, then cos and sin of that float.
  const float* get(int positions);

 private:
  RopeSpec spec_;
  std::shared_ptr<Backend> backend_;
  std::shared_ptr<float> data_;
  int max_positions_, filled_ = 0;
};

// [positions] what queries are multiplied by: log(position + 1) / log(length) beyond `length` tokens, else 1.
std::vector<float> log_query_scales(int length, int positions);

}  // namespace taco
