// Settings of speculation. The names of LookaheadConfig's fields are the keys of lookahead_cache_config.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "spec/drafter.h"

namespace taco {

// Defaults are those of the product document for a missing file. Meaning of each key: docs of the class that
// reads it.
struct LookaheadConfig {
  int cache_mode = 2;                 // 0: Raw, 1: Turbo, 2: Turbo, and Raw where Turbo proposes nothing
  int64_t cache_size = 0;             // first-level keys; 0: as many as the memory bound allows
  int copy_length = 7;                // depth of a draft
  int match_length = 2;               // Raw: tokens that must match
  int turbo_match_length = 7;         // Turbo: longest context looked up
  int min_match_length = 2;           // Turbo: shortest
  int cell_max_size = 16;             // continuations kept for one key
  int voc_size = 0;                   // ids outside [0, voc_size) are never cached; 0: the model's
  int max_seq_len = 0;                // 0: the model's
  std::vector<int32_t> eos_token_id;  // each ends a text
  int top_k = 1;                      // Raw: phrases of one key that are proposed together
  float threshold = 2.0f;             // a full cell evicts among continuations rarer than this
  float decay = 0.5f;                 // and multiplies all frequencies by this where there is none
  bool is_hybrid = true;              // Raw: shorter matches down to 1 too
  bool is_debug = false;              // log lines
  int log_interval = 3000;            // in iterations of sequences
  int target_parallelism = 512;       // cache_mode 0 with one path: above this sum of rows drafts get shorter
  int top_k_in_cell = 16;             // Turbo: tokens read from one cell
  int token_paths_top_k = 2;          // nodes per depth
  float start_freq = 10.0f;           // weight of the sequence's own counts, with several paths
  int num_threads = 8;                // that draft where steps are a device's
  bool global_cache_switch = true;    // false: sequences learn nothing from each other
  bool ignore_prompt = false;         // learn from outputs only
  std::string warmup_file;            // [{"prompt": [ids], "output": [ids]}, ...]
};

enum class SpeculationMethod : uint8_t { kNone, kLookahead, kNgram };

struct SpeculationConfig {
  SpeculationMethod method = SpeculationMethod::kNone;
  LookaheadConfig lookahead;
  size_t memory_bytes = 0;  // kLookahead: an upper bound of all that its caches hold
  std::string
      fingerprint;  // kLookahead: of model and vocabulary; what was saved under another one is refused
  int ngram_max = 0, ngram_min = 1;
  int num_speculative_tokens = 0;  // kNgram: depth of a draft
  bool cost_model = true;          // false: every draft is verified, whatever it costs
  int disable_by_batch_size = 0;   // no drafts in steps of more sequences; 0: no limit
  // Lossy: takes a drafted token whose probability exceeds min(threshold, alpha * exp(-entropy)).
  bool typical_acceptance = false;
  float typical_threshold = 0.09f, typical_alpha = 0.3f;
};

// Null for kNone. Throws kInvalidArgument with the key to change.
std::unique_ptr<Drafter> make_drafter(const SpeculationConfig& config);

}  // namespace taco
