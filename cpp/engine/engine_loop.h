// The part of the engine that runs on its thread: steps, and what follows from each sampled token.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine_request.h"
#include "engine/inbox.h"
#include "engine/speculator.h"
#include "engine/step_clock.h"
#include "sched/scheduler.h"

namespace taco {

// A step: plan and submit, collect, commit, look at each new token, publish. With an executor that takes a
// second step before it gives the first one's result, step n + 1 is planned and submitted before n is
// collected, so that the device always has work; what the host does with n's tokens happens while n + 1 runs.
// It does not happen when n + 1 depends on n's tokens by more than feeding them back: when a sequence samples
// from its history, when drafts are to be made, or when somebody would have to be preempted (n may free
// blocks).
//
// With a prefix cache: before a step is planned, finished transfers of blocks are taken and new ones begun,
// so that the step may wait for any of them. Where nobody can run but for blocks that are on their way, the
// thread waits for them as for mail.
//
// All functions but stats(), take_log_lines() and scheduler().check_admissible() belong to the engine thread.
class EngineLoop {
 public:
  // config.drafter null: nobody drafts.
  EngineLoop(std::unique_ptr<Executor> executor, const EngineConfig& config);

  // Until the inbox says stop; then what is unfinished is aborted. A step that throws ends it as well: all
  // requests get an error, and nothing is accepted any more. Closes the queue.
  void run(Inbox& inbox, OutputQueue& queue);

  EngineStats stats() const;
  std::vector<std::string> take_log_lines();
  void reset_prefix_cache();
  CacheReport cache_report(int hottest) const;
  const Scheduler& scheduler() const { return scheduler_; }
  int vocab_size() const { return executor_->vocab_size(); }

 private:
  static SchedulerConfig scheduler_config(const Executor& executor, const EngineConfig& config);

  void add_requests(Mail& mail);
  void take(Mail& mail);
  void take_finished_transfers(double now);
  void begin_transfers(double now);
  void plan(double now);
  bool step();  // false: nobody can run before a transfer has finished
  void run_ahead(double now);
  void submit(double now);  // the proposal
  void complete_oldest();
  void mark_scheduled(const Proposal& proposal, double now);
  void collect_prompt_logprobs(const StepPlan& plan, std::vector<PromptLogprobs>& collected);
  // A sequence's tokens of a step: one, or the run that a draft gave.
  void advance_run(SeqState& seq, std::span<SampledToken> run, double now);
  void advance(SeqState& seq, SampledToken& sampled, double now);
  void finish(EngineRequest& request, SeqState& seq, FinishReason reason, double now);
  void end_request(EngineRequest& request, FinishReason reason, const std::string& error);
  void end_all(FinishReason reason, const std::string& error);
  void touch(EngineRequest& request, int index);
  void collect(EngineRequest& request, int sequence, int index);
  void collect_best(EngineRequest& request);
  void publish(Inbox& inbox, OutputQueue& queue);
  void die(const std::string& reason, Mail& mail, Inbox& inbox, OutputQueue& queue);
  void count(const EngineRequest& request);
  void update_stats(double step_end);  // 0: no step
  void copy_totals();                  // under the lock

  std::unique_ptr<Executor> executor_;
  const bool runs_ahead_;
  StepClock clock_;
  Scheduler scheduler_;
  std::unique_ptr<Speculator> speculator_;  // null: nobody drafts
  bool draft_next_ = false;                 // the next step was to be planned with drafts
  std::unordered_map<RequestId, std::unique_ptr<EngineRequest>> requests_;
  std::vector<std::unique_ptr<EngineRequest>> ended_in_flight_;  // all published, but a step still has them

  // Of the step at hand; kept for their memory.
  Proposal proposal_;
  std::vector<Choice> choices_;
  std::vector<size_t> runs_;  // of each choice: where its run begins in the step's output; then the end
  std::vector<int32_t> tokens_;
  std::vector<SeqState*> sampled_;
  std::vector<std::pair<EngineRequest*, int>> touched_;
  std::vector<OutputQueue::Item> items_;
  std::vector<EngineRequest*> finished_;
  int64_t newly_scheduled_ = 0;
  std::vector<Transfer> transfers_;
  std::vector<TransferResult> transfer_results_;

  int idle_plans_ = 0;  // in a row, without a transfer under way
  bool dead_ = false;
  uint64_t num_steps_ = 0;
  EngineStats totals_;  // finished_*, of the engine thread
  mutable std::mutex stats_mutex_;
  EngineStats stats_;
  std::vector<std::string> log_lines_;  // likewise under stats_mutex_
};

}  // namespace taco
