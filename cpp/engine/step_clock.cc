#include "engine/step_clock.h"

#include <algorithm>
#include <utility>

namespace taco {
namespace {

constexpr double kPause = 0.01;  // seconds without a step: those before it have ended, nobody knows when

}  // namespace

std::optional<StepTime> StepClock::completed(const StepPlan& plan, double now) {
  const double submitted = submitted_[plan.number % 2], last_end = std::exchange(last_end_, now);
  if (submitted > last_end + kPause) open_ = {};
  if (!plan.wait_for.empty()) {
    open_ = {};
    return std::nullopt;
  }
  if (open_.steps == 0) open_.begin = std::max(last_end, submitted);
  ++open_.steps;
  open_.tokens += plan.num_tokens;
  bool samples = false;
  for (const SeqStep& part : plan.seqs) {
    if (!part.decodes()) open_.prompt_tokens += part.count;
    samples |= !part.samplers.empty();
  }
  if (runs_ahead_ && !samples) return std::nullopt;
  open_.seconds = now - open_.begin;
  return std::exchange(open_, {});
}

}  // namespace taco
