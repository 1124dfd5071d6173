#include "cache/prefix_cache.h"
namespace taco {
namespace {
[[noreturn]] void none() { fail(ErrorCode::kUnimplemented, "the prefix cache is not there yet"); }
}  // namespace
class PrefixCache::Impl {
 public:
  PrefixCacheConfig config;
};
PrefixCache::PrefixCache(const PrefixCacheConfig& config, BlockPool&) : impl_(new Impl{config}) { none(); }
PrefixCache::~PrefixCache() = default;
const PrefixCacheConfig& PrefixCache::config() const { return impl_->config; }
PrefixCache::Match PrefixCache::match(const Digest&, std::span<const int32_t>, int32_t) const { none(); }
int32_t PrefixCache::attach(const Digest&, std::span<const int32_t>, int32_t, bool, BlockTable&, Attachment&,
                            std::vector<uint64_t>&) {
  none();
}
void PrefixCache::publish(std::span<const int32_t>, int32_t, BlockTable&, Attachment&) { none(); }
void PrefixCache::reset() { none(); }
PrefixCache::Fetch PrefixCache::fetch(const Digest&, std::span<const int32_t>, int32_t, int64_t, double,
                                      uint64_t&) {
  none();
}
double PrefixCache::remaining(uint64_t, double) const { none(); }
void PrefixCache::cancel_fetch(uint64_t) { none(); }
void PrefixCache::take_evictions(uint64_t, std::vector<BlockMove>&, std::vector<uint64_t>&) { none(); }
void PrefixCache::rolled_back(uint64_t) { none(); }
void PrefixCache::stepped(uint64_t) { none(); }
void PrefixCache::maintain(double) { none(); }
void PrefixCache::take_transfers(std::vector<Transfer>&) { none(); }
void PrefixCache::finished(const TransferResult&, double) { none(); }
bool PrefixCache::busy() const { none(); }
void PrefixCache::measured_prefill(int64_t, double) { none(); }
int64_t PrefixCache::restore(std::span<const std::pair<int64_t, DiskRecord>>) { none(); }
void PrefixCache::drop_disk() { none(); }
PrefixCacheStats PrefixCache::stats() const { none(); }
std::vector<HotPrefix> PrefixCache::hottest(int) const { none(); }
void PrefixCache::check() const { none(); }
void PrefixCache::let_go(BlockId) { none(); }
void PrefixCache::taken(BlockId) { none(); }
void PrefixCache::give_up_one() { none(); }
}  // namespace taco
