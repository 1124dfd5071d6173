#include "backend/cuda/cuda_backend.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "backend/cuda/copy_stream.h"
#include "backend/cuda/linear/cublaslt.h"
#include "backend/cuda/linear/linear.h"
#include "backend/cuda/moe/moe.h"
#include "backend/cuda/ops/ops.h"

namespace taco::cuda {
namespace {

struct CudaGraph final : Graph {
  cudaGraphExec_t exec = nullptr;
  ~CudaGraph() override {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
};

bool env_is(const char* name, const char* value) {
  const char* found = std::getenv(name);
  return found != nullptr && std::strcmp(found, value) == 0;
}

}  // namespace

CudaBackend::CudaBackend(const CudaOptions& options) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    fail(ErrorCode::kUnavailable, "no CUDA device can be used: ",
         error == cudaSuccess ? "the driver shows none" : cudaGetErrorString(error),
         "; check nvidia-smi, or use --device cpu");
  }
  TACO_REQUIRE(options.device >= 0 && options.device < count, "there is no CUDA device ", options.device,
               ": this machine has ", count);
  TACO_CUDA_CHECK(cudaSetDevice(options.device));
  cudaDeviceProp properties;
  TACO_CUDA_CHECK(cudaGetDeviceProperties(&properties, options.device));
  device_name_ = properties.name;
  ctx_.device = options.device;
  ctx_.num_sms = properties.multiProcessorCount;
  ctx_.capability = properties.major * 10 + properties.minor;
  if (ctx_.capability < 80) {
    fail(ErrorCode::kUnavailable, "the CUDA backend needs compute capability 8.0 or newer; ", device_name_,
         " has ", properties.major, ".", properties.minor, ": use --device cpu");
  }
  if (env_is("TACO_CUDA_ISA", "80")) ctx_.capability = 80;
  ctx_.pdl = !env_is("TACO_PDL", "0");
  ctx_.max_smem = properties.sharedMemPerBlockOptin;
  ctx_.max_pitch = properties.memPitch;
  ctx_.batch_invariant = options.batch_invariant;
  TACO_CUDA_CHECK(cudaStreamCreateWithFlags(&ctx_.stream, cudaStreamNonBlocking));
  for (cudaEvent_t& event : events_)
    TACO_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  ctx_.lt = std::make_shared<CublasLt>(options.cublaslt);
  attention_ = std::make_unique<Attention>(ctx_);
  if (options.offload_bytes > 0) offloader_ = std::make_unique<Offloader>(ctx_, options.offload_bytes);
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(ctx_.device);
  cudaStreamSynchronize(ctx_.stream);
  attention_.reset();
  offloader_.reset();
  for (cudaEvent_t event : events_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (ctx_.stream != nullptr) cudaStreamDestroy(ctx_.stream);
}

std::string CudaBackend::name() const { return str_cat("cuda:", ctx_.device); }

std::string CudaBackend::description() const {
  return str_cat(device_name_, ", compute capability ", ctx_.capability / 10, ".", ctx_.capability % 10, ", ",
                 ctx_.num_sms, " multiprocessors, ", memory().total >> 30, " GiB",
                 ctx_.batch_invariant ? ", batch-invariant" : "");
}

DeviceMemory CudaBackend::memory() const {
  size_t available = 0, total = 0;
  TACO_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return {total, available};
}

std::vector<int64_t> CudaBackend::rows_to_warm(int64_t most) const {
  return ctx_.lt->available() ? CublasLt::tuned_rows(most) : std::vector<int64_t>();
}

void* CudaBackend::allocate(size_t bytes, bool zero) {
  void* data = nullptr;
  TACO_CUDA_CHECK(cudaSetDevice(ctx_.device));  // the first call of another thread
  TACO_CUDA_CHECK(cudaMalloc(&data, bytes == 0 ? 1 : bytes));
  if (zero) TACO_CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, ctx_.stream));
  return data;
}
void CudaBackend::release(void* data) noexcept { cudaFree(data); }

void CudaBackend::synchronize() { TACO_CUDA_CHECK(cudaStreamSynchronize(ctx_.stream)); }

void CudaBackend::upload(void* device, const void* source, size_t bytes) {
  TACO_CUDA_CHECK(cudaMemcpyAsync(device, source, bytes, cudaMemcpyHostToDevice, ctx_.stream));
  synchronize();
}
void CudaBackend::download(void* host, const void* source, size_t bytes) {
  TACO_CUDA_CHECK(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, ctx_.stream));
  synchronize();
}
void* CudaBackend::allocate_host(size_t bytes) {
  void* data = nullptr;
  TACO_CUDA_CHECK(cudaMallocHost(&data, bytes == 0 ? 1 : bytes));
  return data;
}
void CudaBackend::release_host(void* data) noexcept { cudaFreeHost(data); }
void CudaBackend::upload_async(void* device, const void* source, size_t bytes) {
  if (run_small_copy(device, bytes, source, bytes, 1, ctx_)) return;
  TACO_CUDA_CHECK(cudaMemcpyAsync(device, source, bytes, cudaMemcpyHostToDevice, ctx_.stream));
}
void CudaBackend::download_async(void* host, const void* source, size_t bytes) {
  if (run_small_copy(host, bytes, source, bytes, 1, ctx_)) return;
  TACO_CUDA_CHECK(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, ctx_.stream));
}

void CudaBackend::upload_rows_async(void* device, size_t pitch, const void* source, size_t width,
                                    int64_t rows) {
  if (run_small_copy(device, pitch, source, width, rows, ctx_)) return;
  TACO_CUDA_CHECK(cudaMemcpy2DAsync(device, pitch, source, width, width, static_cast<size_t>(rows),
                                    cudaMemcpyHostToDevice, ctx_.stream));
}

uint64_t CudaBackend::mark() {
  ++marks_;
  TACO_CUDA_CHECK(cudaEventRecord(events_[marks_ % kMarks], ctx_.stream));
  return marks_;
}
void CudaBackend::wait(uint64_t mark) {
  TACO_CHECK(mark <= marks_, "mark ", mark, " was never made; the last is ", marks_);
  if (mark == 0) return;
  // Of an older mark the event is in use again; the oldest that is kept comes after it.
  if (marks_ - mark >= kMarks) mark = marks_ + 1 - kMarks;
  TACO_CUDA_CHECK(cudaEventSynchronize(events_[mark % kMarks]));
}

std::unique_ptr<CopyStream> CudaBackend::make_copy_stream() { return make_cuda_copy_stream(ctx_); }
std::shared_ptr<Fence> CudaBackend::fence() { return std::make_shared<CudaFence>(ctx_.stream, false); }
void CudaBackend::wait_for(const Fence& fence) {
  TACO_CUDA_CHECK(cudaStreamWaitEvent(ctx_.stream, static_cast<const CudaFence&>(fence).event(), 0));
  ctx_.behind_fence = true;
}
void CudaBackend::copy_rows(CopyDirection direction, const RowCopies& copies) {
  issue_copies(direction, copies, ctx_, ctx_.stream);
}
void CudaBackend::pin_host(void* data, size_t bytes) {
  TACO_CUDA_CHECK(cudaSetDevice(ctx_.device));
  const cudaError_t error = cudaHostRegister(data, bytes, cudaHostRegisterDefault);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(ErrorCode::kResourceExhausted, "cannot pin ", bytes >> 20,
       " MiB of host memory: ", cudaGetErrorString(error));
}
void CudaBackend::unpin_host(void* data) noexcept { cudaHostUnregister(data); }

std::unique_ptr<Graph> CudaBackend::capture(const std::function<void()>& ops) {
  auto graph = std::make_unique<CudaGraph>();
  cudaGraph_t recorded = nullptr;
  ctx_.behind_fence = false;  // a graph begins when all before it has ended
  TACO_CUDA_CHECK(cudaStreamBeginCapture(ctx_.stream, cudaStreamCaptureModeThreadLocal));
  try {
    ops();
  } catch (...) {
    cudaStreamEndCapture(ctx_.stream, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    throw;
  }
  TACO_CUDA_CHECK(cudaStreamEndCapture(ctx_.stream, &recorded));
  cudaError_t error = cudaGraphInstantiate(&graph->exec, recorded, 0);
  cudaGraphDestroy(recorded);
  TACO_CUDA_CHECK(error);
  TACO_CUDA_CHECK(cudaGraphUpload(graph->exec, ctx_.stream));
  return graph;
}
void CudaBackend::replay(Graph& graph) {
  ctx_.behind_fence = false;
  TACO_CUDA_CHECK(cudaGraphLaunch(static_cast<CudaGraph&>(graph).exec, ctx_.stream));
}

std::unique_ptr<Linear> CudaBackend::prepare_linear(std::span<const HostMatrix> parts, const float* bias,
                                                    const LinearOptions& options) {
  std::unique_ptr<Linear> linear = cuda::prepare_linear(parts, bias, options, ctx_);
  if (offloader_ && options.offloadable) offloader_->adopt(static_cast<CudaLinear&>(*linear));
  return linear;
}
std::unique_ptr<Embedding> CudaBackend::prepare_embedding(const HostMatrix& table, DType compute) {
  return cuda::prepare_embedding(table, compute, ctx_);
}

// An op that writes a buffer makes its FP8 rows stale; one that has an FP8 consumer makes new ones.
void CudaBackend::embedding(const EmbeddingParams& p) {
  ctx_.forget_quantized(p.out);
  run_embedding(p, ctx_);
}
void CudaBackend::norm(const NormParams& p) {
  ctx_.forget_quantized(p.out);
  run_norm(p, ctx_);
}
void CudaBackend::linear(const LinearParams& p) {
  ctx_.forget_quantized(p.out);
  const CudaLinear& weight = as_cuda(*p.weight);
  if (!offloader_ || !offloader_->holds(weight)) return run_linear(p, ctx_);
  offloader_->acquire(weight);
  const bool pdl = std::exchange(ctx_.pdl, false);  // a kernel must not read the weight ahead of its copy
  run_linear(p, ctx_);
  ctx_.pdl = pdl;
  offloader_->release(weight);
}
void CudaBackend::rope_and_cache(const RopeAndCacheParams& p) { run_rope_and_cache(p, ctx_); }
void CudaBackend::attention(const AttentionParams& p) {
  ctx_.forget_quantized(p.out);
  attention_->run(p);
}
void CudaBackend::moe(const MoeParams& p) {
  ctx_.forget_quantized(p.out);
  run_moe(p, ctx_);
}
void CudaBackend::gather_rows(const GatherRowsParams& p) {
  ctx_.forget_quantized(p.out);
  run_gather_rows(p, ctx_);
}
void CudaBackend::scale_logits(const ScaleLogitsParams& p) { run_scale_logits(p, ctx_); }
void CudaBackend::mask_logits(const MaskLogitsParams& p) { run_mask_logits(p, ctx_); }
void CudaBackend::copy_blocks(const CopyBlocksParams& p) { run_copy_blocks(p, ctx_); }
void CudaBackend::copy_slots(const CopySlotsParams& p) { run_copy_slots(p, ctx_); }
void CudaBackend::sample(const SampleParams& p) { run_sample(p, ctx_); }
void CudaBackend::patch_ids(const PatchIdsParams& p) { run_patch_ids(p, ctx_); }

}  // namespace taco::cuda
