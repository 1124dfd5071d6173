#include "backend/cuda/linear/upload.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/cuda/check.h"

namespace taco::cuda {
namespace {

constexpr size_t kBuffer = 8u << 20;
constexpr size_t kSlice = 4u << 20;  // two buffers' worth of work in flight for each thread

}  // namespace

struct Uploader::Impl {
  struct Job {
    char* device;
    size_t bytes, slice;
    cudaStream_t stream;
    const std::function<void(void*, size_t, size_t)>* fill;
  };
  struct Worker {
    std::thread thread;
    void* buffers[2] = {};
    cudaEvent_t copied[2] = {};
    int next = 0;
  };

  int device;
  std::mutex mutex;
  std::condition_variable start, finished;
  std::vector<Worker> workers;
  Job job = {};
  size_t next_slice = 0;
  uint64_t generation = 0;
  int busy = 0;
  bool stop = false;
  std::exception_ptr error;

  explicit Impl(int device_id) : device(device_id) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    workers.resize(static_cast<size_t>(std::clamp(cores / 2, 1, 8)));
    for (Worker& w : workers) {
      for (int i = 0; i < 2; ++i) {
        TACO_CUDA_CHECK(cudaMallocHost(&w.buffers[i], kBuffer));
        TACO_CUDA_CHECK(cudaEventCreateWithFlags(&w.copied[i], cudaEventDisableTiming));
      }
    }
    for (Worker& w : workers) w.thread = std::thread([this, &w] { loop(w); });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    start.notify_all();
    for (Worker& w : workers) {
      if (w.thread.joinable()) w.thread.join();
      for (int i = 0; i < 2; ++i) {
        if (w.copied[i] != nullptr) {
          cudaEventSynchronize(w.copied[i]);
          cudaEventDestroy(w.copied[i]);
        }
        cudaFreeHost(w.buffers[i]);
      }
    }
  }

  void loop(Worker& w) {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex);
        start.wait(lock, [&] { return stop || generation != seen; });
        if (stop) return;
        seen = generation;
      }
      std::exception_ptr failure;
      try {
        work(w);
      } catch (...) {
        failure = std::current_exception();
      }
      std::lock_guard lock(mutex);
      if (failure && !error) error = failure;
      if (--busy == 0) finished.notify_all();
    }
  }

  void work(Worker& w) {
    TACO_CUDA_CHECK(cudaSetDevice(device));
    for (;;) {
      size_t begin;
      {
        std::lock_guard lock(mutex);
        if (error) return;
        begin = next_slice;
        next_slice += job.slice;
      }
      if (begin >= job.bytes) return;
      const size_t bytes = std::min(job.slice, job.bytes - begin);
      const int i = w.next;
      w.next ^= 1;
      TACO_CUDA_CHECK(cudaEventSynchronize(w.copied[i]));
      (*job.fill)(w.buffers[i], begin, bytes);
      TACO_CUDA_CHECK(
          cudaMemcpyAsync(job.device + begin, w.buffers[i], bytes, cudaMemcpyHostToDevice, job.stream));
      TACO_CUDA_CHECK(cudaEventRecord(w.copied[i], job.stream));
    }
  }

  void run(const Job& next) {
    std::unique_lock lock(mutex);
    job = next;
    next_slice = 0;
    error = nullptr;
    busy = static_cast<int>(workers.size());
    ++generation;
    start.notify_all();
    finished.wait(lock, [&] { return busy == 0; });
    if (error) std::rethrow_exception(error);
  }
};

Uploader::Uploader(int device) : impl_(std::make_unique<Impl>(device)) {}
Uploader::~Uploader() = default;

void Uploader::produce(void* device, size_t bytes, size_t unit, cudaStream_t stream,
                       const std::function<void(void*, size_t, size_t)>& fill) {
  if (bytes == 0) return;
  TACO_CHECK(unit > 0 && unit <= kBuffer, "an upload's unit of ", unit, " bytes");
  // Small jobs are cut finer, so that all threads have something to do.
  const size_t share = std::max(bytes / impl_->workers.size(), size_t{256} << 10);
  const size_t slice = std::max<size_t>(1, std::min(kSlice, share) / unit) * unit;
  impl_->run({static_cast<char*>(device), bytes, slice, stream, &fill});
}

void Uploader::copy(void* device, const void* source, size_t bytes, cudaStream_t stream) {
  produce(device, bytes, 1, stream, [source](void* buffer, size_t begin, size_t count) {
    std::memcpy(buffer, static_cast<const char*>(source) + begin, count);
  });
}

}  // namespace taco::cuda
