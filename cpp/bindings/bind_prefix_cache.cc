// The figures of the prefix cache.
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include "bindings/bindings.h"
#include "bindings/enum_text.h"
#include "cache/prefix_cache_stats.h"

namespace taco::bindings {

template <>
struct EnumNames<CacheTier> {
  static constexpr std::array<const char*, kNumCacheTiers> names{"device", "host", "disk"};
};

}  // namespace taco::bindings

namespace nanobind::detail {
template <>
struct type_caster<taco::CacheTier> : EnumCaster<taco::CacheTier> {};
}  // namespace nanobind::detail

namespace nb = nanobind;

namespace taco::bindings {

void bind_prefix_cache(nb::module_& m) {
  using S = PrefixCacheStats;
  nb::class_<S>(m, "PrefixCacheStats")
      .def_ro("entries", &S::entries)
      .def_ro("blocks", &S::blocks)
      .def_ro("capacity", &S::capacity)
      .def_ro("idle_blocks", &S::idle_blocks)
      .def_ro("clean_idle_blocks", &S::clean_idle_blocks)
      .def_ro("loading_blocks", &S::loading_blocks)
      .def_ro("fetches", &S::fetches)
      .def_ro("transfers", &S::transfers)
      .def_ro("lookups", &S::lookups)
      .def_ro("tokens_queried", &S::tokens_queried)
      .def_ro("tokens_hit", &S::tokens_hit)
      .def_ro("blocks_queried", &S::blocks_queried)
      .def_ro("blocks_hit", &S::blocks_hit)
      .def_ro("published", &S::published)
      .def_ro("exchanged", &S::exchanged)
      .def_ro("evicted", &S::evicted)
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
  nb::class_<HotPrefix>(m, "HotPrefix", "One of the prefixes that are used most.")
      .def_ro("digest", &HotPrefix::digest)
      .def_ro("tokens", &HotPrefix::tokens)
      .def_ro("accesses", &HotPrefix::accesses)
      .def_ro("tier", &HotPrefix::tier);
}

}  // namespace taco::bindings
