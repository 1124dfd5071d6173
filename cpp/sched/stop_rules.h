// When a sequence ends, as far as its token ids tell. Stop strings are the detokenizer's part.
#pragma once

#include <algorithm>

#include "sched/sequence.h"

namespace taco {

struct StopVerdict {
  FinishReason reason = FinishReason::kNone;
  bool is_stop_token = false;  // ended by one of stop_token_ids (and not by EOS): its id is the stop reason
};

// min_tokens counts the newest token: it holds back every stop but the length's.
inline bool stops_active(const Sequence& seq) { return seq.output_len() >= seq.params->min_tokens; }

// Looks at the newest token of the sequence.
inline StopVerdict check_stop_tokens(const Sequence& seq) {
  if (!stops_active(seq)) return {};
  const SamplingParams& params = *seq.params;
  auto has = [token = seq.tokens.back()](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  if (!params.ignore_eos && has(params.eos_token_ids)) return {FinishReason::kStop, false};
  if (has(params.stop_token_ids)) return {FinishReason::kStop, true};
  return {};
}

// max_len: the most tokens that a sequence may have, prompt and output.
inline bool reached_length(const Sequence& seq, int64_t max_len) {
  return seq.output_len() >= seq.params->max_tokens || seq.len() >= max_len;
}

// The newest token is not known yet, but certainly the sequence's last: there is nothing more to compute.
inline bool awaits_its_last(const Sequence& seq, int64_t max_len) {
  return seq.tokens.back() == kPendingToken && reached_length(seq, max_len);
}

}  // namespace taco
