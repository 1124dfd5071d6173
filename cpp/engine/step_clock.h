// How long steps take, by the moments when they are submitted and when their results come.
#pragma once

#include <cstdint>
#include <optional>

#include "sched/step_plan.h"

namespace taco {

struct StepTime {
  double begin = 0, seconds = 0;
  int steps = 0;  // that ended together; of 1 alone its own size is measured
  int64_t tokens = 0,
          prompt_tokens = 0;  // computed; and of those in steps of sequences that do not decode yet
};

// Where steps run ahead, a step begins when the one before it ends. And there the result of a step that
// samples nothing comes before the device has computed it: such steps are measured together with the next one
// that samples, whose result the device cannot give sooner. Steps that wait for transfers are not measured.
class StepClock {
 public:
  explicit StepClock(bool runs_ahead) : runs_ahead_(runs_ahead) {}

  // In the order of the steps; monotonic seconds.
  void submitted(const StepPlan& plan, double now) { submitted_[plan.number % 2] = now; }
  // The results of the oldest submitted step are there. None: when it ended is not known.
  std::optional<StepTime> completed(const StepPlan& plan, double now);

 private:
  const bool runs_ahead_;
  double submitted_[2] = {0, 0};  // of the steps in flight, by the parity of their numbers
  double last_end_ = 0;
  StepTime open_;  // steps whose end is not known yet
};

}  // namespace taco
