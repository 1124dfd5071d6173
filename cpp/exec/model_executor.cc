#include "exec/model_executor.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "cache/block_table.h"

namespace taco {
namespace {

DType kv_dtype_of(const Model& model, std::optional<DType> wanted) { return wanted.value_or(model.dtype); }

const ModelExecutorConfig& checked(const Model& model, const ModelExecutorConfig& c) {
  TACO_REQUIRE(c.block_size == 8 || c.block_size == 16 || c.block_size == 32,
               "block_size must be 8, 16 or 32, not ", c.block_size);
  TACO_REQUIRE(c.num_blocks > 0, "num_blocks must be positive");
  TACO_REQUIRE(c.max_model_len > 0, "max_model_len must be positive");
  TACO_REQUIRE(!model.spec.learned_positions || c.max_model_len <= model.spec.max_positions, "max_model_len ",
               c.max_model_len, " exceeds the ", model.spec.max_positions,
               " positions that the model has learned");
  TACO_REQUIRE(c.max_num_batched_tokens > 0 && c.max_num_seqs > 0,
               "max_num_batched_tokens and max_num_seqs must be positive");
  return c;
}

constexpr int64_t kMaxLogitsRows = 256;  // on the host, larger steps sample in slices

}  // namespace

int64_t ModelExecutor::padded(int64_t rows) {
  if (rows <= 4) return rows == 3 ? 4 : rows;
  if (rows <= 64) return (rows + 7) / 8 * 8;
  if (rows <= 128) return 128;
  return rows <= 256 ? 256 : (rows + 127) / 128 * 128;
}

StepInputs::Limits ModelExecutor::limits(const ModelExecutorConfig& c) {
  int seqs = static_cast<int>(padded(c.max_num_seqs));
  return {.max_rows = static_cast<int>(padded(std::max(c.max_num_batched_tokens, seqs))),
          .max_seqs = seqs,
          .max_blocks = (c.max_model_len + c.block_size - 1) / c.block_size};
}

size_t ModelExecutor::block_bytes(const Model& model, int block_size, std::optional<DType> kv_dtype) {
  return kv_block_bytes(model.spec, block_size, kv_dtype_of(model, kv_dtype));
}

ModelExecutor::ModelExecutor(std::shared_ptr<const Model> model, const ModelExecutorConfig& config)
    : model_(std::move(model)),
      config_(checked(*model_, config)),
      inputs_(model_->backend, config_.block_size, limits(config_)),
      decoder_(model_, limits(config_).max_rows, config_.max_model_len) {
  Backend& backend = *model_->backend;
  size_t bytes =
      block_bytes(*model_, config_.block_size, config_.kv_dtype) * static_cast<size_t>(config_.num_blocks);
  // Not zeroed: untouched pages cost nothing on a host, and attention reads only what was written.
  kv_data_ = device_memory(model_->backend, bytes);
  cache_ = {kv_data_.get(), kv_dtype_of(*model_, config_.kv_dtype), config_.num_blocks, config_.block_size};
  if (config_.num_host_blocks > 0) {
    const size_t block = block_bytes(*model_, config_.block_size, config_.kv_dtype);
    const size_t layers = model_->spec.layers.size();
    host_blocks_ = std::make_shared<HostBlocks>(model_->backend, config_.num_host_blocks, block);
    transfers_ = std::make_unique<KvTransfer>(
        model_->backend,
        KvTransfer::DeviceBlocks{.data = static_cast<char*>(kv_data_.get()),
                                 .layers = static_cast<int>(layers),
                                 .num_blocks = config_.num_blocks,
                                 .layer_bytes = block / layers},
        host_blocks_, KvTransfer::Options{.disk = config_.disk, .by_layer = config_.loads_by_layer});
  }
  logits_rows_ = std::min(limits(config_).max_rows, limits(config_).max_seqs + config_.max_draft_rows);
  if (!backend.samples()) logits_rows_ = std::min(logits_rows_, kMaxLogitsRows);
  logits_ = std::static_pointer_cast<float>(device_memory(
      model_->backend, static_cast<size_t>(logits_rows_) * model_->spec.vocab_size * sizeof(float)));
  for (int t = 0; t < backend.host_threads(); ++t) {
    samplers_.push_back(std::make_unique<Sampler>(model_->spec.vocab_size));
  }
  if (backend.samples()) {
    device_sampler_ = std::make_unique<DeviceSampler>(model_->backend, model_->spec.vocab_size,
                                                      limits(config_).max_seqs + config_.max_draft_rows);
    warm_up();
  }
}

ModelExecutor::~ModelExecutor() {
  if (!host_blocks_) return;
  try {
    model_->backend->synchronize();  // steps that swap may be under way
  } catch (const std::exception&) {  // the device is lost, and so are its copies
  }
}

void ModelExecutor::move_blocks(const StepPlan& plan) {
  if (plan.swap_out.empty() && plan.swap_in.empty()) return;
  const size_t layers = model_->spec.layers.size(), bytes = host_blocks_->block_bytes() / layers;
  auto move = [&](CopyDirection direction, const std::vector<BlockMove>& moves) {
    if (moves.empty()) return;
    std::vector<PlacePair> places;
    for (const BlockMove& m : moves) {
      if (!host_blocks_->wait(m.host)) {
        fail(ErrorCode::kResourceExhausted,
             "host memory for KV blocks could not be had: lower --swap-space or "
             "--cpu-prefill-memory-utilization");
      }
      places.push_back({static_cast<char*>(kv_data_.get()) + static_cast<size_t>(m.device) * bytes,
                        host_blocks_->block(m.host)});
    }
    model_->backend->copy_rows(direction, {.places = places,
                                           .rows = static_cast<int>(layers),
                                           .bytes = bytes,
                                           .device_pitch = kv_layer_bytes(model_->spec, cache_),
                                           .host_pitch = bytes});
  };
  move(CopyDirection::kToHost, plan.swap_out);
  move(CopyDirection::kToDevice, plan.swap_in);
}

void ModelExecutor::begin(const Transfer& transfer) {
  TACO_CHECK(transfers_, "there are no host blocks to move to or from");
  transfers_->begin(transfer);
}
void ModelExecutor::finished(std::vector<TransferResult>& results) {
  if (transfers_) transfers_->finished(results);
}
void ModelExecutor::on_finished(std::function<void()> wake) {
  if (transfers_) transfers_->on_finished(std::move(wake));
}

// Before any op of the step. The loads that its layers must wait for are given back.
KvTransfer::Loads ModelExecutor::wait_for(const StepPlan& plan) {
  if (plan.wait_for.empty()) return {};
  TACO_CHECK(transfers_, "a step waits for a transfer, and there are none");
  KvTransfer::Loads loads = transfers_->wait_for(plan.wait_for);
  // What reads a loaded block ahead of the layers (a copy of a shared one) needs all of it at once.
  bool at_once = plan.seqs.empty();
  for (const BlockCopy& copy : plan.copies) at_once |= KvTransfer::writes(loads, copy.from);
  for (const BlockMove& move : plan.swap_out) at_once |= KvTransfer::writes(loads, move.device);
  if (at_once) {
    transfers_->wait_all(loads);
    loads.clear();
  }
  return loads;
}

void ModelExecutor::copy_blocks(const std::vector<BlockCopy>& copies) {
  if (copies.empty()) return;
  std::vector<int32_t> pairs;
  for (const BlockCopy& c : copies) pairs.insert(pairs.end(), {c.from, c.to});
  const int32_t* device = inputs_.upload_index(pairs);
  for (size_t i = 0; i < model_->spec.layers.size(); ++i) {
    model_->backend->copy_blocks({.cache = kv_layer(model_->spec, cache_, i),
                                  .pairs = device,
                                  .num_pairs = static_cast<int>(copies.size())});
  }
}

float* ModelExecutor::host_logits(std::span<const int32_t> rows) {
  Backend& backend = *model_->backend;
  const auto count = static_cast<int64_t>(rows.size());
  TACO_CHECK(count <= logits_rows_, count, " rows of logits, room for ", logits_rows_);
  decoder_.logits(inputs_.upload_index(rows), count, logits_.get());
  if (!device_sampler_) {
    backend.synchronize();
    return logits_.get();
  }
  // The backend's memory is not the host's.
  host_logits_.resize(rows.size() * static_cast<size_t>(model_->spec.vocab_size));
  backend.download(host_logits_.data(), logits_.get(), host_logits_.size() * sizeof(float));
  return host_logits_.data();
}

template <typename Fn>
void ModelExecutor::for_each_logits(const std::vector<int32_t>& rows, Fn&& fn) {
  const size_t vocab = static_cast<size_t>(model_->spec.vocab_size);
  const size_t most = static_cast<size_t>(logits_rows_);
  for (size_t begin = 0; begin < rows.size(); begin += most) {
    const size_t count = std::min(most, rows.size() - begin);
    float* logits = host_logits(std::span(rows).subspan(begin, count));
    model_->backend->host_parallel(static_cast<int64_t>(count), [&](int64_t i, int thread) {
      fn(begin + static_cast<size_t>(i), std::span<float>(logits + i * vocab, vocab), thread);
    });
  }
}

void ModelExecutor::prompt_logprobs(const StepPlan& plan, StepOutput& output) {
  std::vector<int32_t> rows;
  struct Want {
    size_t entry, position;
    int32_t token;
    int k;
  };
  std::vector<Want> wants;
  int32_t first_row = 0;
  for (const SeqStep& step : plan.seqs) {
    const Sequence& seq = *step.sequence;
    // The row at position p predicts the token at p + 1.
    int32_t count = std::min(step.start + step.count, seq.prompt_len - 1) - step.start;
    if (step.prompt_logprobs && count > 0) {
      PromptLogprobs entry{.seq = seq.id, .first_position = step.start + 1, .entries = {}};
      entry.entries.resize(count);
      for (int32_t i = 0; i < count; ++i) {
        rows.push_back(first_row + i);
        wants.push_back({output.prompt_logprobs.size(), static_cast<size_t>(i),
                         seq.tokens[step.start + i + 1], std::max(0, seq.params->prompt_logprobs)});
      }
      output.prompt_logprobs.push_back(std::move(entry));
    }
    first_row += step.count;
  }
  if (rows.empty()) return;
  for_each_logits(rows, [&](size_t i, std::span<float> logits, int) {
    const Want& w = wants[i];
    output.prompt_logprobs[w.entry].entries[w.position] = Sampler::logprobs(logits, w.token, w.k);
  });
}

ModelExecutor::Sampling ModelExecutor::sampling_of(const StepPlan& plan) const {
  Sampling out;
  int32_t end = 0;
  for (const SeqStep& step : plan.seqs) {
    end += step.count;
    if (step.samplers.empty()) continue;
    out.parts.push_back({&step, out.rows.size()});
    for (int32_t row = step.draft ? end - step.count : end - 1; row < end; ++row) out.rows.push_back(row);
    out.num_samples += step.samplers.size();
    out.has_drafts |= step.draft != nullptr;
    for (const Sequence* sequence : step.samplers)
      out.on_host |= !device_sampler_ || !DeviceSampler::can_sample(*sequence->params);
  }
  out.on_host |= out.has_drafts && config_.typical_acceptance;
  TACO_CHECK(!out.has_drafts || static_cast<int64_t>(out.rows.size()) <= logits_rows_, out.rows.size(),
             " rows to sample from in a step with drafts, room for ", logits_rows_);
  return out;
}

// Goes down a draft for as long as the sampled token is one of the drafted: sample(node) gives the node's
// token. The accepted nodes after the root go to `path`.
template <typename Sample>
void follow(const DraftTree& tree, std::vector<int>& path, std::vector<SampledToken>& run, Sample&& sample) {
  for (int node = 0;;) {
    run.push_back(sample(node));
    if (!run.back().error.empty()) return;
    node = tree.find_child(node, run.back().token);
    if (node < 0) return;
    path.push_back(node);
  }
}

void ModelExecutor::sample_on_host(const Sampling& sampling, Pending& step) {
  const size_t vocab = static_cast<size_t>(model_->spec.vocab_size);
  std::vector<std::vector<SampledToken>> runs(sampling.parts.size());
  std::vector<std::vector<int>> paths(step.drafts.size());
  std::vector<size_t> draft_of(sampling.parts.size());  // its number among the step's drafts
  for (size_t i = 0, drafts = 0; i < sampling.parts.size(); ++i)
    draft_of[i] = sampling.parts[i].step->draft ? drafts++ : 0;
  auto sample = [&](size_t part, float* logits, int thread) {
    const SeqStep& s = *sampling.parts[part].step;
    Sampler& sampler = *samplers_[static_cast<size_t>(thread)];
    if (s.draft) {
      Sequence path = *s.samplers.front();  // what the sequence would be at the node
      std::vector<int32_t> children;
      follow(*s.draft, paths[draft_of[part]], runs[part], [&](int node) {
        if (node > 0) path.tokens.push_back(s.draft->token[node]);
        const std::span<float> row(logits + static_cast<size_t>(node) * vocab, vocab);
        if (!config_.typical_acceptance) return sampler.sample(row, path);
        children.clear();
        for (int i = node + 1; i < s.draft->size; ++i)
          if (s.draft->parent[i] == node) children.push_back(s.draft->token[i]);
        const TypicalAcceptance typical{children, config_.typical_threshold, config_.typical_alpha};
        return sampler.sample(row, path, &typical);
      });
      return;
    }
    std::vector<float> original;  // sampling changes the row, so every sequence but the last works on a copy
    for (size_t k = 0; k < s.samplers.size(); ++k) {
      std::span<float> row(logits, vocab);
      if (k + 1 < s.samplers.size()) {
        original.assign(row.begin(), row.end());
        row = original;
      }
      runs[part].push_back(sampler.sample(row, *s.samplers[k]));
    }
  };
  // In slices of whole parts that fit the buffer.
  for (size_t begin = 0; begin < sampling.parts.size();) {
    const size_t first = sampling.parts[begin].first_row;
    size_t end = begin, last = first;
    auto end_of = [&](size_t part) {
      return part + 1 < sampling.parts.size() ? sampling.parts[part + 1].first_row : sampling.rows.size();
    };
    while (end < sampling.parts.size() && static_cast<int64_t>(end_of(end) - first) <= logits_rows_)
      last = end_of(end++);
    float* logits = host_logits(std::span(sampling.rows).subspan(first, last - first));
    model_->backend->host_parallel(static_cast<int64_t>(end - begin), [&](int64_t i, int thread) {
      const size_t part = begin + static_cast<size_t>(i);
      sample(part, logits + (sampling.parts[part].first_row - first) * vocab, thread);
    });
    begin = end;
  }
  for (std::vector<SampledToken>& run : runs)
    for (SampledToken& token : run) step.output.sampled.push_back(std::move(token));
  compact(step.drafts, paths);
  step.drafts.clear();
}

// have_logits: those of sampling.rows stand in the buffer already.
void ModelExecutor::sample_on_device(const Sampling& sampling, bool have_logits, Pending& step) {
  const int64_t count = static_cast<int64_t>(sampling.rows.size());
  TACO_CHECK(count <= logits_rows_, count, " rows of logits, room for ", logits_rows_);
  // Padded with row 0, as the step is.
  if (!have_logits)
    decoder_.logits(inputs_.sampled_rows(), std::min(padded(count), logits_rows_), logits_.get());
  std::vector<DeviceSampler::Pick> picks;
  std::vector<SeqId> order;
  size_t drafts = 0;
  for (const Sampling::Part& part : sampling.parts) {
    const auto row = static_cast<int32_t>(part.first_row);
    if (part.step->draft) step.drafts[drafts++].first_sample = picks.size();
    for (const Sequence* sequence : part.step->samplers) {
      const int nodes = part.step->draft ? part.step->count : 1;
      for (int node = 0; node < nodes; ++node)
        picks.push_back({sequence, row + node, part.step->draft, node});
      order.push_back(sequence->id);
    }
  }
  device_sampler_->submit(picks, logits_.get());
  // Nobody asks for the tokens of a step with drafts on the device.
  inputs_.set_results(sampling.has_drafts ? std::vector<SeqId>() : std::move(order));
  step.on_device = true;
}

void ModelExecutor::compact(const std::vector<DraftInFlight>& drafts,
                            const std::vector<std::vector<int>>& paths) {
  std::vector<int64_t> pairs;
  std::vector<int32_t> group_start{0};
  for (size_t i = 0; i < drafts.size(); ++i) {
    for (size_t k = 0; k < paths[i].size(); ++k) {
      const size_t from = static_cast<size_t>(paths[i][k]), to = k + 1;
      if (from != to) pairs.insert(pairs.end(), {drafts[i].slots[from], drafts[i].slots[to]});
    }
    const auto end = static_cast<int32_t>(pairs.size() / 2);
    if (end > group_start.back()) group_start.push_back(end);
  }
  if (pairs.empty()) return;
  const auto [device_pairs, device_groups] = inputs_.upload_moves(pairs, group_start);
  copy_slots(device_pairs, device_groups, static_cast<int>(group_start.size()) - 1);
}

// In all layers at once: the next step waits for it.
void ModelExecutor::copy_slots(const int64_t* pairs, const int32_t* group_start, int num_groups) {
  const ModelSpec& spec = model_->spec;
  model_->backend->copy_slots({.cache = kv_layer(spec, cache_, 0),
                               .layers = static_cast<int>(spec.layers.size()),
                               .layer_bytes = static_cast<int64_t>(kv_layer_bytes(spec, cache_)),
                               .pairs = pairs,
                               .group_start = group_start,
                               .num_groups = num_groups});
}

// A graph is of steps in which each sequence computes one row and samples from it.
bool ModelExecutor::can_replay(const StepPlan& plan, const Sampling& sampling) const {
  const int64_t rows = static_cast<int64_t>(plan.seqs.size());
  if (config_.enforce_eager || !model_->backend->has_graphs() || sampling.on_host) return false;
  if (padded(rows) > logits_rows_ || sampling.rows.size() != plan.seqs.size()) return false;
  for (const SeqStep& step : plan.seqs) {
    if (step.count != 1 || step.draft || step.start >= config_.max_seq_len_to_capture || step.prompt_logprobs)
      return false;
  }
  return true;
}

void ModelExecutor::run_ops(const DecoderBatch& batch, bool all_logits, const KvTransfer::Loads& loads) {
  if (device_sampler_) {
    model_->backend->patch_ids({.ids = inputs_.ids(),
                                .source = inputs_.sources(),
                                .rows = batch.rows,
                                .results = device_sampler_->results()});
  }
  Decoder::LayerHook wait;
  if (!loads.empty()) wait = [&](size_t layer) { transfers_->wait_layer(loads, static_cast<int>(layer)); };
  decoder_.forward(batch, cache_, wait);
  if (all_logits) decoder_.logits(inputs_.sampled_rows(), batch.rows, logits_.get());
}

// The first step of a size runs op by op, so that whatever is set up at first use is; the second is recorded.
void ModelExecutor::run_graph(const DecoderBatch& batch) {
  const uint64_t generation = model_->backend->memory_generation();
  if (generation != graphs_generation_) graphs_.clear();
  graphs_generation_ = generation;
  Captured& captured = graphs_[batch.rows];
  if (!captured.warm) {
    run_ops(batch, true);
    captured.warm = true;
    return;
  }
  if (!captured.graph) captured.graph = model_->backend->capture([&] { run_ops(batch, true); });
  model_->backend->replay(*captured.graph);
}

void ModelExecutor::submit(const StepPlan& plan) {
  TACO_CHECK(static_cast<int>(pending_.size()) < max_in_flight(), pending_.size(), " steps are in flight");
  Pending& step = pending_.emplace_back();
  try {
    const KvTransfer::Loads loads = wait_for(plan);
    move_blocks(plan);
    copy_blocks(plan.copies);
    if (plan.seqs.empty()) return;
    const Sampling sampling = sampling_of(plan);
    const bool replay = loads.empty() && can_replay(plan, sampling);
    const int64_t rows = device_sampler_ ? padded(plan.num_tokens) : plan.num_tokens;
    const DecoderBatch& batch = inputs_.build(plan, rows, sampling.rows);
    model_->backend->begin_step(inputs_.shape());
    if (replay) {
      run_graph(batch);
    } else {
      run_ops(batch, false, loads);
      prompt_logprobs(plan, step.output);
    }
    if (sampling.rows.empty()) return;
    for (const Sampling::Part& part : sampling.parts) {
      if (!part.step->draft) continue;
      DraftInFlight& draft = step.drafts.emplace_back(part.step->sequence->id, *part.step->draft);
      for (int32_t p = part.step->start; p < part.step->start + part.step->count; ++p)
        draft.slots.push_back(slot_of(part.step->sequence->blocks, p, config_.block_size));
    }
    if (sampling.on_host) {
      sample_on_host(sampling, step);
      if (device_sampler_) inputs_.set_results({});  // no token of this step is on the device
    } else {
      sample_on_device(sampling, replay, step);
    }
  } catch (...) {
    pending_.pop_back();
    throw;
  }
}

StepOutput ModelExecutor::collect() {
  TACO_CHECK(!pending_.empty(), "no step was submitted");
  Pending step = std::move(pending_.front());
  pending_.erase(pending_.begin());
  if (!step.on_device) return std::move(step.output);
  std::vector<SampledToken>& sampled = step.output.sampled;
  device_sampler_->collect(sampled);
  if (step.drafts.empty()) return std::move(step.output);
  // Of a draft's samples, one for each node, only the run counts.
  std::vector<SampledToken> runs;
  std::vector<std::vector<int>> paths(step.drafts.size());
  size_t at = 0;
  for (size_t i = 0; i < step.drafts.size(); ++i) {
    const DraftInFlight& draft = step.drafts[i];
    while (at < draft.first_sample) runs.push_back(std::move(sampled[at++]));
    follow(draft.tree, paths[i], runs,
           [&](int node) { return std::move(sampled[draft.first_sample + static_cast<size_t>(node)]); });
    at += static_cast<size_t>(draft.tree.size);
  }
  while (at < sampled.size()) runs.push_back(std::move(sampled[at++]));
  compact(step.drafts, paths);
  sampled = std::move(runs);
  return std::move(step.output);
}

std::vector<float> ModelExecutor::forward(const std::vector<int32_t>& tokens,
                                          const std::vector<int>& chunks) {
  TACO_REQUIRE(!tokens.empty(), "forward needs at least one token");
  TACO_REQUIRE(static_cast<int>(tokens.size()) <= config_.max_model_len, "forward: ", tokens.size(),
               " tokens, max_model_len is ", config_.max_model_len);
  int64_t vocab = model_->spec.vocab_size;
  for (int32_t id : tokens)
    TACO_REQUIRE(id >= 0 && id < vocab, "token id ", id, " is not in [0, ", vocab, ")");
  std::vector<int> sizes = chunks;
  if (sizes.empty()) {
    for (size_t done = 0; done < tokens.size(); done += sizes.back()) {
      sizes.push_back(
          static_cast<int>(std::min<size_t>(config_.max_num_batched_tokens, tokens.size() - done)));
    }
  }
  TACO_REQUIRE(std::accumulate(sizes.begin(), sizes.end(), size_t{0}) == tokens.size(),
               "forward: the chunks do not add up to the number of tokens");
  Sequence seq;
  seq.tokens = tokens;
  seq.prompt_len = static_cast<int32_t>(tokens.size());
  int64_t blocks = (static_cast<int64_t>(tokens.size()) + config_.block_size - 1) / config_.block_size;
  TACO_REQUIRE(blocks <= config_.num_blocks, "forward: ", tokens.size(), " tokens do not fit the KV cache");
  for (int64_t b = 0; b < blocks; ++b) seq.blocks.push_back(static_cast<BlockId>(b));

  std::vector<float> out(tokens.size() * static_cast<size_t>(vocab));
  int32_t start = 0;
  for (int size : sizes) {
    TACO_REQUIRE(size > 0 && size <= config_.max_num_batched_tokens, "forward: a chunk has 1 to ",
                 config_.max_num_batched_tokens, " tokens");
    StepPlan plan;
    plan.seqs.push_back({.sequence = &seq, .start = start, .count = size, .samplers = {}});
    plan.num_tokens = size;
    const DecoderBatch& batch = inputs_.build(plan, size, {});
    model_->backend->begin_step(inputs_.shape());
    decoder_.forward(batch, cache_);
    std::vector<int32_t> rows(size);
    std::iota(rows.begin(), rows.end(), 0);
    for_each_logits(rows, [&](size_t i, std::span<float> logits, int) {
      std::copy(logits.begin(), logits.end(), out.begin() + (start + i) * vocab);
    });
    start += size;
  }
  return out;
}

}  // namespace taco
