// What the prefix cache was worth, in blocks of prompts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace taco {

struct HitCounts {
  uint64_t total = 0;   // blocks of admitted prompts, the last one of each full or not
  uint64_t device = 0;  // of them found on the device
  uint64_t lower = 0;   // brought back from a lower tier
};

// "[HIT CNT] total: 300, gpu: 20 (6.67%) cpu: 30 (10.00%) not hit: 250 (83.33%)"
std::string hit_line(const HitCounts& counts);

// Writes such a line each time that `total` reaches a multiple of 100.
class HitCounter {
 public:
  void set_logging(bool logs) { logs_ = logs; }
  // One prompt: those on the device are its first blocks.
  void count(int64_t total, int64_t device, int64_t lower);
  const HitCounts& counts() const { return counts_; }
  std::vector<std::string>& lines() { return lines_; }  // not taken yet; the oldest go where nobody does

 private:
  HitCounts counts_;
  bool logs_ = false;
  std::vector<std::string> lines_;
};

}  // namespace taco
