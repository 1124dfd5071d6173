#include "engine/step_clock.h"

#include <algorithm>
#include <utility>

namespace taco {
namespace {

constexpr double kPause = 0.01;  // seconds without a step: those before it have ended, nobody knows when

}  // namespace

void StepClock::submitted(const StepPlan& plan, double now) {
  submitted_[plan.number % 2] = {now, next_apart_};
  next_apart_ = std::any_of(plan.seqs.begin(), plan.seqs.end(), [](const auto& s) { return !s.decodes(); });
}

std::optional<StepTime> StepClock::completed(const StepPlan& plan, double now) {
  const auto [submitted, apart] = submitted_[plan.number % 2];
  const double last_end = std::exchange(last_end_, now);
  const bool paused = submitted > last_end + kPause;
  if (paused) open_ = {};
  if (!plan.wait_for.empty()) {
    open_ = {};
    return std::nullopt;
  }
  if (open_.steps == 0) open_.begin = paused || apart ? std::max(last_end, submitted) : last_end;
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
