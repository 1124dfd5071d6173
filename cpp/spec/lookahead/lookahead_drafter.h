// Drafts from what has been read and written before: the Lookahead Cache.
//
//   LookaheadDrafter drafter(config, memory_bytes);
//   drafter.begin(sequence, name_space, prompt);      // its own text (local), and later everybody's (global)
//   drafter.draft(requests);                          // trees to verify
//   drafter.verified(sequence, tree, accepted);       // in either order with
//   drafter.commit(sequence, new_tokens);
//   drafter.catch_up(tokens);                         // while the device works
//   drafter.end(sequence);
//
// A sequence's own text can be drafted from at once. What sequences learn from each other waits in a queue:
// catch_up works it off, some 0.5 us a token, meant for the time in which a step runs. An owner that never
// calls it has commit do that, as many tokens as it is given and a few more.
//
// One thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "spec/drafter.h"
#include "spec/lookahead/cache_file.h"
#include "spec/lookahead/lookahead_metrics.h"
#include "spec/lookahead/raw_cache.h"
#include "spec/lookahead/turbo_cache.h"
#include "spec/speculation_config.h"

namespace taco {

// Throws kInvalidArgument that names the key, its value and what is allowed.
void validate(const LookaheadConfig& config, size_t memory_bytes);

class LookaheadDrafter : public Drafter {
 public:
  // Validates. voc_size must be known. config.warmup_file is not read here: see warm_up.
  LookaheadDrafter(const LookaheadConfig& config, size_t memory_bytes);

  void begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) override;
  void commit(uint64_t sequence, std::span<const int32_t> tokens) override;
  void end(uint64_t sequence) override;
  void draft(std::span<const DraftRequest> requests) override;
  void verified(uint64_t sequence, const DraftTree& tree, int accepted) override;

  // Lets sequences learn from each other what was committed, at most this many tokens of it (0: all). Returns
  // the number of tokens that still wait.
  int64_t catch_up(int64_t max_tokens) override;
  // An earlier request and its answer, as if it had just been served. Returns the number of tokens learned.
  int64_t warm_up(uint64_t name_space, std::span<const int32_t> prompt, std::span<const int32_t> output);

  LookaheadStats stats() const;
  // With is_debug: a metrics_line for each log_interval iterations, the last 16 if nobody fetched them.
  std::vector<std::string> take_log_lines();

  // What sequences share, kept over a restart (cache_file.h says how). The fingerprint is the owner's name
  // for model and vocabulary, a file of another one is refused; name spaces must mean the same then and now.
  //
  // save writes all of it and returns when it is on disk: for a drained engine. request_save may be called
  // from any thread and at any time: each catch_up (or commit, where the owner never calls that) then copies
  // a slice, some 50 us, for a thread that writes. Keys that change meanwhile are saved as they are when
  // their turn comes. Both throw or tell kInvalidArgument if the file cannot be made, or if nothing is
  // shared.
  void save(const std::string& path, const std::string& fingerprint);
  void request_save(const std::string& path, const std::string& fingerprint);
  struct SaveState {
    bool running = false;  // requested, and neither done nor failed
    int64_t saved = 0;     // saves that succeeded
    int64_t failed = 0;
    int64_t keys = 0;  // of the last one that succeeded
    uint64_t bytes = 0;
    std::string error;  // of the last one, if it failed
  };
  SaveState save_state() const;  // from any thread
  // Before the first sequence. Returns the number of keys. Throws kNotFound if there is no file and
  // kInvalidArgument, with the reason, for one that is not as it should be: the cache is empty then.
  int64_t load(const std::string& path, const std::string& fingerprint);

  const LookaheadConfig& config() const { return config_; }

 private:
  // Tokens between two ends of text (or of the sequence), and how far they have been learned from.
  struct Text {
    Text(const TokenRules& rules, MemoryBudget* budget) : index(rules, budget) {}
    TextIndex index;
    uint64_t seed = 0;
    uint32_t output_from = 0;  // tokens before are the prompt's
    uint32_t learned = 0;      // tokens that others can learn from already
    bool complete = false;     // nothing follows
    bool queued = false;
  };
  struct Sequence {
    uint64_t name_space = 0;
    std::unique_ptr<Text> text;  // null while there is no memory for it
    Context context;
    int64_t length = 0;  // tokens in all
    float recent_hits;   // running mean of accepted tokens
    HitCounts counts;
    std::vector<int32_t> since_draft;  // committed since the last draft
    std::unique_ptr<DraftTree> told;   // verified, its tokens not committed yet
    int told_accepted = 0;
  };

  struct Save {
    Save(const std::string& path, const CacheFileHeader& header) : writer(path, header) {}
    CacheFileWriter writer;
    uint32_t first_phrase = 0, phrase = 0,
             end_phrase = 0;  // Raw's: numbers of the first, the next, behind the last
    uint64_t cursor = 0;      // of the keys
    int64_t keys = 0;
    bool all_keys = false, closed = false;
  };
  CacheFileHeader file_header(const std::string& fingerprint) const;
  std::vector<RateTable*> rates() { return turbo_ ? turbo_->rates() : raw_->rates(); }
  void start_save(const std::string& path, const std::string& fingerprint);
  bool save_slice();
  void save_some();
  void finish_save();
  void load_phrases(const CacheFileReader& file, std::span<const uint8_t> payload);
  int64_t load_keys(const CacheFileReader& file, std::span<const uint8_t> payload);
  void load_rates(const CacheFileReader& file, std::span<const uint8_t> payload);

  int max_order() const { return turbo_ ? turbo_->max_order() : raw_->max_order(); }
  CellTable* table() const { return turbo_ ? turbo_->table() : raw_->table(); }
  void append(Sequence& s, std::span<const int32_t> tokens, bool output);
  bool append_to_text(Sequence& s, int32_t token, bool output);
  std::unique_ptr<Text> new_text(uint64_t name_space);
  bool make_room();
  void retire(std::unique_ptr<Text> text);
  void enqueue(Text* text);
  int64_t learn(Text& text, int64_t max_tokens);
  int64_t waiting(const Text& text) const;

  void draft_one(const Sequence& s, const DraftRequest& request, int copy_length);
  void draft_raw(const Sequence& s, const Context& context, bool at_end, const DraftRequest& request,
                 int depth);
  void draft_turbo(const Sequence& s, const Context& context, bool at_end, const DraftRequest& request,
                   int depth);
  void count_sources(const DraftTree& tree, int accepted, std::span<const int32_t> tokens);

  LookaheadConfig config_;
  TokenRules rules_;
  MemoryBudget budget_, local_budget_;
  // One of them: the hybrid is Turbo with Raw's short matches behind its own.
  std::unique_ptr<TurboLookaheadCache> turbo_;
  std::unique_ptr<RawLookaheadCache> raw_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::deque<Text*> queue_;                    // texts with something to learn from
  std::deque<std::unique_ptr<Text>> retired_;  // complete ones among them, which no sequence holds any more
  int64_t waiting_ = 0, learned_ = 0;
  bool owner_catches_up_ = false;

  HitSums ended_;
  LookaheadStats counters_;  // what is not summed by sequence
  int64_t iterations_ = 0;
  std::deque<std::string> log_lines_;

  std::unique_ptr<Save> save_;  // in progress
  mutable std::mutex save_mutex_;
  SaveState save_state_;
  std::string requested_path_, requested_fingerprint_;
  std::atomic<bool> save_requested_{false};
};

}  // namespace taco
