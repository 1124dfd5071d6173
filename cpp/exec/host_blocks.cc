#include "exec/host_blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace taco {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
// Of what is pinned at once: the driver holds its locks for as long as that takes (23 ms for a GiB of huge
// pages).
constexpr size_t kPiece = size_t{64} << 20;
constexpr int kMaxThreads = 8;

HostPinning pinning_of(std::shared_ptr<Backend> backend) {
  if (!backend->needs_pinning()) return {};
  return {.pin = [backend](void* data, size_t bytes) { backend->pin_host(data, bytes); },
          .unpin = [backend](void* data) { backend->unpin_host(data); }};
}

}  // namespace

HostBlocks::HostBlocks(std::shared_ptr<Backend> backend, int64_t num_blocks, size_t block_bytes)
    : HostBlocks(pinning_of(std::move(backend)), num_blocks, block_bytes) {}

HostBlocks::HostBlocks(HostPinning pinning, int64_t num_blocks, size_t block_bytes)
    : pinning_(std::move(pinning)), num_blocks_(num_blocks), block_bytes_(block_bytes) {
  TACO_CHECK(num_blocks > 0 && block_bytes > 0, num_blocks, " host blocks of ", block_bytes, " bytes");
  // Pieces begin and end with a block and with a page.
  const auto unit = static_cast<int64_t>(kPage / std::gcd(kPage, block_bytes_));
  const auto wanted = static_cast<int64_t>(std::max<size_t>(kPiece / block_bytes_, 1));
  piece_blocks_ = (wanted + unit - 1) / unit * unit;
  num_pieces_ = (num_blocks_ + piece_blocks_ - 1) / piece_blocks_;
  bytes_ = (static_cast<size_t>(num_blocks_) * block_bytes_ + kPage - 1) / kPage * kPage;
  void* base = mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    fail(ErrorCode::kResourceExhausted, "cannot allocate ", bytes_ >> 20,
         " MiB of host memory for KV blocks: lower --swap-space or --cpu-prefill-memory-utilization");
  }
  // From a huge page's start; what is left over on both sides goes back.
  auto* start = static_cast<char*>(base);
  const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
  if (skip > 0) munmap(start, skip);
  data_ = start + skip;
  if (skip < kHugePage) munmap(data_ + bytes_, kHugePage - skip);
  madvise(data_, bytes_, MADV_HUGEPAGE);
  if (!pinning_.pin) {
    pieces_.assign(static_cast<size_t>(num_pieces_), State::kReady);
    return;
  }
  pieces_.assign(static_cast<size_t>(num_pieces_), State::kWaiting);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int count = static_cast<int>(std::min<int64_t>(std::clamp(cores / 2, 2, kMaxThreads), num_pieces_));
  for (int i = 0; i < count; ++i) threads_.emplace_back([this] { pin(); });
}

HostBlocks::~HostBlocks() {
  stop();
  for (std::thread& t : threads_) t.join();
  if (pinning_.pin) {
    for (int64_t i = 0; i < num_pieces_; ++i)
      if (pieces_[static_cast<size_t>(i)] == State::kReady) pinning_.unpin(block(i * piece_blocks_));
  }
  munmap(data_, bytes_);
}

void HostBlocks::pin() {
  for (;;) {
    int64_t piece;
    {
      std::lock_guard lock(mutex_);
      if (stop_ || next_piece_ == num_pieces_) return;
      piece = next_piece_++;
    }
    char* begin = block(piece * piece_blocks_);
    const size_t size = std::min(static_cast<size_t>(piece_blocks_) * block_bytes_,
                                 static_cast<size_t>(data_ + bytes_ - begin));
    State state = State::kReady;
    try {
      // Pinning would touch the pages too, but one by one and with the driver's locks held.
      for (size_t i = 0; i < size; i += kPage) const_cast<volatile char&>(begin[i]) = 0;
      pinning_.pin(begin, size);
    } catch (const std::exception&) {
      state = State::kFailed;
    }
    std::lock_guard lock(mutex_);
    pieces_[static_cast<size_t>(piece)] = state;
    changed_.notify_all();
  }
}

int64_t HostBlocks::num_ready() const {
  std::lock_guard lock(mutex_);
  int64_t piece = 0;
  while (piece < num_pieces_ && pieces_[static_cast<size_t>(piece)] == State::kReady) ++piece;
  return std::min(piece * piece_blocks_, num_blocks_);
}

bool HostBlocks::wait(int64_t id) {
  std::unique_lock lock(mutex_);
  const State& state = pieces_[static_cast<size_t>(piece_of(id))];
  changed_.wait(lock, [&] { return state != State::kWaiting || stop_; });
  return state == State::kReady;
}

void HostBlocks::stop() {
  std::lock_guard lock(mutex_);
  stop_ = true;
  changed_.notify_all();
}

}  // namespace taco
