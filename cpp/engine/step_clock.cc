#include "engine/step_clock.h"

#include <algorithm>
#include <utility>

namespace taco {
namespace {

constexpr double kPause = 0.01;  // seconds without a step: those before it have ended, nobody knows when

}  // namespace

std::optional<StepTime> StepClock::completed(const StepPlan& plan, double now) {
  const auto [submitted, after_idle] = submitted_[plan.number % 2];
  const double last_end = std::exchange(last_end_, now);
  const bool paused = submitted > last_end + kPause;
  if (paused) open_ = {};
  if (!plan.wait_for.empty()) {
    open_ = {};
    return std::nullopt;
  }
  const bool apart = paused || after_idle || std::exchange(computed_prompts_, false);
  if (open_.steps == 0) open_.begin = apart ? std::max(last_end, submitted) : last_end;
  ++open_.steps;
  open_.tokens += plan.num_tokens;
  bool samples = false;
  for (const SeqStep& part : plan.seqs) {
    if (!part.decodes()) open_.prompt_tokens += part.count;
    samples |= !part.samplers.empty();
  }
  computed_prompts_ = open_.prompt_tokens > 0;
  if (runs_ahead_ && !samples) return std::nullopt;
  open_.seconds = now - open_.begin;
  return std::exchange(open_, {});
}

}  // namespace taco
