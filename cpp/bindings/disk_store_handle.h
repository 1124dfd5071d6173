// The prefix cache's disk tier as a Python object, shared with the executor that it is given to.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cache/disk_store.h"
#include "exec/kv_transfer.h"

namespace taco::bindings {

class DiskLines {  // what the store has to say, until Python takes it
 public:
  void add(const std::string& line);
  std::vector<std::string> take();

 private:
  std::mutex mutex_;
  std::deque<std::string> lines_;
};

struct DiskStoreHandle {
  std::shared_ptr<DiskStore> store;
  std::shared_ptr<const std::vector<std::pair<int64_t, DiskRecord>>> found;  // until an engine took it
  size_t num_found = 0;
  std::shared_ptr<DiskLines> lines;
};

// What a ModelExecutor needs; empty for none. It keeps the store.
DiskAccess disk_access(const DiskStoreHandle* disk);

}  // namespace taco::bindings
