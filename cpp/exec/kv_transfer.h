// Carries out transfers of KV blocks (cache/transfer.h) beside the steps.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "cache/transfer.h"
#include "exec/host_blocks.h"

namespace taco {

// What kWrite and kRead go through, on threads that do nothing else. Blocks are [layers][bytes of a layer].
struct DiskAccess {
  // Returns whether it was done. By one thread at a time.
  std::function<bool(int64_t slot, const DiskRecord& record, std::span<const char> block)> write;
  // Some blocks, of neighbouring slots where it could be; says of each whether it was done. By several
  // threads at a time.
  std::function<void(std::span<BlockRead> blocks)> read;
};

// Threads for each of three lanes, begun when there is something for them: loads, stores and the disk do not
// wait for each other. Each takes what is urgent (a step waits for it) first, then the oldest; reads from the
// disk before writes. A load goes layer by layer, and a step may follow it a layer behind. Several reads from
// the disk are under way at once, in the order in which they were begun; writes are made one by one.
//
// begin, finished and the waiting calls are for the thread of the backend's ops.
class KvTransfer {
 public:
  struct DeviceBlocks {
    char* data;  // [layers][num_blocks][layer_bytes]
    int layers;
    int64_t num_blocks;
    size_t layer_bytes;
  };
  struct Options {
    DiskAccess disk = {};
    bool by_layer = true;  // a step may follow a load; else all layers of a block are copied together
    // A copy call's share of a transfer: layers enough to be worth a call, and few enough that what is urgent
    // does not wait long behind it.
    size_t group_bytes = size_t{8} << 20;
    size_t store_bytes = size_t{2} << 20;  // of whole blocks in a store's call
    // What a thread asks the disk for at once, and how many do (bench/cache/fetch_bench.cc tells).
    size_t read_bytes = size_t{256} << 10;
    int readers = 4;
  };
  KvTransfer(std::shared_ptr<Backend> backend, const DeviceBlocks& device, std::shared_ptr<HostBlocks> host,
             Options options);
  // What has begun ends first; what has not is dropped.
  ~KvTransfer();
  KvTransfer(const KvTransfer&) = delete;

  void begin(const Transfer& transfer);
  void finished(std::vector<TransferResult>& results);
  void on_finished(std::function<void()> wake) { wake_ = std::move(wake); }

  struct Job;
  using Loads = std::vector<std::shared_ptr<Job>>;
  // Ops that follow come after these stores. Of the loads among `ids`, those that are not known to have
  // ended: the step waits for each layer of them before it reads it.
  Loads wait_for(std::span<const uint64_t> ids);
  // Throws kUnavailable if a load has failed.
  void wait_layer(const Loads& loads, int layer);
  void wait_all(const Loads& loads);
  static bool writes(const Loads& loads, BlockId device_block);

 private:
  using Clock = std::chrono::steady_clock;
  using JobPtr = std::shared_ptr<Job>;
  enum LaneKind { kLoads, kStores, kDisk, kNumLanes };
  // Copies on their way in the device's queue.
  struct InFlight {
    JobPtr job;
    std::shared_ptr<Fence> start, fence;  // around its copies
    bool last;
  };
  struct Lane {
    std::deque<JobPtr> waiting;  // the oldest first; with those that have begun
    std::deque<InFlight> in_flight;
    std::unique_ptr<CopyStream> stream;
    std::vector<std::thread> threads;   // one; the disk's lane: as many as it takes
    bool writing = false;               // of the disk's lane: one of its threads is
    Clock::time_point read_until = {};  // likewise: when its last read ended
  };
  static LaneKind lane_of(TransferKind kind);
  void check(const Transfer& transfer) const;
  void run_copies(Lane& lane);
  void run_disk(Lane& lane);
  JobPtr next(const Lane& lane) const;
  bool ready(const Job& job) const;
  void reap(Lane& lane);
  void abandon(Lane& lane, const JobPtr& job);
  void prepare(Job& job, CopyStream& stream);
  void copy_group(Lane& lane, const JobPtr& job, std::unique_lock<std::mutex>& lock);
  std::vector<size_t> take_share(Job& job) const;
  std::vector<size_t> carry_out(const Job& job, std::span<const size_t> share);
  bool write(const Job& job, size_t index);
  void finish(Lane& lane, const JobPtr& job, double seconds);
  void wake(std::unique_lock<std::mutex>& lock);
  static void inherit_failures(Job& job, std::span<const BlockId> hosts);
  void make_urgent(Job& job);
  void wait_issued(const Job& job, int layer);

  std::shared_ptr<Backend> backend_;
  DeviceBlocks device_;
  std::shared_ptr<HostBlocks> host_;
  Options options_;
  std::function<void()> wake_;

  mutable std::mutex mutex_;
  std::condition_variable work_, progress_;    // for the threads here; for the ops' thread
  std::unordered_map<uint64_t, JobPtr> jobs_;  // that have not finished
  uint64_t last_id_ = 0;
  std::array<Lane, kNumLanes> lanes_;
  std::vector<TransferResult> results_;
  std::unordered_map<uint64_t, std::vector<BlockId>> failed_hosts_;  // of results that nobody has seen yet
  bool to_wake_ = false, stop_ = false;
};

}  // namespace taco
