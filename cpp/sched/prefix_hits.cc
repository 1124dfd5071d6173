#include "sched/prefix_hits.h"

#include <algorithm>
#include <cstdio>

namespace taco {

namespace {
constexpr uint64_t kInterval = 100;  // blocks
constexpr size_t kMaxLines = 1000;
}  // namespace

std::string hit_line(const HitCounts& counts) {
  const auto percent = [&](uint64_t blocks) {
    return counts.total == 0 ? 0.0 : 100.0 * static_cast<double>(blocks) / static_cast<double>(counts.total);
  };
  const uint64_t missed = counts.total - counts.device - counts.lower;
  char line[256];
  std::snprintf(line, sizeof line,
                "[HIT CNT] total: %llu, gpu: %llu (%.2f%%) cpu: %llu (%.2f%%) not hit: %llu (%.2f%%)",
                static_cast<unsigned long long>(counts.total), static_cast<unsigned long long>(counts.device),
                percent(counts.device), static_cast<unsigned long long>(counts.lower), percent(counts.lower),
                static_cast<unsigned long long>(missed), percent(missed));
  return line;
}

void HitCounter::count(int64_t total, int64_t device, int64_t lower) {
  auto left = static_cast<uint64_t>(total), on_device = static_cast<uint64_t>(device),
       below = static_cast<uint64_t>(lower);
  const auto take = [](uint64_t& from, uint64_t most) {
    const uint64_t taken = std::min(from, most);
    from -= taken;
    return taken;
  };
  while (left > 0) {
    const uint64_t part = take(left, kInterval - counts_.total % kInterval);
    counts_.total += part;
    const uint64_t of_device = take(on_device, part);
    counts_.device += of_device;
    counts_.lower += take(below, part - of_device);
    if (!logs_ || counts_.total % kInterval != 0) continue;
    if (lines_.size() >= kMaxLines) lines_.erase(lines_.begin());
    lines_.push_back(hit_line(counts_));
  }
}

}  // namespace taco
