// Before the first request: how much memory steps take, what is set up at first use, how long steps take.
#include <algorithm>
#include <array>

#include "base/clock.h"
#include "exec/model_executor.h"

namespace taco {
namespace {

constexpr double kWarmUpSeconds = 2.0;  // that warming sizes up may take, beside the largest steps

}  // namespace

size_t ModelExecutor::profile(std::shared_ptr<const Model> model, ModelExecutorConfig config) {
  Backend& backend = *model->backend;
  const size_t before = backend.memory().available;
  config.num_blocks = 1;
  config.num_host_blocks = 0;
  config.warm_prompts = false;
  ModelExecutor executor(model, config);
  const size_t kv = block_bytes(*model, config.block_size, config.kv_dtype);
  const size_t after = backend.memory().available;
  return before > after + kv ? before - after - kv : 0;
}

// For steps that nobody asked for: `blocks` blocks from number first_block on, around the end of the cache.
Sequence ModelExecutor::made_up_sequence(int number, int length, int prompt_len, int64_t first_block,
                                         int blocks) const {
  Sequence seq;
  seq.id = static_cast<SeqId>(number);
  seq.prompt_len = prompt_len;
  for (int t = 0; t < length; ++t) seq.tokens.push_back((t * 31 + number) % model_->spec.vocab_size);
  for (int b = 0; b < blocks; ++b)
    seq.blocks.push_back(static_cast<BlockId>((first_block + b) % config_.num_blocks));
  return seq;
}

// Steps of all that requests may ask for, before the first of them: the largest ones, so that all scratch
// memory has its final size and place, then one of each size at which something is set up. The cache holds
// nothing yet: sequences share its blocks.
void ModelExecutor::warm_up() {
  const int bs = config_.block_size, tokens = config_.max_num_batched_tokens;
  const int longest = std::min(config_.max_model_len, tokens);
  auto params = std::make_shared<SamplingParams>();
  auto step = [&](int count, int length, int total) {
    std::vector<Sequence> sequences(static_cast<size_t>(count));
    StepPlan plan;
    for (int i = 0; i < count; ++i) {
      Sequence& seq = sequences[static_cast<size_t>(i)];
      const int own = std::min(length, total - i * length);
      seq = made_up_sequence(i, own, own, i, (own + bs - 1) / bs);
      seq.params = params;
      plan.seqs.push_back({.sequence = &seq, .start = 0, .count = own, .samplers = {&seq}});
      plan.num_tokens += own;
    }
    run(plan);
  };
  auto prompts = [&](int rows) {
    const int count = std::min((rows + longest - 1) / longest, config_.max_num_seqs);
    step(count, longest, std::min(rows, count * longest));
  };
  auto decode = [&](int rows) { step(rows, 1, rows); };
  prompts(tokens);
  if (config_.max_draft_rows > 0) {
    // The sampled rows of that step, padded with row 0; and accepted nodes that do not follow their parents.
    decoder_.logits(inputs_.sampled_rows(), std::min<int64_t>(logits_rows_, tokens), logits_.get());
    const auto [pairs, groups] =
        inputs_.upload_moves(std::array<int64_t, 2>{0, 1}, std::array<int32_t, 2>{0, 1});
    copy_slots(pairs, groups, 1);
  }
  decode(config_.max_num_seqs);
  graphs_.clear();
  const double deadline = monotonic_seconds() + kWarmUpSeconds;
  for (const int rows : step_sizes())
    if (rows < config_.max_num_seqs) decode(rows);
  if (!config_.warm_prompts) return;
  int64_t last = padded(config_.max_num_seqs);
  for (const int64_t rows : model_->backend->rows_to_warm(tokens)) {
    const int64_t size = padded(rows);  // several numbers of rows may be padded to the same
    if (size <= last || size >= tokens || monotonic_seconds() >= deadline) continue;
    prompts(static_cast<int>(size));
    last = size;
  }
}

std::vector<int> ModelExecutor::step_sizes() const {
  if (!device_sampler_) return {};
  std::vector<int> sizes;
  for (int64_t rows = 1; rows <= limits(config_).max_rows; rows = padded(rows + 1))
    sizes.push_back(static_cast<int>(rows));
  return sizes;
}

double ModelExecutor::time_step(int sequences, int drafts, int context) {
  const int all_rows = sequences + drafts, most = 1 + (drafts + sequences - 1) / sequences;
  const int bs = config_.block_size, blocks = (context + most + bs - 1) / bs;
  if (sequences > config_.max_num_seqs || all_rows > config_.max_num_batched_tokens ||
      context + most > config_.max_model_len || (drafts > 0 && all_rows > max_sampled_rows()) ||
      most > DraftTree::kMaxNodes)
    return 0;
  auto params = std::make_shared<SamplingParams>();
  params->temperature = 0.0f;
  std::vector<Sequence> all(static_cast<size_t>(sequences));
  std::vector<DraftTree> trees(static_cast<size_t>(sequences));
  StepPlan plan;
  for (int i = 0; i < sequences; ++i) {
    Sequence& seq = all[static_cast<size_t>(i)];
    seq = made_up_sequence(i, context + 1, context, int64_t{i} * blocks, blocks);
    seq.params = params;
    const int rows = 1 + drafts / sequences + (i < drafts % sequences ? 1 : 0);
    DraftTree& draft = trees[static_cast<size_t>(i)];
    draft.reset(seq.tokens.back());
    add_timed_drafts(draft, rows - 1, model_->spec.vocab_size);
    plan.seqs.push_back({.sequence = &seq, .start = context, .count = rows, .samplers = {&seq}});
    plan.seqs.back().draft = rows > 1 ? &draft : nullptr;
    plan.has_trees |= !draft.is_chain();
  }
  plan.num_tokens = all_rows;
  constexpr int kRuns = 5;  // the first ones set up and record
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    const double begin = monotonic_seconds();
    run(plan);
    const double seconds = monotonic_seconds() - begin;
    if (i == 0 || seconds < best) best = seconds;
    // Start-up must not take long; but a first run may be a hundred times slower than any later one.
    if (i > 0 && seconds > 0.2) break;
  }
  return best;
}

}  // namespace taco
