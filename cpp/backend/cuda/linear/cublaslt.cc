#include "backend/cuda/linear/cublaslt.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "backend/cuda/context.h"

namespace taco::cuda {
namespace {

constexpr size_t kWorkspace = kCublasWorkspace;
constexpr int kCandidates = 8;
constexpr int64_t kTuneRows = 48;  // products of fewer rows take the heuristic's first choice

// Values of cublasLt.h and library_types.h; they are part of the library's ABI.
constexpr int kComputeF32 = 68, kComputeF32Pedantic = 69;
constexpr int kOpT = 1;
constexpr int kDescTransA = 3, kDescScaleA = 17, kDescScaleB = 18, kDescFastAccum = 25, kDescScaleModeA = 31,
              kDescScaleModeB = 32;
constexpr int32_t kScaleOuterVector = 3;
constexpr int kPrefWorkspace = 1, kPrefReductionMask = 3, kPrefAlignA = 5, kPrefAlignB = 6, kPrefAlignC = 7,
              kPrefAlignD = 8;
constexpr uint32_t kReductionsInFloat = 1 | 2;  // in place, or in the compute type; never in 16 bits

using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;
struct HeuristicResult {
  uint64_t algo[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 2;
    case DType::kBF16:
      return 14;
    case DType::kF8E4M3:
      return 28;
    default:
      return -1;
  }
}

int64_t bucket(int64_t m) {
  int64_t step = m <= 64 ? 16 : m <= 512 ? 64 : m <= 2048 ? 256 : 1024;
  return (m + step - 1) / step * step;
}

int alignment(const void* a, int64_t a_pitch, const void* b, int64_t b_pitch, const void* c,
              int64_t c_pitch) {
  uint64_t bits = reinterpret_cast<uint64_t>(a) | static_cast<uint64_t>(a_pitch) |
                  reinterpret_cast<uint64_t>(b) | static_cast<uint64_t>(b_pitch) |
                  reinterpret_cast<uint64_t>(c) | static_cast<uint64_t>(c_pitch) | 16;
  return static_cast<int>(bits & ~(bits - 1));
}

}  // namespace

struct CublasLt::Api {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  size_t (*version)();
  int (*matmul)(Handle, Desc, const void*, const void*, Layout, const void*, Layout, const void*, const void*,
                Layout, void*, Layout, const void*, void*, size_t, cudaStream_t);
  int (*layout_create)(Layout*, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(Layout);
  int (*desc_create)(Desc*, int, int);
  int (*desc_destroy)(Desc);
  int (*desc_set)(Desc, int, const void*, size_t);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int, const void*, size_t);
  int (*heuristic)(Handle, Desc, Layout, Layout, Layout, Layout, Preference, int, HeuristicResult*, int*);
};

// The descriptors of one product. The library is column-major: y^T[n, m] = (W^T)^T x^T, so its A is W.
struct CublasLt::Call {
  const Api& api;
  Handle handle;
  Desc desc = nullptr;
  Layout a = nullptr, b = nullptr, d = nullptr;
  int align = 16;
  bool good = true;

  Call(const Api& functions, Handle lt, const Matmul& p) : api(functions), handle(lt) {
    const int in = cuda_type(p.in), out = cuda_type(p.out);
    good = in >= 0 && out >= 0;
    const int in_size = static_cast<int>(dtype_size(p.in)), out_size = static_cast<int>(dtype_size(p.out));
    align = alignment(p.w, p.k * in_size, p.x, p.x_stride * in_size, p.y, p.y_stride * out_size);
    check(api.desc_create(&desc, p.in == DType::kF32 ? kComputeF32Pedantic : kComputeF32, 0));
    set(kDescTransA, int32_t{kOpT});
    if (p.in == DType::kF8E4M3) {
      set(kDescFastAccum, int8_t{1});
      if (p.w_scales != nullptr) set(kDescScaleA, static_cast<const void*>(p.w_scales));
      if (p.x_scales != nullptr) {
        set(kDescScaleB, static_cast<const void*>(p.x_scales));
        set(kDescScaleModeA, kScaleOuterVector);
        set(kDescScaleModeB, kScaleOuterVector);
      }
    }
    check(api.layout_create(&a, in, static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.n), p.k));
    check(api.layout_create(&b, in, static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.m), p.x_stride));
    check(api.layout_create(&d, out, static_cast<uint64_t>(p.n), static_cast<uint64_t>(p.m), p.y_stride));
  }
  ~Call() {
    if (desc != nullptr) api.desc_destroy(desc);
    for (Layout layout : {a, b, d}) {
      if (layout != nullptr) api.layout_destroy(layout);
    }
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool run(const Matmul& p, void* y, const Plan& plan, void* workspace, cudaStream_t stream) {
    return good && api.matmul(handle, desc, &p.alpha, p.w, a, p.x, b, &p.beta, y, d, y, d, plan.algo,
                              workspace, plan.workspace, stream) == 0;
  }

 private:
  void check(int status) { good = good && status == 0; }
  template <typename T>
  void set(int attribute, T value) {
    if (good) check(api.desc_set(desc, attribute, &value, sizeof(T)));
  }
};

CublasLt::CublasLt(const std::string& path) {
  std::string why = load(path);
  if (!why.empty()) {
    handle_ = nullptr;
    problem_ = str_cat("cuBLASLt cannot be used (", why, "): pip install nvidia-cublas");
  }
}

// What is wrong, or nothing.
std::string CublasLt::load(const std::string& path) {
  std::string tried;
  auto open = [&](const char* name) {
    if (library_ != nullptr) return;
    library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) tried += str_cat(tried.empty() ? "" : "; ", dlerror());
  };
  if (!path.empty()) {
    open(path.c_str());
  } else {
    open("libcublasLt.so.13");
    open("libcublasLt.so.12");
  }
  if (library_ == nullptr) return tried;
  auto api = std::make_unique<Api>();
  std::string missing;
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library_, name));
    if (function == nullptr) missing = name;
  };
  find(api->create, "cublasLtCreate");
  find(api->destroy, "cublasLtDestroy");
  find(api->version, "cublasLtGetVersion");
  find(api->matmul, "cublasLtMatmul");
  find(api->layout_create, "cublasLtMatrixLayoutCreate");
  find(api->layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(api->desc_create, "cublasLtMatmulDescCreate");
  find(api->desc_destroy, "cublasLtMatmulDescDestroy");
  find(api->desc_set, "cublasLtMatmulDescSetAttribute");
  find(api->preference_create, "cublasLtMatmulPreferenceCreate");
  find(api->preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(api->preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(api->heuristic, "cublasLtMatmulAlgoGetHeuristic");
  if (!missing.empty()) return str_cat("it has no ", missing);
  if (int status = api->create(&handle_); status != 0)
    return str_cat("its start failed with status ", status);
  version_ = api->version();
  api_ = api.release();
  return {};
}

CublasLt::~CublasLt() {
  if (tuning_stream_ != nullptr) cudaStreamDestroy(tuning_stream_);
  if (handle_ != nullptr) api_->destroy(handle_);
  delete api_;
  // The library stays loaded: its own threads and the driver may still hold addresses of it.
}

std::vector<int64_t> CublasLt::tuned_rows(int64_t most) {
  std::vector<int64_t> out;
  for (int64_t rows = bucket(kTuneRows);; rows = bucket(rows + 1)) {
    out.push_back(rows);
    if (rows >= most) return out;
  }
}

std::vector<CublasLt::Plan> CublasLt::candidates(Call& call, int count) {
  std::vector<Plan> out;
  if (!call.good) return out;
  Preference preference = nullptr;
  if (api_->preference_create(&preference) != 0) return out;
  const uint64_t workspace = kWorkspace;
  const auto align = static_cast<uint32_t>(call.align);
  bool good =
      api_->preference_set(preference, kPrefWorkspace, &workspace, sizeof(workspace)) == 0 &&
      api_->preference_set(preference, kPrefReductionMask, &kReductionsInFloat, sizeof(uint32_t)) == 0;
  for (int attribute : {kPrefAlignA, kPrefAlignB, kPrefAlignC, kPrefAlignD})
    good = good && api_->preference_set(preference, attribute, &align, sizeof(align)) == 0;
  std::vector<HeuristicResult> results(static_cast<size_t>(count));
  int found = 0;
  if (!good || api_->heuristic(handle_, call.desc, call.a, call.b, call.d, call.d, preference, count,
                               results.data(), &found) != 0) {
    found = 0;
  }
  api_->preference_destroy(preference);
  for (int i = 0; i < found; ++i) {
    if (results[i].state != 0 || results[i].workspace > kWorkspace) continue;
    Plan plan;
    std::copy(std::begin(results[i].algo), std::end(results[i].algo), plan.algo);
    plan.workspace = results[i].workspace;
    plan.usable = true;
    out.push_back(plan);
  }
  return out;
}

namespace {

struct Events {
  cudaEvent_t begin = nullptr, end = nullptr;
  Events() {
    TACO_CUDA_CHECK(cudaEventCreate(&begin));
    TACO_CUDA_CHECK(cudaEventCreate(&end));
  }
  ~Events() {
    if (begin != nullptr) cudaEventDestroy(begin);
    if (end != nullptr) cudaEventDestroy(end);
  }
};

}  // namespace

// Puts the fastest candidate first. On a stream and in memory of its own: the product may add to its place,
// and the caller's stream may be recording a graph. false: there was no memory for that.
bool CublasLt::tune(const Matmul& p, Call& call, std::vector<Plan>& plans) {
  struct Relaxed {  // allows allocations beside a recording stream
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    Relaxed() { TACO_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode)); }
    ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
  } relaxed;
  const size_t bytes = (static_cast<size_t>(p.m * p.y_stride) * dtype_size(p.out) + 255) / 256 * 256;
  size_t available = 0, total = 0;
  TACO_CUDA_CHECK(cudaMemGetInfo(&available, &total));
  char* memory = nullptr;
  if (available < bytes + 4 * kWorkspace ||
      cudaMalloc(reinterpret_cast<void**>(&memory), bytes + kWorkspace) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  std::unique_ptr<char, void (*)(char*)> guard(memory, [](char* data) { cudaFree(data); });
  if (tuning_stream_ == nullptr)
    TACO_CUDA_CHECK(cudaStreamCreateWithFlags(&tuning_stream_, cudaStreamNonBlocking));
  TACO_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, tuning_stream_));
  Events events;
  std::vector<std::pair<float, size_t>> times;
  for (size_t i = 0; i < plans.size(); ++i) {
    float best = 1e30f;
    bool ran = call.run(p, memory, plans[i], memory + bytes, tuning_stream_);
    for (int run = 0; ran && run < 2; ++run) {
      TACO_CUDA_CHECK(cudaEventRecord(events.begin, tuning_stream_));
      ran = call.run(p, memory, plans[i], memory + bytes, tuning_stream_);
      TACO_CUDA_CHECK(cudaEventRecord(events.end, tuning_stream_));
      TACO_CUDA_CHECK(cudaEventSynchronize(events.end));
      float ms = 0;
      TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, events.begin, events.end));
      best = std::min(best, ms);
    }
    if (ran) times.push_back({best, i});
  }
  std::sort(times.begin(), times.end());
  std::vector<Plan> sorted;
  for (const auto& [time, index] : times) sorted.push_back(plans[index]);
  plans = std::move(sorted);
  return true;
}

CublasLt::Plan* CublasLt::plan(const Matmul& p, Call& call, bool may_tune) {
  const int scales = (p.w_scales != nullptr ? 1 : 0) + (p.x_scales != nullptr ? 2 : 0);
  const Key key{bucket(p.m), p.n,    p.k,       static_cast<int>(p.in), static_cast<int>(p.out),
                p.beta != 0, scales, call.align};
  Plan& found = plans_[key];
  const bool wants_tuning = may_tune && p.m >= kTuneRows && !found.tuned;
  if (found.asked && !(found.usable && wants_tuning)) return found.usable ? &found : nullptr;
  static const bool tuning = [] {
    const char* off = std::getenv("TACO_CUBLASLT_TUNE");
    return off == nullptr || off[0] != '0';
  }();
  std::vector<Plan> plans = candidates(call, wants_tuning && tuning ? kCandidates : 1);
  if (wants_tuning && tuning && plans.size() > 1) tune(p, call, plans);
  found.asked = true;
  if (plans.empty()) return nullptr;
  found = plans.front();
  found.asked = true;
  found.tuned = may_tune;
  return &found;
}

bool CublasLt::matmul(const Matmul& p, Context& ctx) {
  if (!available()) return false;
  Call call(*api_, handle_, p);
  if (!call.good) return false;
  Plan* best = plan(p, call, true);
  if (best == nullptr) return false;
  void* workspace = best->workspace > 0 ? ctx.gemm_workspace.reserve(kWorkspace, ctx.stream) : nullptr;
  if (call.run(p, p.y, *best, workspace, ctx.stream)) return true;
  // The bucket's choice does not fit this row count: ask for it alone.
  std::vector<Plan> exact = candidates(call, 1);
  if (exact.empty()) return false;
  workspace = exact[0].workspace > 0 ? ctx.gemm_workspace.reserve(kWorkspace, ctx.stream) : nullptr;
  return call.run(p, p.y, exact[0], workspace, ctx.stream);
}

bool CublasLt::takes(const Matmul& p) {
  if (!available()) return false;
  Call call(*api_, handle_, p);
  return call.good && plan(p, call, false) != nullptr;
}

std::vector<float> CublasLt::time_candidates(const Matmul& p, Context& ctx, int runs) {
  std::vector<float> out;
  if (!available()) return out;
  Call call(*api_, handle_, p);
  void* workspace = ctx.gemm_workspace.reserve(kWorkspace, ctx.stream);
  Events events;
  for (Plan& plan : candidates(call, kCandidates)) {
    std::vector<float> times;
    bool ran = call.run(p, p.y, plan, workspace, ctx.stream);
    for (int run = 0; ran && run < runs; ++run) {
      TACO_CUDA_CHECK(cudaEventRecord(events.begin, ctx.stream));
      ran = call.run(p, p.y, plan, workspace, ctx.stream);
      TACO_CUDA_CHECK(cudaEventRecord(events.end, ctx.stream));
      TACO_CUDA_CHECK(cudaEventSynchronize(events.end));
      float ms = 0;
      TACO_CUDA_CHECK(cudaEventElapsedTime(&ms, events.begin, events.end));
      times.push_back(ms * 1000.0f);
    }
    if (!ran || times.empty()) continue;
    std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
    out.push_back(times[times.size() / 2]);
  }
  return out;
}

}  // namespace taco::cuda
