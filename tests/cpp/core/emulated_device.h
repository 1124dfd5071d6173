// The CPU backend behind the interface of a device: tokens are chosen on it, steps run ahead and are recorded
// as graphs, and what was set up at first use is known. Float32; takes the likeliest token.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "backend/forwarding_backend.h"
#include "base/error.h"

namespace taco::testing {

class EmulatedDevice final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // Numbers of rows that products were made of, in steps without trees and with them.
  std::set<int64_t> rows, tree_rows;
  int graphs = 0, replays = 0, slot_copies = 0;

  bool has_graphs() const override { return true; }
  std::unique_ptr<Graph> capture(const std::function<void()>& ops) override {
    ++graphs;
    auto graph = std::make_unique<Recorded>();
    graph->ops = ops;
    return graph;
  }
  void replay(Graph& graph) override {
    ++replays;
    static_cast<Recorded&>(graph).ops();
  }
  std::vector<int64_t> rows_to_warm(int64_t most) const override {
    std::vector<int64_t> out;
    for (int64_t rows = 128; out.empty() || out.back() < most; rows += 128) out.push_back(rows);
    return out;
  }

  void begin_step(const StepShape& shape) override {
    tree_ = shape.tree;
    inner_->begin_step(shape);
  }
  void linear(const LinearParams& p) override {
    (tree_ ? tree_rows : rows).insert(p.rows);
    inner_->linear(p);
  }
  void copy_slots(const CopySlotsParams& p) override {
    ++slot_copies;
    inner_->copy_slots(p);
  }

  bool samples() const override { return true; }
  void sample(const SampleParams& p) override {
    TACO_CHECK(!p.any_rules && p.max_logprobs < 0, "requests without rules only");
    for (int i = 0; i < p.num_rows; ++i) {
      const float* logits = p.logits + int64_t{p.rows[i].logits_row} * p.vocab;
      int best = 0;
      for (int v = 1; v < p.vocab; ++v)
        if (logits[v] > logits[best]) best = v;
      double sum = 0;
      for (int v = 0; v < p.vocab; ++v) sum += std::exp(static_cast<double>(logits[v] - logits[best]));
      p.results[i] = {best, static_cast<float>(-std::log(sum)), 1, SampleError::kNone};
    }
  }
  void patch_ids(const PatchIdsParams& p) override {
    for (int64_t i = 0; i < p.rows; ++i)
      if (p.source[i] >= 0) p.ids[i] = p.results[p.source[i]].token;
  }

 private:
  struct Recorded final : Graph {
    std::function<void()> ops;
  };

  bool tree_ = false;
};

}  // namespace taco::testing
