// Choosing tokens on the device: the rules of SamplingParams that need nothing of the host while a step runs.
//
// The order of the rules, their exact meaning and the random numbers are those of exec/sampler.h; the draw is
// Philox4x32-10 of (seed, position). What only the host knows comes as lists: forbidden and biased tokens,
// the tokens that penalties look at. All arrays are in the backend's memory.
#pragma once

#include <cstdint>

namespace taco {

struct TokenEdit {
  int32_t token;
  float add;  // -Infinity forbids the token
};

struct TokenCount {  // a token that stands in prompt or output; each token at most once in a row's list
  int32_t token;
  int32_t in_output;  // how often in the output
};

// One token to choose. Rows may share their logits (best_of at the end of a prompt).
struct SampleRow {
  int32_t logits_row = 0;
  int32_t top_k = 0;  // <= 0: all
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f;
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
  uint64_t seed = 0, position = 0;             // position: of the token in the output
  int32_t logprobs = -1;                       // -1: none wanted; k: the k most likely
  int32_t first_allowed = 0, num_allowed = 0;  // ranges of the lists; num_allowed 0: all are allowed
  int32_t first_edit = 0, num_edits = 0;
  int32_t first_count = 0, num_counts = 0;
};

enum class SampleError : int32_t { kNone, kNaN, kAllForbidden, kInfinity };

struct SampleResult {
  int32_t token;
  float logprob;  // under the log-softmax of the logits as they came
  int32_t rank;   // 1: the most likely; only where logprobs >= 0
  SampleError error;
};

struct TopToken {
  int32_t token;
  float logprob;
};

struct SampleParams {
  const float* logits;  // [logits rows, vocab]
  int vocab;
  int num_rows;
  const SampleRow* rows;  // [num_rows]
  const int32_t* allowed;
  const TokenEdit* edits;
  const TokenCount* counts;
  // What occurs among the rows, so that passes which nobody needs are left out.
  bool any_rules = false;   // allowed, edits or penalties
  bool any_random = false;  // a temperature that is not greedy
  bool any_filter = false;  // top-k, top-p or min-p
  int max_logprobs = -1;    // of all rows; rank is computed where >= 0
  SampleResult* results;    // [num_rows]
  TopToken* top;            // [num_rows, max(max_logprobs, 0)]: the most likely first, the lower id at a tie
};

// ids[i] = results[source[i]].token where source[i] >= 0: rows whose token the step before has just chosen.
struct PatchIdsParams {
  int32_t* ids;
  const int32_t* source;
  int64_t rows;
  const SampleResult* results;
};

}  // namespace taco
