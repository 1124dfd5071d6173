#include "engine/engine_loop.h"

#include <algorithm>

#include "base/clock.h"
#include "base/error.h"
#include "sched/invariants.h"
#include "sched/stop_rules.h"

namespace taco {

namespace {
constexpr ptrdiff_t kMaxLogLines = 1000;
// Time alone changes what can run, too: who waits for room gives up, and a load's end comes near.
constexpr std::chrono::duration<double> kLongestWait{0.02};
}  // namespace

SchedulerConfig EngineLoop::scheduler_config(const Executor& executor, const EngineConfig& config) {
  KvCacheConfig cache = executor.kv_cache();
  SchedulerConfig out;
  out.max_num_batched_tokens = config.max_num_batched_tokens;
  out.max_num_seqs = config.max_num_seqs;
  out.enable_chunked_prefill = config.enable_chunked_prefill;
  out.priority_scheduling = config.priority_scheduling;
  out.watermark = config.watermark;
  out.max_model_len = executor.max_model_len();
  out.block_size = cache.block_size;
  out.num_blocks = cache.num_blocks;
  TACO_REQUIRE(config.swap_blocks <= cache.num_host_blocks, "swap_blocks is ", config.swap_blocks,
               ", but the executor has ", cache.num_host_blocks, " blocks of host memory");
  out.num_swap_blocks = config.swap_blocks;
  out.preemption_mode = config.preemption_mode;
  if (config.speculation.method != SpeculationMethod::kNone)
    out.max_sampled_rows = executor.max_sampled_rows();
  const PrefixCachingConfig& caching = config.prefix_caching;
  if (!caching.enabled) return out;
  TACO_REQUIRE(config.swap_blocks + caching.host_blocks <= cache.num_host_blocks, "swap_blocks is ",
               config.swap_blocks, " and the prefix cache's host_blocks ", caching.host_blocks,
               ", but the executor has ", cache.num_host_blocks, " blocks of host memory");
  PrefixCacheConfig& prefix = out.prefix_cache.emplace();
  prefix.block_size = cache.block_size;
  prefix.block_bytes = caching.block_bytes;
  prefix.first_host_block = config.swap_blocks;
  prefix.num_host_blocks = caching.host_blocks;
  prefix.num_disk_blocks = caching.disk_blocks;
  prefix.disk = caching.disk;
  prefix.min_accesses = caching.min_accesses;
  prefix.max_idle_blocks = caching.max_idle_blocks;
  prefix.lazy = caching.lazy;
  return out;
}

EngineLoop::EngineLoop(std::unique_ptr<Executor> executor, const EngineConfig& config)
    : executor_(std::move(executor)),
      runs_ahead_(executor_->max_in_flight() > 1),
      clock_(runs_ahead_),
      scheduler_(scheduler_config(*executor_, config)) {
  if (config.drafter) {
    speculator_ = std::make_unique<Speculator>(config.speculation, config.drafter, *executor_,
                                               config.max_num_batched_tokens, config.max_num_seqs);
  }
  if (PrefixCache* cache = scheduler_.prefix_cache()) {
    if (config.prefix_caching.on_disk) cache->restore(*config.prefix_caching.on_disk);
    scheduler_.hit_counter().set_logging(config.prefix_caching.log_hits);
  }
  update_stats(0);
}

void EngineLoop::run(Inbox& inbox, OutputQueue& queue) {
  Mail mail;
  PrefixCache* cache = scheduler_.prefix_cache();
  try {
    if (cache) executor_->on_finished([&inbox] { inbox.wake(); });
    for (;;) {
      inbox.fetch(mail);
      bool has_work = scheduler_.has_work() || scheduler_.num_in_flight() > 0;
      if (mail.empty() && !has_work) {
        if (cache) {  // what is to be written is written while there is nothing else to do
          take_finished_transfers(monotonic_seconds());
          begin_transfers(monotonic_seconds());
          update_stats(0);
        }
        executor_->idle();
        clock_.idle();
        inbox.wait();
        continue;
      }
      take(mail);
      if (mail.stop) break;
      if (!touched_.empty()) {  // aborts need not wait for a step
        update_stats(0);
        publish(inbox, queue);
      }
      bool stuck = false;
      if (scheduler_.has_work() || scheduler_.num_in_flight() > 0) {
        stuck = !step();
      } else {
        update_stats(0);
      }
      publish(inbox, queue);
      if (stuck) {
        clock_.idle();
        inbox.wait(kLongestWait);
      }
    }
    inbox.close();
    end_all(FinishReason::kAbort, "");
    update_stats(0);
    publish(inbox, queue);
    while (scheduler_.num_in_flight() > 0) complete_oldest();
  } catch (const std::exception& error) {
    die(error.what(), mail, inbox, queue);
  } catch (...) {
    die("an exception of unknown type", mail, inbox, queue);
  }
  queue.close();
}

void EngineLoop::add_requests(Mail& mail) {
  for (std::unique_ptr<EngineRequest>& submission : mail.submissions) {
    if (submission == nullptr) continue;
    EngineRequest& request = *submission;
    requests_.emplace(request.id, std::move(submission));
    scheduler_.add(request);
  }
}

void EngineLoop::take(Mail& mail) {
  add_requests(mail);
  for (RequestId id : mail.aborts) {
    auto it = requests_.find(id);
    if (it != requests_.end()) end_request(*it->second, FinishReason::kAbort, "");
  }
  if (mail.abort_before != 0) {
    for (auto& [id, request] : requests_) {
      if (id < mail.abort_before) end_request(*request, FinishReason::kAbort, "");
    }
  }
  for (EngineTask& task : mail.tasks) task(this);
  mail.tasks.clear();
}

void EngineLoop::take_finished_transfers(double now) {
  transfer_results_.clear();
  executor_->finished(transfer_results_);
  PrefixCache& cache = *scheduler_.prefix_cache();
  bool failed = false;
  for (const TransferResult& result : transfer_results_) {
    cache.finished(result, now);
    failed |= !result.failed.empty();
  }
  const DiskTier* disk = cache.config().disk.get();
  if (failed && disk && !disk->can_read()) {
    cache.drop_disk();
  } else if (failed && disk && !disk->can_write()) {
    cache.stop_disk_writes();
  }
}

void EngineLoop::begin_transfers(double now) {
  PrefixCache* cache = scheduler_.prefix_cache();
  cache->maintain(now);
  transfers_.clear();
  cache->take_transfers(transfers_);
  for (const Transfer& transfer : transfers_) executor_->begin(transfer);
}

void EngineLoop::plan(double now) {
  if (scheduler_.prefix_cache()) {
    take_finished_transfers(now);
    scheduler_.fetch(now);
    begin_transfers(now);
  }
  scheduler_.plan(proposal_);
}

bool EngineLoop::step() {
  double start = monotonic_seconds();
  {
    std::lock_guard lock(stats_mutex_);
    stats_.current_step_start = start;
  }
  if (scheduler_.num_in_flight() == 0) {
    if (speculator_) {
      const DraftMode mode = draft_next_ ? DraftMode::kDraft : speculator_->next(scheduler_);
      draft_next_ = false;
      if (mode == DraftMode::kDraft) speculator_->draft(scheduler_);
      if (mode == DraftMode::kShadow) speculator_->shadow(scheduler_);
    }
    plan(start);
    if (proposal_.empty()) {
      update_stats(0);
      const bool busy = scheduler_.prefix_cache() && scheduler_.prefix_cache()->busy();
      // What a fetch has given up at its end is there for the next plan.
      idle_plans_ = busy ? 0 : idle_plans_ + 1;
      TACO_CHECK(busy || idle_plans_ < 10, "there are sequences, but none can run");
      return !busy;
    }
    idle_plans_ = 0;
    submit(start);
  }
  if (runs_ahead_) run_ahead(start);
  complete_oldest();
  return true;
}

// Gives the executor the step after the one that it is at, unless that must wait for the one's result.
void EngineLoop::run_ahead(double now) {
  if (!scheduler_.has_work() || scheduler_.oldest_needs_its_tokens()) return;
  scheduler_.advance();
  DraftMode mode = DraftMode::kNone;
  if (speculator_) {
    mode = speculator_->next(scheduler_);
    draft_next_ = mode == DraftMode::kDraft;
    if (draft_next_) return;  // drafts need the tokens of the step in flight
  }
  plan(now);
  if (!proposal_.empty() && proposal_.preempt.empty()) submit(now);
  if (mode == DraftMode::kShadow) speculator_->shadow(scheduler_);
}

void EngineLoop::submit(double now) {
  const StepPlan& plan = scheduler_.reserve(proposal_);
  try {
    mark_scheduled(proposal_, now);
    executor_->submit(plan);
    if (speculator_) speculator_->submitted(plan);
  } catch (...) {
    scheduler_.rollback();
    throw;
  }
  clock_.submitted(plan, now);
}

void EngineLoop::complete_oldest() {
  StepOutput output = executor_->collect();
  double now = monotonic_seconds();
  choices_.clear();
  runs_.clear();
  for (size_t i = 0; i < output.sampled.size(); ++i) {
    const SampledToken& sampled = output.sampled[i];
    if (i > 0 && sampled.seq == output.sampled[i - 1].seq) continue;  // a run
    choices_.push_back({sampled.seq, sampled.token, sampled.logprob, !sampled.error.empty()});
    runs_.push_back(i);
  }
  runs_.push_back(output.sampled.size());
  const StepPlan& plan = scheduler_.oldest_plan();
  const std::optional<StepTime> time = clock_.completed(plan, now);
  // What computing prompts takes, of steps that did hardly anything else.
  if (PrefixCache* cache = scheduler_.prefix_cache(); cache && time && time->prompt_tokens * 2 > time->tokens)
    cache->measured_prefill(time->prompt_tokens, time->seconds);
  scheduler_.commit(choices_, sampled_);
  collect_prompt_logprobs(plan, output.prompt_logprobs);
  for (size_t i = 0; i < sampled_.size(); ++i) {
    if (sampled_[i] == nullptr) continue;
    advance_run(*sampled_[i], std::span(output.sampled).subspan(runs_[i], runs_[i + 1] - runs_[i]), now);
  }
  if (speculator_) speculator_->completed(time);
  std::erase_if(ended_in_flight_, [](const auto& request) { return request->num_in_flight == 0; });
#ifdef TACO_CHECK_STEPS
  check_invariants(scheduler_);
#endif
  ++num_steps_;
  update_stats(now);
}

void EngineLoop::mark_scheduled(const Proposal& proposal, double now) {
  for (SeqState* seq : proposal.admit) {
    auto& request = static_cast<EngineRequest&>(*seq->owner);
    if (request.times.first_scheduled != 0) continue;
    request.times.first_scheduled = now;
    ++newly_scheduled_;
  }
}

void EngineLoop::collect_prompt_logprobs(const StepPlan& plan, std::vector<PromptLogprobs>& collected) {
  for (PromptLogprobs& part : collected) {
    auto step = std::find_if(plan.seqs.begin(), plan.seqs.end(),
                             [&](const SeqStep& s) { return s.sequence->id == part.seq; });
    TACO_CHECK(step != plan.seqs.end() && step->prompt_logprobs, "prompt logprobs that nobody asked for");
    if (step->sequence->status == SeqStatus::kFinished) continue;
    auto& request = static_cast<EngineRequest&>(*static_cast<const SeqState*>(step->sequence)->owner);
    std::vector<PositionLogprobs>& have = request.prompt_logprobs;  // [i]: of position i + 1
    for (size_t i = 0; i < part.entries.size(); ++i) {
      size_t at = static_cast<size_t>(part.first_position) - 1 + i;
      if (at < have.size()) continue;  // computed again after a preemption
      TACO_CHECK(at == have.size(), "prompt logprobs with a gap at position ", have.size() + 1);
      have.push_back(std::move(part.entries[i]));
    }
  }
}

// Stops cut a run: what is behind them never was.
void EngineLoop::advance_run(SeqState& seq, std::span<SampledToken> run, double now) {
  const bool has_draft = seq.draft && seq.draft->size > 0;
  tokens_.clear();
  for (size_t i = 0; i < run.size() && seq.status != SeqStatus::kFinished; ++i) {
    const bool failed = !run[i].error.empty();
    if (!failed) tokens_.push_back(run[i].token);
    if (!failed && i > 0) scheduler_.extend(seq, run[i].token, run[i].logprob);
    advance(seq, run[i], now);
  }
  if (speculator_ && !tokens_.empty())
    speculator_->committed(seq, tokens_, has_draft ? seq.draft.get() : nullptr);
  if (has_draft) scheduler_.settle(seq);
}

// The newest token of a sequence: its text, and whether it was the last.
void EngineLoop::advance(SeqState& seq, SampledToken& sampled, double now) {
  auto& request = static_cast<EngineRequest&>(*seq.owner);
  SequenceOutput& out = request.outputs[static_cast<size_t>(seq.index)];
  touch(request, seq.index);
  if (!sampled.error.empty()) {
    out.delta.error = std::move(sampled.error);
    finish(request, seq, FinishReason::kError, now);
    return;
  }
  if (request.times.first_token == 0) request.times.first_token = now;
  request.times.last_token = now;
  out.delta.token_ids.push_back(sampled.token);
  if (seq.params->logprobs >= 0) out.delta.logprobs.push_back(std::move(sampled.logprobs));

  StopVerdict verdict = check_stop_tokens(seq);
  bool is_stop_token = verdict.reason != FinishReason::kNone;
  if (verdict.is_stop_token) out.delta.stop_reason = sampled.token;
  if (out.detokenizer && (!is_stop_token || seq.params->include_stop_str_in_output)) {
    std::optional<std::string> stop =
        out.detokenizer->add(sampled.token, !is_stop_token && stops_active(seq), out.delta.text);
    if (stop) {
      out.delta.stop_reason = std::move(*stop);
      out.detokenizer.reset();  // nothing may be added any more
      verdict.reason = FinishReason::kStop;
    }
  }
  if (verdict.reason == FinishReason::kNone && reached_length(seq, scheduler_.max_len())) {
    verdict.reason = FinishReason::kLength;
  }
  if (verdict.reason != FinishReason::kNone) finish(request, seq, verdict.reason, now);
}

void EngineLoop::finish(EngineRequest& request, SeqState& seq, FinishReason reason, double now) {
  SequenceOutput& out = request.outputs[static_cast<size_t>(seq.index)];
  if (out.detokenizer) out.detokenizer->finish(out.delta.text);
  out.delta.finish_reason = reason;
  if (speculator_) speculator_->ended(seq);
  try {
    scheduler_.finish(seq, reason);
  } catch (...) {
    if (!dead_) throw;
    // Whatever state the scheduler died in, readers must not be left waiting.
    seq.status = SeqStatus::kFinished;
    seq.finish_reason = reason;
    --request.num_unfinished;
  }
  if (request.num_unfinished == 0) request.times.finished = now;
}

void EngineLoop::end_request(EngineRequest& request, FinishReason reason, const std::string& error) {
  double now = monotonic_seconds();
  for (SeqState& seq : request.sequences) {
    if (seq.status == SeqStatus::kFinished) continue;
    touch(request, seq.index);
    request.outputs[static_cast<size_t>(seq.index)].delta.error = error;
    finish(request, seq, reason, now);
  }
}

void EngineLoop::end_all(FinishReason reason, const std::string& error) {
  for (auto& [id, request] : requests_) end_request(*request, reason, error);
}

void EngineLoop::touch(EngineRequest& request, int index) {
  SequenceOutput& out = request.outputs[static_cast<size_t>(index)];
  if (out.touched) return;
  out.touched = true;
  touched_.emplace_back(&request, index);
}

// Moves the delta of a sequence to the outgoing items, as number `index` of the request.
void EngineLoop::collect(EngineRequest& request, int sequence, int index) {
  SequenceOutput& from = request.outputs[static_cast<size_t>(sequence)];
  const SeqState& seq = request.sequences[static_cast<size_t>(sequence)];
  items_.push_back({std::move(from.delta), &from.slot});
  // Ready for the next token; what is said once, at the end, need not be taken back.
  from.delta.text.clear();
  from.delta.token_ids.clear();
  from.delta.logprobs.clear();
  Output& output = items_.back().output;
  output.request = request.id;
  output.index = index;
  output.cumulative_logprob = seq.cumulative_logprob;
  output.num_prompt_tokens = request.prompt_len;
  output.num_cached_tokens = request.num_cached_tokens;
  output.num_output_tokens = seq.output_len();
  output.times = request.times;
  if (seq.status == SeqStatus::kFinished) output.speculation = seq.speculated;
  if (!request.first_published && index == 0) {
    output.prompt_logprobs = std::move(request.prompt_logprobs);
    request.first_published = true;
  }
}

// The n best of best_of, failed ones last. Equal ones keep their order.
void EngineLoop::collect_best(EngineRequest& request) {
  std::vector<const SeqState*> ranked;
  for (const SeqState& seq : request.sequences) ranked.push_back(&seq);
  std::stable_sort(ranked.begin(), ranked.end(), [](const SeqState* a, const SeqState* b) {
    bool a_failed = a->finish_reason == FinishReason::kError,
         b_failed = b->finish_reason == FinishReason::kError;
    if (a_failed != b_failed) return b_failed;
    return a->cumulative_logprob > b->cumulative_logprob;
  });
  for (int i = 0; i < request.params->n; ++i) collect(request, ranked[static_cast<size_t>(i)]->index, i);
}

void EngineLoop::count(const EngineRequest& request) {
  FinishReason reason = request.sequences.front().finish_reason;
  for (const SeqState& seq : request.sequences) {
    if (seq.finish_reason == FinishReason::kError) reason = FinishReason::kError;
  }
  switch (reason) {
    case FinishReason::kNone:
      break;
    case FinishReason::kStop:
      ++totals_.finished_stop;
      break;
    case FinishReason::kLength:
      ++totals_.finished_length;
      break;
    case FinishReason::kAbort:
      ++totals_.finished_abort;
      break;
    case FinishReason::kError:
      ++totals_.finished_error;
      break;
  }
}

void EngineLoop::publish(Inbox& inbox, OutputQueue& queue) {
  finished_.clear();
  for (auto [request, index] : touched_) {
    request->outputs[static_cast<size_t>(index)].touched = false;
    bool is_finished = request->num_unfinished == 0;
    if (!request->held_back()) {
      collect(*request, index, index);
      request->last_item = items_.size() - 1;
    } else if (is_finished && !request->ended) {
      collect_best(*request);
      request->last_item = items_.size() - 1;
    }
    if (is_finished && !request->ended) {
      request->ended = true;
      finished_.push_back(request);
    }
  }
  touched_.clear();
  for (EngineRequest* request : finished_) items_[request->last_item].output.request_finished = true;
  int64_t scheduled = newly_scheduled_;
  newly_scheduled_ = 0;
  for (EngineRequest* request : finished_) scheduled += request->times.first_scheduled == 0;
  // Readers may look at the counters as soon as they see the outputs.
  if (!finished_.empty()) {
    for (EngineRequest* request : finished_) count(*request);
    std::lock_guard lock(stats_mutex_);
    copy_totals();
  }
  queue.publish(items_);
  for (EngineRequest* request : finished_) {
    auto it = requests_.find(request->id);
    if (request->num_in_flight > 0) ended_in_flight_.push_back(std::move(it->second));
    requests_.erase(it);
  }
  inbox.account(scheduled, static_cast<int64_t>(finished_.size()));
}

// What was submitted and not yet looked at is in `mail`, or still in the inbox.
void EngineLoop::die(const std::string& reason, Mail& mail, Inbox& inbox, OutputQueue& queue) {
  dead_ = true;
  scheduler_.abandon();
  add_requests(mail);
  inbox.die(reason, mail);
  inbox.close();
  for (EngineTask& task : mail.tasks) task(nullptr);
  add_requests(mail);
  {
    std::lock_guard lock(stats_mutex_);
    stats_.dead = true;
    stats_.death_reason = reason;
  }
  end_all(FinishReason::kError, reason);
  update_stats(0);
  publish(inbox, queue);
}

void EngineLoop::copy_totals() {
  stats_.finished_stop = totals_.finished_stop;
  stats_.finished_length = totals_.finished_length;
  stats_.finished_abort = totals_.finished_abort;
  stats_.finished_error = totals_.finished_error;
}

void EngineLoop::update_stats(double step_end) {
  std::lock_guard lock(stats_mutex_);
  stats_.running = scheduler_.num_running_requests();
  stats_.waiting = scheduler_.num_requests() - stats_.running;
  stats_.num_blocks = scheduler_.pool().size();
  if (speculator_) stats_.speculation = speculator_->stats();
  stats_.free_blocks = scheduler_.pool().num_available();
  if (const PrefixCache* cache = scheduler_.prefix_cache()) {
    stats_.prefix_cache = cache->stats();
    std::vector<std::string>& lines = scheduler_.hit_counter().lines();
    log_lines_.insert(log_lines_.end(), lines.begin(), lines.end());
    if (std::ssize(log_lines_) > kMaxLogLines)
      log_lines_.erase(log_lines_.begin(), log_lines_.end() - kMaxLogLines);
    lines.clear();
  }
  if (const BlockPool* host = scheduler_.host_pool()) {
    stats_.swap_blocks = host->size();
    stats_.free_swap_blocks = host->num_free();
  }
  stats_.steps = num_steps_;
  stats_.preemptions = scheduler_.num_preemptions();
  stats_.prompt_tokens = scheduler_.num_prompt_tokens();
  stats_.prompt_tokens_computed = scheduler_.num_prompt_tokens_computed();
  stats_.generation_tokens = scheduler_.num_generation_tokens();
  if (step_end != 0) stats_.last_step_end = step_end;
  stats_.current_step_start = 0;
}

EngineStats EngineLoop::stats() const {
  std::lock_guard lock(stats_mutex_);
  return stats_;
}

std::vector<std::string> EngineLoop::take_log_lines() {
  std::lock_guard lock(stats_mutex_);
  return std::exchange(log_lines_, {});
}

void EngineLoop::reset_prefix_cache() { scheduler_.prefix_cache()->reset(); }

CacheReport EngineLoop::cache_report(int hottest) const {
  const PrefixCache& cache = *scheduler_.prefix_cache();
  return {cache.stats(), cache.hottest(hottest)};
}

}  // namespace taco
