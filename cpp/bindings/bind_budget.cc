// Drafters on their own and the budget controller, for experiments without a model (bench/lookahead).
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "spec/draft_budget.h"
#include "spec/drafter.h"
#include "spec/scripted_drafters.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

StepKind kind_of(bool speculative) { return speculative ? StepKind::kSpeculative : StepKind::kOrdinary; }

const char* mode_name(DraftMode mode) {
  return mode == DraftMode::kNone ? "none" : mode == DraftMode::kShadow ? "shadow" : "draft";
}

// Keeps the cost model that the budget points to.
struct Budget {
  StepCost cost;
  DraftBudget budget;
  Budget(const SpeculationConfig& config, StepCost measured, bool runs_ahead)
      : cost(std::move(measured)), budget(config, &cost, runs_ahead) {}
};

nb::dict stats(const Budget& self) {
  const BudgetStats& s = self.budget.stats();
  nb::dict d;
  d["ordinary_steps"] = s.ordinary_steps;
  d["speculative_steps"] = s.speculative_steps;
  d["drafted"] = s.drafted;
  d["accepted"] = s.accepted;
  d["rejected"] = s.rejected;
  d["shadow_nodes"] = s.shadow_nodes;
  d["step_seconds"] = s.step_seconds;
  d["draft_seconds"] = s.draft_seconds;
  d["hidden_draft_seconds"] = s.hidden_draft_seconds;
  d["ordinary_step_seconds"] = s.ordinary_step_seconds;
  d["allowance"] = s.allowance;
  d["expected_speedup"] = s.expected_speedup;
  d["realised_speedup"] = s.realised_speedup;
  d["total_speedup"] = s.total_speedup;
  return d;
}

}  // namespace

void bind_budget(nb::module_& m) {
  m.def(
      "make_drafter",
      [](const SpeculationConfig& config) -> std::shared_ptr<Drafter> { return make_drafter(config); },
      "config"_a);
  m.def("tokens_to_learn", &tokens_to_learn, "rows"_a, "step_seconds"_a, "beside_device"_a);
  m.def(
      "fixed_drafter",
      [](int nodes, int vocab_size) -> std::shared_ptr<Drafter> {
        return std::make_shared<FixedDrafter>(nodes, vocab_size);
      },
      "nodes"_a, "vocab_size"_a);
  m.def(
      "replay_drafter",
      [](std::shared_ptr<Drafter> drafter,
         std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> texts,
         int32_t forced) -> std::shared_ptr<Drafter> {
        std::vector<ReplayDrafter::Text> all;
        for (auto& [prompt, output] : texts) all.push_back({std::move(prompt), std::move(output)});
        return std::make_shared<ReplayDrafter>(std::move(drafter), std::move(all), forced);
      },
      "drafter"_a, "texts"_a, "forced"_a);

  nb::class_<StepCost>(m, "StepCost")
      .def(nb::init<>())
      .def(
          "set_padding",
          [](StepCost& self, bool speculative, const std::vector<int>& sizes) {
            self.set_padding(kind_of(speculative), sizes);
          },
          "speculative"_a, "sizes"_a)
      .def(
          "set_measurements",
          [](StepCost& self, const std::vector<std::tuple<bool, int, int, int64_t, double>>& rows) {
            std::vector<StepMeasurement> all;
            for (const auto& [speculative, tokens, sequences, kv_tokens, seconds] : rows)
              all.push_back({kind_of(speculative), {tokens, sequences, kv_tokens}, seconds});
            self.set_measurements(all);
          },
          "measurements"_a)
      .def(
          "observe",
          [](StepCost& self, bool speculative, int rows, int sequences, int64_t kv_tokens, double seconds) {
            self.observe(kind_of(speculative), {rows, sequences, kv_tokens}, seconds);
          },
          "speculative"_a, "rows"_a, "sequences"_a, "kv_tokens"_a, "seconds"_a)
      .def(
          "seconds",
          [](const StepCost& self, bool speculative, int rows, int sequences, int64_t kv_tokens) {
            return self.seconds(kind_of(speculative), {rows, sequences, kv_tokens});
          },
          "speculative"_a, "rows"_a, "sequences"_a, "kv_tokens"_a);

  nb::class_<Budget>(m, "DraftBudget")
      .def(nb::init<const SpeculationConfig&, StepCost, bool>(), "config"_a, "cost"_a, "runs_ahead"_a)
      .def(
          "next",
          [](Budget& self, int sequences, int64_t kv_tokens, int other_rows) {
            return mode_name(self.budget.next(sequences, kv_tokens, other_rows));
          },
          "sequences"_a, "kv_tokens"_a, "other_rows"_a = 0)
      .def(
          "threshold",
          [](Budget& self, int sequences, int64_t kv_tokens) {
            return self.budget.threshold(sequences, kv_tokens);
          },
          "sequences"_a, "kv_tokens"_a)
      .def(
          "select",
          [](Budget& self, const std::vector<DraftTree*>& trees, const std::vector<uint64_t>& sequences,
             int other_rows, int64_t kv_tokens, int max_rows) {
            TACO_REQUIRE(trees.size() == sequences.size(), "select takes one sequence for each tree");
            DraftDecision decision;
            self.budget.select(trees, sequences, other_rows, kv_tokens, max_rows, decision);
            return nb::make_tuple(decision.drafts, decision.expected_tokens, decision.expected_seconds,
                                  decision.expected_speedup);
          },
          "trees"_a, "sequences"_a, "other_rows"_a, "kv_tokens"_a, "max_rows"_a)
      .def(
          "committed",
          [](Budget& self, uint64_t sequence, const std::vector<int32_t>& tokens) {
            self.budget.committed(sequence, tokens);
          },
          "sequence"_a, "tokens"_a)
      .def(
          "end", [](Budget& self, uint64_t sequence) { self.budget.end(sequence); }, "sequence"_a)
      .def(
          "verified",
          [](Budget& self, uint64_t sequence, const DraftTree& tree, int deepest) {
            TACO_REQUIRE(deepest >= 0 && deepest < tree.size, "a draft tree has no node ", deepest);
            self.budget.verified(sequence, tree, deepest);
          },
          "sequence"_a, "tree"_a, "deepest_accepted"_a)
      .def(
          "observe",
          [](Budget& self, bool speculative, int rows, int sequences, int64_t kv_tokens, int64_t tokens,
             double seconds, double draft_seconds, double hidden_draft_seconds, int other_rows) {
            StepOutcome step;
            step.kind = kind_of(speculative);
            step.size = {rows, sequences, kv_tokens};
            step.decoding = sequences;
            step.tokens = tokens;
            step.other_rows = other_rows;
            step.seconds = seconds;
            step.draft_seconds = draft_seconds;
            step.hidden_draft_seconds = hidden_draft_seconds;
            self.budget.observe(step);
          },
          "speculative"_a, "rows"_a, "sequences"_a, "kv_tokens"_a, "tokens"_a, "seconds"_a,
          "draft_seconds"_a = 0.0, "hidden_draft_seconds"_a = 0.0, "other_rows"_a = 0)
      .def_prop_ro("stats", &stats);
}

}  // namespace taco::bindings
