// The arrays that a step's decoder reads, built from a plan on the host and uploaded in one go.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/decoder.h"
#include "sched/step_plan.h"

namespace taco {

class StepInputs {
 public:
  StepInputs(std::shared_ptr<Backend> backend, int block_size);

  // The batch's pointers stay good until the next call.
  const DecoderBatch& build(const StepPlan& plan);
  // Row numbers to the device, good until the next call.
  const int32_t* upload_index(const std::vector<int32_t>& rows);

 private:
  template <typename T>
  struct Array {
    std::shared_ptr<Backend> backend;
    std::shared_ptr<void> data;
    size_t capacity = 0;
    const T* upload(const std::vector<T>& host);
  };
  std::shared_ptr<Backend> backend_;
  int block_size_;
  std::vector<int32_t> ids_, positions_, q_start_, kv_len_, tables_;
  std::vector<int64_t> slots_;
  Array<int32_t> d_ids_, d_positions_, d_q_start_, d_kv_len_, d_tables_, d_index_;
  Array<int64_t> d_slots_;
  DecoderBatch batch_;
};

}  // namespace taco
