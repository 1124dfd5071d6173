#include "exec/kv_transfer.h"

#include <algorithm>
#include <optional>

#include "base/error.h"

namespace taco {
namespace {

constexpr size_t kGroupsInFlight = 8;
constexpr auto kPoll = std::chrono::microseconds(20);

}  // namespace

struct KvTransfer::Job {
  Transfer transfer;
  std::shared_ptr<Fence> ops;   // the steps that were submitted before
  bool urgent = false;          // a step waits
  std::vector<uint8_t> failed;  // per move
  struct Group {
    int first_layer, last_layer;     // [first, last)
    size_t first_place, last_place;  // of `places`
  };
  std::vector<Group> groups;               // in the order of copying
  size_t next = 0;                         // group, or move of the disk
  bool issued = false;                     // to the last of these
  int num_shares = 0;                      // of the disk's moves, that threads are at
  std::optional<Clock::time_point> begun;  // likewise: the first
  bool finished = false;
  std::vector<std::shared_ptr<Fence>> layers;  // by layer: after its copies; null: not yet issued
  std::shared_ptr<Fence> end;
  double seconds = 0;             // of the groups' copies that have ended, or of the disk
  std::vector<PlacePair> places;  // first layer; of moves that did not fail

  size_t num_moves() const { return transfer.moves.size() + transfer.disk.size(); }
  BlockId host(size_t i) const {
    return transfer.disk.empty() ? transfer.moves[i].host : transfer.disk[i].host;
  }
  // The first that a step still lacks; what goes with the first layer is not counted.
  int next_layer() const {
    if (groups.empty()) return 0;
    return groups[next == 1 && groups.size() > 2 ? 2 : next].first_layer;
  }
  bool has_failed(size_t i) const { return !failed.empty() && failed[i] != 0; }
  void fail(size_t i) {
    failed.resize(num_moves());
    failed[i] = 1;
  }
  void fail_all() { failed.assign(num_moves(), 1); }
};

KvTransfer::KvTransfer(std::shared_ptr<Backend> backend, const DeviceBlocks& device,
                       std::shared_ptr<HostBlocks> host, Options options)
    : backend_(std::move(backend)), device_(device), host_(std::move(host)), options_(std::move(options)) {
  TACO_CHECK(host_->block_bytes() == device_.layer_bytes * static_cast<size_t>(device_.layers),
             "host blocks of ", host_->block_bytes(), " bytes, device blocks of ", device_.layer_bytes, " x ",
             device_.layers);
}

KvTransfer::~KvTransfer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    work_.notify_all();
  }
  host_->stop();
  for (Lane& lane : lanes_)
    for (std::thread& thread : lane.threads) thread.join();
}

KvTransfer::LaneKind KvTransfer::lane_of(TransferKind kind) {
  return kind == TransferKind::kLoad ? kLoads : kind == TransferKind::kStore ? kStores : kDisk;
}

void KvTransfer::check(const Transfer& t) const {
  const bool disk = lane_of(t.kind) == kDisk;
  TACO_CHECK(t.id > last_id_ && t.after < t.id, "transfer ", t.id, " after ", t.after, ", the last was ",
             last_id_);
  TACO_CHECK(disk ? t.moves.empty() && t.records.size() == t.disk.size() : t.disk.empty(), "transfer ", t.id,
             " has the moves of another kind");
  TACO_CHECK(t.kind != TransferKind::kWrite || options_.disk.write, "there is no disk to write to");
  TACO_CHECK(t.kind != TransferKind::kRead || options_.disk.read, "there is no disk to read from");
  for (const BlockMove& m : t.moves) {
    TACO_CHECK(m.device >= 0 && m.device < device_.num_blocks, "block ", m.device, " of ",
               device_.num_blocks);
    TACO_CHECK(m.host >= 0 && m.host < host_->num_blocks(), "host block ", m.host, " of ",
               host_->num_blocks());
  }
  for (const DiskMove& m : t.disk)
    TACO_CHECK(m.host >= 0 && m.host < host_->num_blocks(), "host block ", m.host, " of ",
               host_->num_blocks());
}

void KvTransfer::begin(const Transfer& transfer) {
  check(transfer);
  last_id_ = transfer.id;
  auto job = std::make_shared<Job>();
  job->transfer = transfer;
  const LaneKind kind = lane_of(transfer.kind);
  if (kind != kDisk) {
    job->ops = backend_->fence();
    job->layers.resize(static_cast<size_t>(device_.layers));
  }
  Lane& lane = lanes_[kind];
  std::lock_guard lock(mutex_);
  if (auto before = failed_hosts_.find(transfer.after); before != failed_hosts_.end())
    inherit_failures(*job, before->second);
  jobs_.emplace(transfer.id, job);
  lane.waiting.push_back(std::move(job));
  const auto wanted = static_cast<size_t>(transfer.kind == TransferKind::kRead ? options_.readers : 1);
  while (lane.threads.size() < wanted)
    lane.threads.emplace_back([this, kind, &lane] { kind == kDisk ? run_disk(lane) : run_copies(lane); });
  work_.notify_all();
}

void KvTransfer::finished(std::vector<TransferResult>& results) {
  std::lock_guard lock(mutex_);
  for (TransferResult& r : results_) results.push_back(std::move(r));
  results_.clear();
  failed_hosts_.clear();
}

// --- waiting

void KvTransfer::make_urgent(Job& job) {
  for (Job* j = &job; j != nullptr && !j->urgent;) {
    j->urgent = true;
    auto before = jobs_.find(j->transfer.after);
    j = before == jobs_.end() ? nullptr : before->second.get();
  }
  work_.notify_all();
}

KvTransfer::Loads KvTransfer::wait_for(std::span<const uint64_t> ids) {
  Loads loads;
  std::unique_lock lock(mutex_);
  for (uint64_t id : ids) {
    TACO_CHECK(id > 0 && id <= last_id_, "a step waits for transfer ", id, ", the last begun is ", last_id_);
    auto found = jobs_.find(id);
    if (found == jobs_.end()) continue;
    const JobPtr job = found->second;
    const LaneKind kind = lane_of(job->transfer.kind);
    TACO_CHECK(kind != kDisk, "a step cannot wait for transfer ", id, ", which is the disk's");
    make_urgent(*job);
    if (kind == kLoads) {
      loads.push_back(job);
      continue;
    }
    progress_.wait(lock, [&] { return job->issued || job->finished; });
    if (job->end && !job->end->reached()) backend_->wait_for(*job->end);
  }
  return loads;
}

void KvTransfer::wait_layer(const Loads& loads, int layer) {
  for (const JobPtr& job : loads) {
    std::shared_ptr<Fence> fence;
    {
      std::unique_lock lock(mutex_);
      const std::shared_ptr<Fence>& at = job->layers[static_cast<size_t>(layer)];
      progress_.wait(lock, [&] { return at || job->finished; });
      if (std::count(job->failed.begin(), job->failed.end(), 1) > 0)
        fail(ErrorCode::kUnavailable, "cached KV blocks that a step reads could not be loaded (transfer ",
             job->transfer.id, ")");
      fence = at;
    }
    if (fence && !fence->reached()) backend_->wait_for(*fence);
  }
}

void KvTransfer::wait_all(const Loads& loads) {
  for (int layer = 0; layer < device_.layers; ++layer) wait_layer(loads, layer);
}

bool KvTransfer::writes(const Loads& loads, BlockId device_block) {
  for (const JobPtr& job : loads)
    for (const BlockMove& move : job->transfer.moves)
      if (move.device == device_block) return true;
  return false;
}

// --- the threads

bool KvTransfer::ready(const Job& job) const { return jobs_.count(job.transfer.after) == 0; }

// What a thread should go on with: urgent before others, reads before writes, then the oldest. A step
// takes the layers of all its loads in turn, and so do they.
KvTransfer::JobPtr KvTransfer::next(const Lane& lane) const {
  JobPtr best;
  std::pair<int, int> best_rank{-1, 0};
  for (const JobPtr& job : lane.waiting) {
    if (job->issued || !ready(*job)) continue;
    if (job->transfer.kind == TransferKind::kWrite && lane.writing) continue;
    const int layer = job->urgent ? job->next_layer() : 0;
    const std::pair<int, int> rank{2 * job->urgent + (job->transfer.kind != TransferKind::kWrite), -layer};
    if (!best || rank > best_rank) best = job, best_rank = rank;
  }
  return best;
}

// What was to go on from there has nothing to go on with.
void KvTransfer::inherit_failures(Job& job, std::span<const BlockId> hosts) {
  for (size_t i = 0; i < job.num_moves(); ++i)
    if (std::find(hosts.begin(), hosts.end(), job.host(i)) != hosts.end()) job.fail(i);
}

void KvTransfer::finish(Lane& lane, const JobPtr& job, double seconds) {
  job->finished = true;
  lane.waiting.erase(std::find(lane.waiting.begin(), lane.waiting.end(), job));
  jobs_.erase(job->transfer.id);
  if (!job->failed.empty()) {
    std::vector<BlockId>& hosts = failed_hosts_[job->transfer.id];
    for (size_t i = 0; i < job->num_moves(); ++i)
      if (job->has_failed(i)) hosts.push_back(job->host(i));
    for (auto& [id, later] : jobs_)
      if (later->transfer.after == job->transfer.id) inherit_failures(*later, hosts);
  }
  results_.push_back({.id = job->transfer.id, .seconds = seconds, .failed = std::move(job->failed)});
  job->failed = results_.back().failed;  // for steps that wait
  to_wake_ = true;
  work_.notify_all();
  progress_.notify_all();
}

void KvTransfer::wake(std::unique_lock<std::mutex>& lock) {
  if (!to_wake_) return;
  to_wake_ = false;
  lock.unlock();
  if (wake_) wake_();
  lock.lock();
}

void KvTransfer::reap(Lane& lane) {
  while (!lane.in_flight.empty()) {
    bool broken = false;
    const InFlight& first = lane.in_flight.front();
    try {
      if (!first.fence->reached()) return;
      first.job->seconds += first.fence->seconds_since(*first.start);
    } catch (const std::exception&) {
      broken = true;
    }
    const JobPtr job = first.job;
    const bool last = first.last;
    lane.in_flight.pop_front();
    if (broken) {
      abandon(lane, job);
    } else if (last) {
      finish(lane, job, job->seconds);
    }
  }
}

// The device is lost, or as good as: nothing is known of when copies that are under way will end.
void KvTransfer::abandon(Lane& lane, const JobPtr& job) {
  job->fail_all();
  job->issued = true;
  std::erase_if(lane.in_flight, [&](const InFlight& f) { return f.job == job; });
  finish(lane, job, 0);
}

// Without the lock: nobody else looks at these fields before the first group is issued.
void KvTransfer::prepare(Job& job, CopyStream& stream) {
  for (size_t i = 0; i < job.num_moves(); ++i) {
    if (job.has_failed(i)) continue;
    const BlockMove& move = job.transfer.moves[i];
    if (!host_->wait(move.host)) {
      job.fail(i);
      continue;
    }
    job.places.push_back(
        {device_.data + static_cast<size_t>(move.device) * device_.layer_bytes, host_->block(move.host)});
  }
  const int layers = device_.layers;
  const size_t places = job.places.size();
  const size_t layer_bytes = device_.layer_bytes * std::max<size_t>(places, 1);
  const int most = static_cast<int>(std::clamp<size_t>(options_.group_bytes / layer_bytes, 1, layers));
  if (job.transfer.kind == TransferKind::kStore) {
    const size_t blocks = std::max<size_t>(options_.store_bytes / host_->block_bytes(), 1);
    size_t first = 0;
    do {  // one at least: without places it is the end of the transfer
      job.groups.push_back({0, layers, first, std::min(first + blocks, places)});
      first += blocks;
    } while (first < places);
  } else if (!options_.by_layer || most >= layers) {
    job.groups.push_back({0, layers, 0, places});
  } else {
    // The first layer is what a step needs soonest; the last one goes with it, those between as time allows.
    job.groups.push_back({0, 1, 0, places});
    if (layers > 1) job.groups.push_back({layers - 1, layers, 0, places});
    for (int l = 1; l < layers - 1; l += most)
      job.groups.push_back({l, std::min(l + most, layers - 1), 0, places});
  }
  stream.wait_for(*job.ops);
}

void KvTransfer::copy_group(Lane& lane, const JobPtr& job, std::unique_lock<std::mutex>& lock) {
  const size_t group = job->next;
  lock.unlock();
  // Of this group alone: between its groups a transfer may wait for others, or for the step that it is to
  // serve.
  std::shared_ptr<Fence> start, fence;
  bool last = false, broken = false;
  Job::Group part{};
  try {
    if (group == 0) prepare(*job, *lane.stream);
    part = job->groups[group];
    last = group + 1 == job->groups.size();
    const size_t device_pitch = device_.layer_bytes * static_cast<size_t>(device_.num_blocks);
    std::vector<PlacePair> places(job->places.begin() + static_cast<std::ptrdiff_t>(part.first_place),
                                  job->places.begin() + static_cast<std::ptrdiff_t>(part.last_place));
    for (PlacePair& p : places) {
      p.device += device_pitch * static_cast<size_t>(part.first_layer);
      p.host += device_.layer_bytes * static_cast<size_t>(part.first_layer);
    }
    start = lane.stream->fence(true);
    lane.stream->copy(
        job->transfer.kind == TransferKind::kLoad ? CopyDirection::kToDevice : CopyDirection::kToHost,
        {.places = places,
         .rows = part.last_layer - part.first_layer,
         .bytes = device_.layer_bytes,
         .device_pitch = device_pitch,
         .host_pitch = device_.layer_bytes});
    fence = lane.stream->fence(true);
  } catch (const std::exception&) {
    broken = true;
  }
  lock.lock();
  if (broken) return abandon(lane, job);
  ++job->next;
  job->issued = last;
  if (last) job->end = fence;
  for (int l = part.first_layer; l < part.last_layer; ++l) job->layers[static_cast<size_t>(l)] = fence;
  lane.in_flight.push_back({job, std::move(start), std::move(fence), last});
  if (job->urgent || last) progress_.notify_all();
}

void KvTransfer::run_copies(Lane& lane) {
  std::unique_lock lock(mutex_);
  try {
    lane.stream = backend_->make_copy_stream();
  } catch (const std::exception&) {
  }
  while (!stop_) {
    reap(lane);
    wake(lock);
    if (stop_) break;
    const JobPtr job = next(lane);
    if (job && !lane.stream) {
      abandon(lane, job);
    } else if (job && (job->urgent || lane.in_flight.size() < kGroupsInFlight)) {
      copy_group(lane, job, lock);
    } else if (!lane.in_flight.empty()) {
      work_.wait_for(lock, kPoll);
    } else {
      work_.wait(lock);
    }
  }
  lane.in_flight.clear();
  lock.unlock();
  lane.stream.reset();  // waits for its copies
}

// --- the disk

// The moves that a thread takes next. Few at a time, so that others can help, and that a read comes between
// the blocks of a long write. What has failed already is passed over.
std::vector<size_t> KvTransfer::take_share(Job& job) const {
  const size_t most = job.transfer.kind == TransferKind::kWrite
                          ? 1
                          : std::max<size_t>(options_.read_bytes / host_->block_bytes(), 1);
  std::vector<size_t> share;
  for (; job.next < job.num_moves() && share.size() < most; ++job.next)
    if (!job.has_failed(job.next)) share.push_back(job.next);
  job.issued = job.next == job.num_moves();
  return share;
}

bool KvTransfer::write(const Job& job, size_t index) {
  const DiskMove& move = job.transfer.disk[index];
  return host_->wait(move.host) && options_.disk.write(move.slot, job.transfer.records[index],
                                                       {host_->block(move.host), host_->block_bytes()});
}

// Returns what failed.
std::vector<size_t> KvTransfer::carry_out(const Job& job, std::span<const size_t> share) {
  std::vector<size_t> failed;
  std::vector<BlockRead> reads;
  std::vector<size_t> read;  // of `reads`: the move
  try {
    for (size_t i : share) {
      if (job.transfer.kind == TransferKind::kWrite) {
        if (!write(job, i)) failed.push_back(i);
        continue;
      }
      const DiskMove& move = job.transfer.disk[i];
      if (!host_->wait(move.host)) {
        failed.push_back(i);
        continue;
      }
      auto* const block = reinterpret_cast<uint8_t*>(host_->block(move.host));
      reads.push_back({move.slot, job.transfer.records[i].key, {block, host_->block_bytes()}, false});
      read.push_back(i);
    }
    if (!reads.empty()) options_.disk.read(reads);
  } catch (const std::exception&) {
    return {share.begin(), share.end()};
  }
  for (size_t i = 0; i < reads.size(); ++i)
    if (!reads[i].done) failed.push_back(read[i]);
  return failed;
}

void KvTransfer::run_disk(Lane& lane) {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    wake(lock);
    if (stop_) break;
    const JobPtr job = next(lane);
    if (!job) {
      work_.wait(lock);
      continue;
    }
    const bool writes = job->transfer.kind == TransferKind::kWrite;
    const std::vector<size_t> share = take_share(*job);
    const Clock::time_point begin = Clock::now();
    if (!job->begun) job->begun = begin;
    ++job->num_shares;
    lane.writing |= writes;
    lock.unlock();
    const std::vector<size_t> failed = carry_out(*job, share);
    lock.lock();
    const Clock::time_point end = Clock::now();
    for (size_t i : failed) job->fail(i);
    if (writes) {
      lane.writing = false;
      job->seconds += std::chrono::duration<double>(end - begin).count();
    }
    if (--job->num_shares > 0 || !job->issued) continue;
    if (!writes) {
      job->seconds = std::chrono::duration<double>(end - std::max(*job->begun, lane.read_until)).count();
      lane.read_until = end;
    }
    finish(lane, job, job->seconds);
  }
}

}  // namespace taco
