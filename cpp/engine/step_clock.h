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

// A step begins when the one before it ends, so that what the host does in between counts, unless it had
// nothing to do meanwhile, or looked after new sequences. Where steps run ahead, the result of a step that
// samples nothing comes before the device has computed it: such steps are measured together with the next one
// that samples, whose result the device cannot give sooner. Steps that wait for transfers are not measured.
class StepClock {
 public:
  explicit StepClock(bool runs_ahead) : runs_ahead_(runs_ahead) {}

  // In the order of the steps; monotonic seconds: when what led to the step began.
  void submitted(const StepPlan& plan, double now);
  // There is nothing to do for a while.
  void idle() { next_apart_ = true; }
  // The results of the oldest submitted step are there. None: when it ended is not known.
  std::optional<StepTime> completed(const StepPlan& plan, double now);

 private:
  const bool runs_ahead_;
  struct Submitted {
    double at = 0;
    bool apart = true;  // it does not begin when the one before it ends, unless it was submitted earlier
  };
  Submitted submitted_[2];  // the steps in flight, by the parity of their numbers
  bool next_apart_ = true;
  double last_end_ = 0;
  StepTime open_;  // steps whose end is not known yet
};

}  // namespace taco
