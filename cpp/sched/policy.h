// Who goes first, and who gives way. Pure functions on plain data.
#pragma once

#include <cstdint>
#include <tuple>

namespace taco {

struct PolicyKey {
  int32_t priority = 0;  // lower goes first; 0 for everybody under first come, first served
  uint64_t arrival = 0;  // the request's number
  int32_t index = 0;     // among the request's sequences
};

// A total order. Waiting sequences are admitted in this order and nobody overtakes, so nobody starves; a
// preempted sequence came before everything that was never admitted, so it is at the front again by itself.
inline bool goes_before(const PolicyKey& a, const PolicyKey& b) {
  return std::tie(a.priority, a.arrival, a.index) < std::tie(b.priority, b.arrival, b.index);
}

// When blocks run out, the running sequence that is last in the order gives its blocks back. The first of all
// is thus never preempted for another's sake and always makes progress: there is no livelock.
//
// A waiting sequence displaces a running one only for its priority, never for having come earlier.
inline bool may_displace(const PolicyKey& waiting, const PolicyKey& running) {
  return waiting.priority < running.priority;
}

}  // namespace taco
