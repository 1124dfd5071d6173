// Host memory for KV blocks: swap space and the host tier of the prefix cache.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/backend.h"

namespace taco {

// Makes whole pages fast for a device's copies (throws where it cannot), and takes that back. Any thread.
struct HostPinning {
  std::function<void(void* data, size_t bytes)> pin;  // empty: there is no need
  std::function<void(void* data)> unpin;
};

// One range of addresses [num_blocks][block_bytes]. Where the backend wants its pages pinned, threads do that
// from the first block on, piece by piece: tens of GiB take longer than anybody would wait at start.
class HostBlocks {
 public:
  // Throws kResourceExhausted.
  HostBlocks(HostPinning pinning, int64_t num_blocks, size_t block_bytes);
  HostBlocks(std::shared_ptr<Backend> backend, int64_t num_blocks, size_t block_bytes);
  ~HostBlocks();
  HostBlocks(const HostBlocks&) = delete;

  int64_t num_blocks() const { return num_blocks_; }
  size_t block_bytes() const { return block_bytes_; }
  char* block(int64_t id) const { return data_ + static_cast<size_t>(id) * block_bytes_; }
  // Blocks that may be copied, counted from the first.
  int64_t num_ready() const;
  // Until the block may be copied; false if it never will be: its memory could not be had, or stop() was
  // called. Any thread.
  bool wait(int64_t id);
  void stop();  // nobody waits any longer

 private:
  void pin();
  int64_t piece_of(int64_t id) const { return id / piece_blocks_; }

  HostPinning pinning_;
  int64_t num_blocks_, piece_blocks_ = 0, num_pieces_ = 0;
  size_t block_bytes_, bytes_;
  char* data_ = nullptr;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t next_piece_ = 0;
  enum class State : uint8_t { kWaiting, kReady, kFailed };
  std::vector<State> pieces_;
  std::atomic<bool> stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace taco
