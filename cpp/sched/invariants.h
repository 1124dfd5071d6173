// What must be true of a scheduler between any two of its operations.
#pragma once

#include "sched/scheduler.h"

namespace taco {

// Throws kInternal with what is wrong. Recomputes everything from the sequences: O(blocks), for tests and for
// builds with TACO_CHECK_STEPS, which call it after each step.
void check_invariants(const Scheduler& scheduler);

}  // namespace taco
