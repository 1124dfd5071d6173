// An executor for the tests of what happens when things go wrong, or at a bad moment.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine_test_util.h"

namespace taco {

// A NullExecutor that can be told to fail, and whose steps wait for a permit to end if asked to: while they
// do, requests gather.
class Faulty : public Executor {
 public:
  struct Controls {
    std::atomic<int> throw_at_submit{-1}, throw_at_collect{-1};  // number of the step
    std::atomic<ErrorCode> code{ErrorCode::kInternal};           // of what is thrown
    std::atomic<int> failing_step{-1}, failing_index{-1};
    std::atomic<bool> drop_a_token{false};
    std::atomic<int> submitted{0}, steps{0}, idles{0}, calls_after_throw{0};
    std::atomic<bool> gated{false};
    std::atomic<int> permits{0};
  };
  Faulty(std::shared_ptr<Controls> controls, std::unique_ptr<NullExecutor> inner)
      : controls_(std::move(controls)), inner_(std::move(inner)) {}
  int vocab_size() const override { return inner_->vocab_size(); }
  int max_model_len() const override { return inner_->max_model_len(); }
  KvCacheConfig kv_cache() const override { return inner_->kv_cache(); }
  int max_sampled_rows() const override { return inner_->max_sampled_rows(); }
  int max_in_flight() const override { return inner_->max_in_flight(); }
  void idle() override { ++controls_->idles; }

  void submit(const StepPlan& plan) override {
    controls_->calls_after_throw += thrown_;
    int step = controls_->submitted++;
    if (step == controls_->throw_at_submit) catch_fire();
    inner_->submit(plan);
    std::vector<SeqId>& failing = failing_.emplace_back();
    if (step != controls_->failing_step) return;
    for (const SeqStep& part : plan.seqs) {
      for (const Sequence* sampler : part.samplers) {
        if (sampler->index == controls_->failing_index) failing.push_back(sampler->id);
      }
    }
  }

  StepOutput collect() override {
    controls_->calls_after_throw += thrown_;
    while (controls_->gated && controls_->permits <= 0)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    --controls_->permits;
    if (controls_->steps++ == controls_->throw_at_collect) catch_fire();
    StepOutput out = inner_->collect();
    for (SampledToken& sampled : out.sampled) {
      if (std::count(failing_.front().begin(), failing_.front().end(), sampled.seq) == 0) continue;
      sampled.error = "the logits are not finite";
      sampled.token = -1;
    }
    failing_.pop_front();
    if (controls_->drop_a_token && !out.sampled.empty()) out.sampled.pop_back();
    return out;
  }

 private:
  [[noreturn]] void catch_fire() {
    thrown_ = true;
    throw Error(controls_->code, "the device caught fire");
  }
  bool thrown_ = false;
  std::deque<std::vector<SeqId>> failing_;  // of the steps in flight
  std::shared_ptr<Controls> controls_;
  std::unique_ptr<NullExecutor> inner_;
};

inline void expect_unavailable(Engine& engine, const std::string& reason) {
  try {
    engine.submit({1}, greedy(1));
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
  }
}

}  // namespace taco
