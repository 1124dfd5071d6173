// Hashes of the last 1, 2, 3, ... tokens of a context, and what a token is to the caches.
#pragma once

#include <cstdint>
#include <span>

namespace taco {

constexpr int kMaxOrder = 16;  // longest context that any cache looks up

// Which ids may stand in an n-gram. An end of text or an id outside the vocabulary (the placeholder of an
// image, say) is a barrier: no context reaches over it. An end of text may be a continuation.
struct TokenRules {
  static constexpr int kMaxEos = 16;

  int32_t vocab_size = 0;
  int32_t eos[kMaxEos] = {};  // num_eos of them
  int num_eos = 0;

  constexpr TokenRules() = default;
  // The first kMaxEos of `ends`.
  constexpr TokenRules(int32_t vocab, std::span<const int32_t> ends) : vocab_size(vocab) {
    for (const int32_t token : ends)
      if (num_eos < kMaxEos) eos[num_eos++] = token;
  }
  bool known(int32_t token) const { return token >= 0 && token < vocab_size; }
  bool ends(int32_t token) const {
    for (int i = 0; i < num_eos; ++i)
      if (eos[i] == token) return true;
    return false;
  }
  bool barrier(int32_t token) const { return !known(token) || ends(token); }
};

// The tokens that a prediction is made from: the last first, up to the first barrier.
struct Context {
  int size = 0;
  int32_t last[kMaxOrder];  // last[0] is the newest

  // After `token` has followed.
  Context next(int32_t token, const TokenRules& rules, int max_size) const {
    Context out;
    if (rules.barrier(token)) return out;
    out.last[0] = token;
    out.size = size + 1 < max_size ? size + 1 : max_size;
    for (int i = 1; i < out.size; ++i) out.last[i] = last[i - 1];
    return out;
  }
};

inline uint64_t hash_step(uint64_t h, int32_t token) {
  h = (h + static_cast<uint32_t>(token) + 1) * 0x9E3779B97F4A7C15ull;
  return h ^ (h >> 32);
}
inline uint64_t hash_seed(uint64_t name_space) {
  uint64_t h = (name_space ^ 0xD6E8FEB86659FD93ull) * 0xFF51AFD7ED558CCDull;
  h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53ull;
  return h ^ (h >> 33);
}
// The key of a context from the running value of hash_step: every bit depends on every bit.
inline uint64_t hash_key(uint64_t h) {
  h *= 0xD6E8FEB86659FD93ull;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  return h ^ (h >> 32);
}

// keys[m - 1] is the key of the last m tokens, m up to `longest`.
inline void context_keys(const Context& context, int longest, uint64_t seed, uint64_t* keys) {
  uint64_t h = seed;
  for (int m = 0; m < longest; ++m) {
    h = hash_step(h, context.last[m]);
    keys[m] = hash_key(h);
  }
}

}  // namespace taco
