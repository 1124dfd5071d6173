// The prefix cache's settings and figures.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "bindings/disk_store_handle.h"
#include "engine/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

constexpr const char* kTierNames[kNumCacheTiers] = {"device", "host", "disk"};

template <typename T>
nb::dict by_tier(const std::array<T, kNumCacheTiers>& counts) {
  nb::dict named;
  for (size_t i = 0; i < counts.size(); ++i) named[kTierNames[i]] = counts[i];
  return named;
}

}  // namespace

void bind_prefix_cache(nb::module_& m) {
  using C = PrefixCachingConfig;
  nb::class_<C>(m, "PrefixCachingConfig", "Of an Engine: KV blocks that are kept for the tokens in them.")
      .def("__init__",
           [](nb::pointer_and_handle<C> self, const nb::kwargs& fields) {
             new (self.p) C();
             set_fields(self.h, fields);
           })
      .def_rw("enabled", &C::enabled)
      .def_rw("host_blocks", &C::host_blocks)
      .def_rw("disk_blocks", &C::disk_blocks)
      .def_rw("block_bytes", &C::block_bytes)
      .def_rw("min_accesses", &C::min_accesses)
      .def_rw("max_idle_blocks", &C::max_idle_blocks)
      .def_rw("lazy", &C::lazy)
      .def_rw("log_hits", &C::log_hits)
      .def(
          "use_disk",
          [](C& self, DiskStoreHandle& disk) {
            TACO_REQUIRE(disk.found, "this DiskStore belongs to an Engine already");
            self.disk_blocks = disk.store->num_slots();
            self.on_disk = std::move(disk.found);
            self.disk = disk.store;
          },
          "disk"_a);

  using S = PrefixCacheStats;
  nb::class_<S>(m, "PrefixCacheStats")
      .def_ro("entries", &S::entries)
      .def_prop_ro("blocks", [](const S& s) { return by_tier(s.blocks); })
      .def_prop_ro("capacity", [](const S& s) { return by_tier(s.capacity); })
      .def_ro("idle_blocks", &S::idle_blocks)
      .def_ro("clean_idle_blocks", &S::clean_idle_blocks)
      .def_ro("loading_blocks", &S::loading_blocks)
      .def_ro("fetches", &S::fetches)
      .def_ro("transfers", &S::transfers)
      .def_ro("lookups", &S::lookups)
      .def_ro("tokens_queried", &S::tokens_queried)
      .def_prop_ro("tokens_hit", [](const S& s) { return by_tier(s.tokens_hit); })
      .def_ro("blocks_queried", &S::blocks_queried)
      .def_prop_ro("blocks_hit", [](const S& s) { return by_tier(s.blocks_hit); })
      .def_ro("published", &S::published)
      .def_ro("exchanged", &S::exchanged)
      .def_prop_ro("evicted", [](const S& s) { return by_tier(s.evicted); })
      .def_ro("dropped", &S::dropped)
      .def_ro("stored", &S::stored)
      .def_ro("loaded", &S::loaded)
      .def_ro("written", &S::written)
      .def_ro("read", &S::read)
      .def_ro("stored_by_steps", &S::stored_by_steps)
      .def_ro("failed", &S::failed)
      .def_ro("fetches_started", &S::fetches_started)
      .def_ro("fetches_declined", &S::fetches_declined)
      .def_ro("resets", &S::resets)
      .def_ro("store_speed", &S::store_speed)
      .def_ro("load_speed", &S::load_speed)
      .def_ro("write_speed", &S::write_speed)
      .def_ro("read_speed", &S::read_speed)
      .def_ro("prefill_speed", &S::prefill_speed);

  nb::class_<HotPrefix>(m, "HotPrefix")
      .def_ro("digest", &HotPrefix::digest)
      .def_ro("tokens", &HotPrefix::tokens)
      .def_ro("accesses", &HotPrefix::accesses)
      .def_prop_ro("tier", [](const HotPrefix& p) { return kTierNames[static_cast<size_t>(p.tier)]; });

  nb::class_<CacheReport>(m, "CacheReport")
      .def_ro("stats", &CacheReport::stats)
      .def_ro("hottest", &CacheReport::hottest);
}

}  // namespace taco::bindings
