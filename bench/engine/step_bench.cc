// What the engine adds to each step: planning, committing, detokenising, publishing. CPU time of the process,
// over an executor that does nothing but answer.
//   step_bench [sequences ...]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace taco {
namespace {

constexpr int kVocab = 32000, kPromptLen = 32, kOutputLen = 2000;

// Waits with its first step until all requests have been submitted, lest the first ones finish before that.
class EmptyExecutor : public Executor {
 public:
  explicit EmptyExecutor(std::shared_ptr<std::atomic<bool>> go) : go_(std::move(go)) {}
  int vocab_size() const override { return kVocab; }
  int max_model_len() const override { return 4096; }
  KvCacheConfig kv_cache() const override { return {16, 65536}; }
  StepOutput run(const StepPlan& plan) override {
    go_->wait(false);
    StepOutput out;
    out.sampled.reserve(plan.seqs.size());
    for (const SeqStep& step : plan.seqs) {
      for (const Sequence* sampler : step.samplers) {
        SampledToken& sampled = out.sampled.emplace_back();
        sampled.seq = sampler->id;
        sampled.token = sampler->len() % kVocab;
        sampled.logprob = -1.0f;
      }
    }
    return out;
  }

 private:
  std::shared_ptr<std::atomic<bool>> go_;
};

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

void measure(int num_seqs, bool with_text) {
  std::shared_ptr<const Vocabulary> vocabulary;
  SamplingParams params;
  params.max_tokens = kOutputLen;
  params.ignore_eos = true;
  if (with_text) {
    std::vector<std::string> pieces(kVocab, " word");
    vocabulary = std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{}, false);
    params.stop = {"words"};
  }
  EngineConfig config;
  config.max_num_seqs = std::max(config.max_num_seqs, num_seqs);
  config.max_num_batched_tokens = std::max(config.max_num_batched_tokens, num_seqs);
  auto go = std::make_shared<std::atomic<bool>>(false);
  Engine engine(std::make_unique<EmptyExecutor>(go), vocabulary, config);
  for (int i = 0; i < num_seqs; ++i) engine.submit(std::vector<int32_t>(kPromptLen, i % kVocab), params);
  double start = cpu_seconds();
  *go = true;
  go->notify_one();
  engine.drain(std::chrono::seconds(600));
  double seconds = cpu_seconds() - start;
  double steps = static_cast<double>(engine.stats().steps);
  std::printf("%5d sequences, %s: %8.2f us per step, %6.3f us per token\n", num_seqs,
              with_text ? "text and a stop string" : "token ids             ", seconds / steps * 1e6,
              seconds / (num_seqs * kOutputLen) * 1e6);
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  std::vector<int> counts;
  for (int i = 1; i < argc; ++i) counts.push_back(std::atoi(argv[i]));
  if (counts.empty()) counts = {1, 32, 256};
  for (int count : counts) {
    taco::measure(count, false);
    taco::measure(count, true);
  }
  return 0;
}
