// What a device does that the CPU does not - steps that run ahead, graphs, tokens chosen on it, padded sizes,
// start-up - on the CPU, so that it is tested without one.
#include "emulated_device.h"

#include <memory>
#include <set>
#include <vector>

#include "../exec/tiny_model.h"
#include "speculation_case.h"

namespace taco {
namespace {

using testing::EmulatedDevice;
using testing::KnownTexts;

std::vector<testing::SpeculationJob> greedy_jobs(int count) {
  auto jobs = testing::speculation_jobs(count, 97);
  for (auto& job : jobs) {
    SamplingParams plain;
    plain.max_tokens = job.params.max_tokens;
    plain.detokenize = false;
    plain.temperature = 0.0f;
    plain.eos_token_ids = job.params.eos_token_ids;
    plain.stop_token_ids = job.params.stop_token_ids;
    job.params = plain;
  }
  return jobs;
}

TEST(EmulatedDevice, SaysWhatTheCpuSays) {
  const auto jobs = greedy_jobs(64);
  const auto expected = testing::run_jobs(testing::random_model(testing::tiny_spec(), make_cpu_backend(2)),
                                          jobs, nullptr, 1000, 2048);
  auto device = std::make_shared<EmulatedDevice>(make_cpu_backend(2));
  auto model = testing::random_model(testing::tiny_spec(), device);
  testing::expect_same(testing::run_jobs(model, jobs, nullptr, 1000, 2048), expected, "no drafts");
  EXPECT_GT(device->graphs, 1);
  EXPECT_GT(device->replays, 20);
  const KnownTexts truth(jobs, expected);
  for (const bool controlled : {false, true}) {
    auto trees = std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 3, truth);
    const auto got = testing::run_jobs(model, jobs, trees, 2000, 512, 8, controlled);
    testing::expect_same(got, expected, controlled ? "controller" : "every draft");
    EXPECT_EQ(trees->wrong_calls, 0);
    if (!controlled) EXPECT_GT(trees->accepted, 100u);
  }
  EXPECT_GT(device->slot_copies, 10);
}

// A size that first runs for a request makes it wait for what is set up then.
TEST(EmulatedDevice, EachSizeRunsBeforeTheFirstRequest) {
  const auto jobs = greedy_jobs(200);
  auto model_of = [](const std::shared_ptr<EmulatedDevice>& device) {
    return testing::random_model(testing::tiny_spec(), device);
  };
  const auto expected = testing::run_jobs(model_of(std::make_shared<EmulatedDevice>(make_cpu_backend(2))),
                                          jobs, nullptr, 3000, 512);
  auto device = std::make_shared<EmulatedDevice>(make_cpu_backend(2));
  auto model = model_of(device);
  const ModelExecutorConfig config{.max_model_len = 256,
                                   .block_size = 8,
                                   .num_blocks = 3000,
                                   .kv_dtype = std::nullopt,
                                   .max_num_batched_tokens = 512,
                                   .max_num_seqs = 64,
                                   .max_draft_rows = 448};
  EngineConfig engine_config{.max_num_batched_tokens = 512, .max_num_seqs = 64};
  engine_config.speculation.method = SpeculationMethod::kNgram;
  auto start = [&](bool cost_model) {
    engine_config.speculation.cost_model = cost_model;
    engine_config.drafter =
        std::make_shared<RandomTreeDrafter<KnownTexts>>(97, 3, KnownTexts(jobs, expected));
    return std::make_unique<Engine>(std::make_unique<ModelExecutor>(model, config), nullptr, engine_config);
  };
  start(true)->shutdown();
  const std::set<int64_t> rows = device->rows, tree_rows = device->tree_rows;
  for (const int64_t size : {1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 128, 256, 384, 512}) {
    EXPECT_TRUE(rows.contains(size)) << size;
    if (size > 2) EXPECT_TRUE(tree_rows.contains(size)) << size;  // a tree has three nodes
  }
  EXPECT_GT(device->slot_copies, 0);

  // Whatever is drafted is verified: sizes do not hang on how long this machine takes.
  auto engine = start(false);
  device->rows.clear();
  device->tree_rows.clear();
  size_t finished = 0;
  for (const auto& job : jobs) engine->submit(job.prompt, job.params);
  while (finished < jobs.size()) {
    const std::vector<Output> outputs = engine->poll(std::chrono::seconds(60));
    ASSERT_FALSE(outputs.empty()) << engine->stats().death_reason;
    for (const Output& output : outputs) finished += output.request_finished;
  }
  engine->shutdown();
  EXPECT_GT(device->tree_rows.size(), 3u);
  EXPECT_GT(device->rows.size(), 3u);
  for (const int64_t size : device->rows) EXPECT_TRUE(rows.contains(size)) << size;
  for (const int64_t size : device->tree_rows) EXPECT_TRUE(tree_rows.contains(size)) << size;
}

}  // namespace
}  // namespace taco
