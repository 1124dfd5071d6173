// Drafts from what has been read and written before: the Lookahead Cache.
//
//   LookaheadDrafter drafter(config, memory_bytes, fingerprint);
//   drafter.begin(sequence, name_space, prompt);      // its own text (local), and later everybody's (global)
//   drafter.draft(requests);                          // trees to verify
//   drafter.verified(sequence, tree, accepted);       // in either order with
//   drafter.commit(sequence, new_tokens);
//   drafter.catch_up(tokens);                         // while the device works
//   drafter.end(sequence);
//
// What a sequence says can be drafted from at once, and so can a prompt of usual length. No call takes longer
// for a longer prompt, but for the copy of its tokens: begin makes the first part of it findable, catch_up
// and commit the rest (some 40 ns a token), the prompt with the least left first. Meanwhile drafts come from
// what is there. What sequences learn from each other waits in a queue: catch_up works it off, some 0.7 us a
// token, meant for the time in which a step runs. Where nobody calls it and the queue gets long, commit and
// end work off more than they add. All of that is counted in tokens, never by the clock: the same calls give
// the same drafts.
//
// Files: save may be called from any thread at any time. It copies a segment of the cache at a time, which
// the engine thread may have to wait for (some 50 us), and pauses in between.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/helper_threads.h"
#include "spec/drafter.h"
#include "spec/lookahead/cache_file.h"
#include "spec/lookahead/raw_cache.h"
#include "spec/lookahead/turbo_cache.h"
#include "spec/speculation_config.h"

namespace taco {

struct LookaheadStats {
  int64_t global_keys = 0, evictions = 0;  // of the cache that sequences share
  size_t bytes = 0, peak_bytes = 0,
         local_bytes = 0;  // all, its maximum so far, that of the sequences' own texts
  int64_t learned_tokens = 0, waiting_tokens = 0;  // by and for the cache that sequences share
  int64_t skipped_tokens =
      0;  // that it will never learn: they came too fast, or there was no memory for them
  int64_t unlinked_tokens = 0;  // of prompts, which their own drafts do not see yet
};

// How much is done at once, in tokens. "Step": in all calls between two of catch_up.
struct LookaheadPace {
  int64_t begin_links = 2048;     // of its prompt, by begin
  int64_t catch_up_links = 4096;  // of prompts
  int64_t commit_links = 256;     // of its prompt, by commit
  int64_t step_links = 8192;      // by begin and commit together; beyond, a commit still links 16
  int64_t step_learns = 2048;  // by commit and end beyond a commit's own tokens, where nobody calls catch_up
  // Of ended sequences that others have not learned from, with those of running ones: where it gets more, the
  // oldest prompts are skipped.
  int64_t most_waiting = int64_t{1} << 20;
};

// Throws kInvalidArgument that names the key, its value and what is allowed.
void validate(const LookaheadConfig& config, size_t memory_bytes);

class LookaheadDrafter : public Drafter {
 public:
  // Validates. voc_size must be known. config.warmup_file is not read here: see warm_up. fingerprint: the
  // owner's name for model and vocabulary; a file saved under another one is refused.
  LookaheadDrafter(const LookaheadConfig& config, size_t memory_bytes, std::string fingerprint = "",
                   const LookaheadPace& pace = {});

  void begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) override;
  void commit(uint64_t sequence, std::span<const int32_t> tokens) override;
  void end(uint64_t sequence) override;
  // config.num_threads draft from now on, as far as there are cores, where a step has more than a few
  // sequences. The drafts are the same.
  void use_other_cores() override;
  void draft(std::span<const DraftRequest> requests) override;
  void verified(uint64_t sequence, const DraftTree& tree, int accepted) override;

  int64_t catch_up(int64_t max_tokens) override;

  size_t memory_bytes() const override;
  uint64_t save(const std::string& path) override;
  uint64_t load(const std::string& path) override;

  // An earlier request and its answer, as if it had just been served. Returns the number of tokens learned.
  int64_t warm_up(uint64_t name_space, std::span<const int32_t> prompt, std::span<const int32_t> output);
  LookaheadStats stats() const;
  const LookaheadConfig& config() const { return config_; }

 private:
  // Tokens between two ends of text (or of the sequence), and how far they have been learned from.
  struct Text {
    Text(const TokenRules& rules, MemoryBudget* budget) : index(rules, budget) {}
    TextIndex index;
    uint64_t seed = 0;
    uint32_t output_from = 0;  // tokens before are the prompt's
    uint32_t learned = 0;      // tokens that others can learn from already
    uint32_t waiting = 0;      // as counted in waiting_
    uint32_t turn = 0;         // learned since it came to the head of the queue
    bool complete = false;     // nothing follows
    bool queued = false;
    bool findable = true;  // false: only its tokens are left
  };
  struct Sequence {
    uint64_t name_space = 0;
    std::shared_ptr<Text> text;  // null while there is no memory for it
    Context context;
    int64_t length = 0;     // tokens in all
    float recent_hits = 0;  // running mean of accepted tokens
  };

  CacheFileHeader file_header() const;
  std::vector<RateTable*> rates() { return turbo_ ? turbo_->rates() : raw_->rates(); }
  void save_phrases(CacheFileWriter& writer, uint32_t* first);
  void save_keys(CacheFileWriter& writer, uint32_t first_phrase);
  void save_rates(CacheFileWriter& writer);
  void load_phrases(const CacheFileReader& file, std::span<const uint8_t> payload);
  int64_t load_keys(const CacheFileReader& file, std::span<const uint8_t> payload);
  void load_rates(const CacheFileReader& file, std::span<const uint8_t> payload);

  int max_order() const { return turbo_ ? turbo_->max_order() : raw_->max_order(); }
  CellTable* table() const { return turbo_ ? turbo_->table() : raw_->table(); }
  void append(Sequence& s, std::span<const int32_t> tokens, bool output);
  bool append_to_text(Sequence& s, int32_t token, bool output);
  void take_prompt(Sequence& s, std::span<const int32_t> prompt);
  void link(Text& text, int64_t max_tokens);
  void link_prompts(int64_t max_tokens);
  std::shared_ptr<Text> new_text(uint64_t name_space);
  bool make_room(size_t bytes);
  void retire(std::shared_ptr<Text> text);
  void enqueue(const std::shared_ptr<Text>& text);
  void skip(Text& text, uint32_t until);
  void skip_prompts();
  int64_t learn(Text& text, int64_t max_tokens);
  int64_t waiting(const Text& text) const;
  void work_off(int64_t max_tokens);

  void draft_raw(const Sequence& s, const Context& context, bool at_end, const DraftRequest& request,
                 int depth) const;
  // A tree that Turbo grows.
  struct Growth {
    struct Open {
      float p;
      int32_t token;
      int8_t parent, longest;
      DraftSource source;
    };
    const TextIndex* text;
    DraftTree* tree;
    uint64_t seed;
    float least;
    int depth, most;
    bool at_end;
    int node;  // to be expanded; -1: the tree is complete
    TurboLookaheadCache::Lookup lookup;
    int num_open;
    int at_depth[DraftTree::kMaxNodes];
    Context contexts[DraftTree::kMaxNodes];
    Open open[DraftTree::kMaxNodes * TurboLookaheadCache::kMaxGuesses];
  };
  static constexpr int kGrowths = 8;  // trees that grow at once: what one needs is fetched while others grow

  void draft_group(std::span<const DraftRequest> requests, Growth* growths) const;
  void start(Growth& g, const Sequence& s, const Context& context, bool at_end, const DraftRequest& request,
             int depth) const;
  void expand(Growth& g) const;
  void grow(std::span<Growth> growths) const;

  LookaheadConfig config_;
  TokenRules rules_;
  MemoryBudget budget_, local_budget_;
  // One of them: the hybrid is Turbo with Raw's short matches behind its own.
  std::unique_ptr<TurboLookaheadCache> turbo_;
  std::unique_ptr<RawLookaheadCache> raw_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::deque<std::shared_ptr<Text>> queue_;  // texts with something to learn from; complete ones live here
  std::vector<std::shared_ptr<Text>> unlinked_;  // texts whose prompt is not linked to its end
  int64_t waiting_ = 0, learned_ = 0, skipped_ = 0;
  std::unique_ptr<HelperThreads> helpers_;          // null: the engine thread drafts alone
  std::vector<std::unique_ptr<Growth[]>> growths_;  // [threads][kGrowths]; Turbo's
  LookaheadPace pace_;
  int64_t links_left_;             // of this step
  int64_t learns_left_;            // where nobody calls catch_up
  bool owner_catches_up_ = false;  // it has been called: learning is left to it
  std::string fingerprint_;
  mutable std::mutex mutex_;  // all of the above
  std::mutex save_mutex_;     // one save at a time
};

}  // namespace taco
