// What the engine adds to each step: planning, committing, detokenising, publishing, over an executor that
// does nothing but answer. The host's part is the time from a step's result to the submission of the next
// step: with one step in flight the device is idle meanwhile, with two it has the other one to run.
//   step_bench [--device-ms x] [--prefix-cache] [sequences ...]
// With --device-ms each step takes x milliseconds of sleep, so that the host's part starts from a cold cache,
// as it does behind a real device. With --prefix-cache everything is measured without a prefix cache and with
// one, which publishes each block that the sequences fill.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"

namespace taco {
namespace {

constexpr int kVocab = 32000, kPromptLen = 32;

struct Gate {
  std::atomic<bool> open{false};
  std::vector<double> host_part;  // seconds, by step
};

// Waits with its first step until all requests have been submitted, lest the first ones finish before that.
class EmptyExecutor : public Executor {
 public:
  EmptyExecutor(std::shared_ptr<Gate> gate, int max_in_flight, double step_seconds)
      : gate_(std::move(gate)), max_in_flight_(max_in_flight), step_seconds_(step_seconds) {}
  int vocab_size() const override { return kVocab; }
  int max_model_len() const override { return 4096; }
  KvCacheConfig kv_cache() const override { return {16, 65536}; }
  int max_in_flight() const override { return max_in_flight_; }
  void submit(const StepPlan& plan) override {
    if (collected_ > 0) gate_->host_part.push_back(monotonic_seconds() - collected_);
    collected_ = 0;
    if (step_seconds_ > 0)
      ready_.push_back(device_free_ = std::max(device_free_, monotonic_seconds()) + step_seconds_);
    StepOutput& out = outputs_.emplace_back();
    out.sampled.reserve(plan.seqs.size());
    for (const SeqStep& step : plan.seqs) {
      for (const Sequence* sampler : step.samplers) {
        SampledToken& sampled = out.sampled.emplace_back();
        sampled.seq = sampler->id;
        sampled.token = sampler->len() % kVocab;
        sampled.logprob = -1.0f;
      }
    }
  }
  StepOutput collect() override {
    gate_->open.wait(false);
    if (step_seconds_ > 0) {
      std::this_thread::sleep_for(std::chrono::duration<double>(ready_.front() - monotonic_seconds()));
      ready_.pop_front();
    }
    StepOutput out = std::move(outputs_.front());
    outputs_.pop_front();
    collected_ = monotonic_seconds();
    return out;
  }

 private:
  std::shared_ptr<Gate> gate_;
  int max_in_flight_;
  double step_seconds_;
  std::deque<StepOutput> outputs_;
  std::deque<double> ready_;
  double device_free_ = 0, collected_ = 0;
};

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double quantile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  auto at = values.begin() + static_cast<ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

void measure(int num_seqs, bool with_text, int max_in_flight, double step_seconds, bool with_cache) {
  const int output_len = step_seconds > 0 ? 300 : 2000;
  std::shared_ptr<const Vocabulary> vocabulary;
  SamplingParams params;
  params.max_tokens = output_len;
  params.ignore_eos = true;
  if (with_text) {
    std::vector<std::string> pieces(kVocab, " word");
    vocabulary = std::make_shared<const Vocabulary>(pieces, std::vector<int32_t>{}, false);
    params.stop = {"words"};
  }
  EngineConfig config;
  config.max_num_seqs = std::max(config.max_num_seqs, num_seqs);
  config.max_num_batched_tokens = std::max(config.max_num_batched_tokens, num_seqs);
  config.prefix_caching.enabled = with_cache;
  auto gate = std::make_shared<Gate>();
  Engine engine(std::make_unique<EmptyExecutor>(gate, max_in_flight, step_seconds), vocabulary, config);
  for (int i = 0; i < num_seqs; ++i) engine.submit(std::vector<int32_t>(kPromptLen, i % kVocab), params);
  // Somebody fetches what there is now and then, as a server does.
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) {
      engine.poll(std::chrono::milliseconds(100));
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  double start = cpu_seconds();
  gate->open = true;
  gate->open.notify_one();
  engine.drain(std::chrono::seconds(600));
  double seconds = cpu_seconds() - start;
  double steps = static_cast<double>(engine.stats().steps);
  done = true;
  reader.join();
  engine.shutdown();
  std::printf(
      "%5d sequences, %d in flight, %s%s: %8.2f us of CPU per step, %6.3f per token; host part median %7.2f "
      "us, "
      "p99 %7.2f\n",
      num_seqs, max_in_flight, with_text ? "text and a stop string" : "token ids             ",
      with_cache ? ", prefix cache" : "", seconds / steps * 1e6, seconds / (num_seqs * output_len) * 1e6,
      quantile(gate->host_part, 0.5) * 1e6, quantile(gate->host_part, 0.99) * 1e6);
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  std::vector<int> counts;
  double step_seconds = 0;
  bool compares = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--device-ms" && i + 1 < argc) {
      step_seconds = std::atof(argv[++i]) * 1e-3;
    } else if (std::string(argv[i]) == "--prefix-cache") {
      compares = true;
    } else {
      counts.push_back(std::atoi(argv[i]));
    }
  }
  if (counts.empty()) counts = {1, 32, 256};
  for (int count : counts) {
    for (bool with_text : {false, true}) {
      for (int max_in_flight : {1, 2}) {
        for (bool with_cache : {false, true})
          if (compares || !with_cache)
            taco::measure(count, with_text, max_in_flight, step_seconds, with_cache);
      }
    }
  }
  return 0;
}
