// The prefix cache's disk tier.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/disk_store_handle.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

constexpr size_t kMostLines = 100;

DiskStoreHandle open(const std::string& directory, const nb::bytes& identity, size_t block_bytes,
                     int block_size, int64_t capacity_bytes) {
  DiskStoreOptions options;
  TACO_REQUIRE(identity.size() == options.identity.bytes.size(), "identity must have ",
               options.identity.bytes.size(), " bytes, not ", identity.size());
  std::copy_n(static_cast<const uint8_t*>(identity.data()), identity.size(), options.identity.bytes.begin());
  options.directory = directory;
  options.block_bytes = block_bytes;
  options.block_size = block_size;
  options.capacity_bytes = capacity_bytes;
  DiskStoreHandle handle;
  handle.lines = std::make_shared<DiskLines>();
  options.log = [lines = handle.lines](const std::string& line) { lines->add(line); };
  nb::gil_scoped_release release;
  auto found = std::make_shared<std::vector<std::pair<int64_t, DiskRecord>>>();
  handle.store = DiskStore::open(options, *found);
  handle.num_found = found->size();
  handle.found = std::move(found);
  return handle;
}

}  // namespace

void DiskLines::add(const std::string& line) {
  std::lock_guard lock(mutex_);
  lines_.push_back(line);
  if (lines_.size() > kMostLines) lines_.pop_front();
}

std::vector<std::string> DiskLines::take() {
  std::lock_guard lock(mutex_);
  std::vector<std::string> out(lines_.begin(), lines_.end());
  lines_.clear();
  return out;
}

DiskAccess disk_access(const DiskStoreHandle* disk) {
  if (!disk) return {};
  return {
      .write =
          [store = disk->store](int64_t slot, const DiskRecord& record, std::span<const char> block) {
            return store->write(slot, record, {reinterpret_cast<const uint8_t*>(block.data()), block.size()});
          },
      .read = [store = disk->store](std::span<BlockRead> blocks) { store->read(blocks); }};
}

void bind_disk_store(nb::module_& m) {
  using S = DiskStoreStats;
  nb::class_<S>(m, "DiskStoreStats")
      .def_ro("num_slots", &S::num_slots)
      .def_ro("used_slots", &S::used_slots)
      .def_ro("blocks_written", &S::blocks_written)
      .def_ro("blocks_read", &S::blocks_read)
      .def_ro("blocks_damaged", &S::blocks_damaged)
      .def_ro("bytes_written", &S::bytes_written)
      .def_ro("bytes_read", &S::bytes_read)
      .def_ro("write_seconds", &S::write_seconds)
      .def_ro("read_seconds", &S::read_seconds)
      .def_ro("folders_removed", &S::folders_removed);

  using H = DiskStoreHandle;
  using release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<H>(m, "DiskStore", "KV blocks in a folder, found again after a restart.")
      .def_static("open", &open, "directory"_a, nb::kw_only(), "identity"_a, "block_bytes"_a, "block_size"_a,
                  "capacity_bytes"_a)
      .def_prop_ro("num_slots", [](const H& h) { return h.store->num_slots(); })
      .def_ro("num_found", &H::num_found)
      .def_prop_ro("path", [](const H& h) { return h.store->path(); })
      .def_prop_ro("can_read", [](const H& h) { return h.store->can_read(); })
      .def_prop_ro("can_write", [](const H& h) { return h.store->can_write(); })
      .def(
          "stats", [](const H& h) { return h.store->stats(); }, release())
      .def("take_log_lines", [](const H& h) { return h.lines->take(); })
      .def(
          "close", [](H& h) { h.store->close(); }, release());
}

}  // namespace taco::bindings
