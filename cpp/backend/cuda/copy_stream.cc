#include "backend/cuda/copy_stream.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace taco::cuda {
namespace {

// More in one call hold the driver's locks for longer and run no faster.
constexpr size_t kBatch = 128;

cudaMemcpyKind kind_of(CopyDirection direction) {
  return direction == CopyDirection::kToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
}

void copy_one(CopyDirection direction, char* device, char* host, size_t bytes, cudaStream_t stream) {
  const bool up = direction == CopyDirection::kToDevice;
  TACO_CUDA_CHECK(cudaMemcpyAsync(up ? device : host, up ? host : device, bytes, kind_of(direction), stream));
}

void copy_pitched(CopyDirection direction, const RowCopies& c, const PlacePair& p, cudaStream_t stream) {
  const bool up = direction == CopyDirection::kToDevice;
  TACO_CUDA_CHECK(cudaMemcpy2DAsync(up ? p.device : p.host, up ? c.device_pitch : c.host_pitch,
                                    up ? p.host : p.device, up ? c.host_pitch : c.device_pitch, c.bytes,
                                    static_cast<size_t>(c.rows), kind_of(direction), stream));
}

// False if this driver has no batches.
bool copy_batch(std::vector<void*>& to, std::vector<void*>& from, std::vector<size_t>& sizes,
                cudaStream_t stream) {
  cudaMemcpyAttributes attributes = {};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaMemcpyBatchAsync(to.data(), const_cast<const void**>(from.data()),
                                                 sizes.data(), to.size(), &attributes, &first, 1, stream);
#else
  size_t failed = 0;
  const cudaError_t error = cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(), &attributes,
                                                 &first, 1, &failed, stream);
#endif
  if (error == cudaErrorCallRequiresNewerDriver || error == cudaErrorNotSupported) {
    cudaGetLastError();
    return false;
  }
  TACO_CUDA_CHECK(error);
  return true;
}

std::atomic<bool> has_batches{true};

// Row by row, so that the first layer of all places comes first.
void copy_rows_in_batches(CopyDirection direction, const RowCopies& c, cudaStream_t stream) {
  std::vector<void*> to, from;
  std::vector<size_t> sizes;
  auto flush = [&] {
    if (to.empty()) return;
    if (!has_batches || !copy_batch(to, from, sizes, stream)) {
      has_batches = false;
      for (size_t i = 0; i < to.size(); ++i)
        TACO_CUDA_CHECK(cudaMemcpyAsync(to[i], from[i], sizes[i], kind_of(direction), stream));
    }
    to.clear(), from.clear(), sizes.clear();
  };
  for (int row = 0; row < c.rows; ++row) {
    for (const PlacePair& p : c.places) {
      char* device = p.device + static_cast<size_t>(row) * c.device_pitch;
      char* host = p.host + static_cast<size_t>(row) * c.host_pitch;
      to.push_back(direction == CopyDirection::kToDevice ? device : host);
      from.push_back(direction == CopyDirection::kToDevice ? host : device);
      sizes.push_back(c.bytes);
      if (to.size() == kBatch) flush();
    }
  }
  flush();
}

class CudaCopyStream final : public CopyStream {
 public:
  explicit CudaCopyStream(const Context& ctx) : ctx_(ctx) {
    TACO_CUDA_CHECK(cudaSetDevice(ctx.device));  // of this thread
    TACO_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CudaCopyStream() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  void wait_for(const Fence& fence) override {
    TACO_CUDA_CHECK(cudaStreamWaitEvent(stream_, static_cast<const CudaFence&>(fence).event(), 0));
  }
  void copy(CopyDirection direction, const RowCopies& copies) override {
    issue_copies(direction, copies, ctx_, stream_);
  }
  std::shared_ptr<Fence> fence(bool timed) override { return std::make_shared<CudaFence>(stream_, timed); }

 private:
  const Context& ctx_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

CudaFence::CudaFence(cudaStream_t stream, bool timed) {
  TACO_CUDA_CHECK(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming));
  const cudaError_t error = cudaEventRecord(event_, stream);
  if (error == cudaSuccess) return;
  cudaEventDestroy(event_);
  TACO_CUDA_CHECK(error);
}
CudaFence::~CudaFence() { cudaEventDestroy(event_); }

bool CudaFence::reached() {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  TACO_CUDA_CHECK(error);
  return true;
}

double CudaFence::seconds_since(const Fence& earlier) const {
  float ms = 0;
  TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, static_cast<const CudaFence&>(earlier).event_, event_));
  return ms * 1e-3;
}

void issue_copies(CopyDirection direction, const RowCopies& c, const Context& ctx, cudaStream_t stream) {
  const size_t pitch = std::max(c.device_pitch, c.host_pitch);
  if (c.rows > 1 && direction == CopyDirection::kToHost && pitch <= ctx.max_pitch) {
    for (const PlacePair& p : c.places) copy_pitched(direction, c, p, stream);
  } else if (c.rows == 1 && c.places.size() == 1) {
    copy_one(direction, c.places[0].device, c.places[0].host, c.bytes, stream);
  } else {
    copy_rows_in_batches(direction, c, stream);
  }
}

std::unique_ptr<CopyStream> make_cuda_copy_stream(const Context& ctx) {
  return std::make_unique<CudaCopyStream>(ctx);
}

}  // namespace taco::cuda
