// Backend, Model, ModelBuilder and the executors.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sched.h>

#include <tuple>

#include "backend/cpu/isa/dispatch.h"
#include "backend/profiling_backend.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/disk_store_handle.h"
#include "bindings/executor_handle.h"
#include "exec/model_executor.h"
#include "exec/null_executor.h"
#include "model/model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

struct ModelExecutorHandle : ExecutorHandle {
  ModelExecutor* get() {
    take_check();
    return static_cast<ModelExecutor*>(executor.get());
  }
};
struct NullExecutorHandle : ExecutorHandle {};

std::optional<DType> kv_dtype(const std::string& name) {
  if (name == "auto") return std::nullopt;
  DType dtype = dtype_from_name(name);
  TACO_REQUIRE(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
                   dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2,
               "kv_dtype '", name, "' is not one of auto, float32, float16, bfloat16, fp8_e4m3, fp8_e5m2");
  return dtype;
}

std::shared_ptr<Backend> make_backend(const std::string& device, int threads, bool profile,
                                      const std::string& plugin, const std::string& cublaslt,
                                      bool batch_invariant, size_t offload_bytes) {
  std::shared_ptr<Backend> backend;
  if (device == "cpu") {
    backend = make_cpu_backend(threads);
  } else if (device == "cuda" || (device.starts_with("cuda:") && device.size() > 5 &&
                                  device.find_first_not_of("0123456789", 5) == std::string::npos)) {
    TACO_REQUIRE(!plugin.empty(), "device '", device, "' needs plugin=, the path of libtaco_cuda.so");
    backend = make_cuda_backend({.device = device.size() > 5 ? std::stoi(device.substr(5)) : 0,
                                 .plugin = plugin,
                                 .cublaslt = cublaslt,
                                 .batch_invariant = batch_invariant,
                                 .offload_bytes = offload_bytes});
  } else {
    fail(ErrorCode::kInvalidArgument, "unknown device '", device, "'; use \"cpu\", \"cuda\" or \"cuda:0\"");
  }
  if (profile) backend = std::make_shared<ProfilingBackend>(std::move(backend));
  return backend;
}

void add_tensor(ModelBuilder& self, const std::string& slot,
                nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu> data, const std::string& format,
                const std::vector<int64_t>& shape) {
  TACO_REQUIRE(shape.size() == 1 || shape.size() == 2, "slot '", slot,
               "': a tensor has one or two dimensions");
  HostMatrix matrix;
  matrix.format = format_from_name(format);
  matrix.rows = shape.size() == 2 ? shape[0] : 1;
  matrix.cols = shape.back();
  matrix.data = data.data();
  TACO_REQUIRE(matrix.cols % format_info(matrix.format).block_cols == 0, "slot '", slot, "': ", matrix.cols,
               " columns are not a multiple of ", format, "'s block of ",
               format_info(matrix.format).block_cols);
  TACO_REQUIRE(matrix.bytes() == data.nbytes(), "slot '", slot, "' needs ", matrix.bytes(), " bytes in ",
               format, ", the tensor has ", data.nbytes());
  std::shared_ptr<nb::object> owner = keep(nb::cast(data));
  matrix.owner = std::shared_ptr<const void>(owner, owner.get());
  self.add(slot, std::move(matrix), shape);
}

// A stand-in for a tensor: the backend makes the values.
void add_dummy(ModelBuilder& self, const std::string& slot, const std::vector<int64_t>& shape,
               uint64_t seed) {
  TACO_REQUIRE(shape.size() == 1 || shape.size() == 2, "slot '", slot,
               "': a tensor has one or two dimensions");
  HostMatrix matrix;
  matrix.format = WeightFormat::kBF16;
  matrix.rows = shape.size() == 2 ? shape[0] : 1;
  matrix.cols = shape.back();
  matrix.seed = seed;
  self.add(slot, std::move(matrix), shape);
}

}  // namespace

void bind_model(nb::module_& m) {
  nb::class_<Backend>(m, "Backend", "A device that runs models: \"cpu\" or \"cuda:0\".")
      .def_prop_ro("name", &Backend::name)
      .def_prop_ro("description", &Backend::description)
      .def_prop_ro(
          "memory",
          [](const Backend& b) {
            DeviceMemory memory = b.memory();
            return std::pair(memory.total, memory.available);
          },
          "(total, available) bytes")
      .def(nb::new_(&make_backend), "device"_a = "cpu", "threads"_a = 0, nb::kw_only(), "profile"_a = false,
           "plugin"_a = "", "cublaslt"_a = "", "batch_invariant"_a = false, "offload_bytes"_a = 0,
           nb::call_guard<nb::gil_scoped_release>())
      .def("profile", [](Backend& self) {
        auto* profiling = dynamic_cast<ProfilingBackend*>(&self);
        TACO_REQUIRE(profiling, "this backend was made without profile=True");
        std::map<std::string, std::pair<int64_t, double>> out;
        for (const auto& [op, time] : profiling->times()) out[op] = {time.calls, time.seconds};
        profiling->reset();
        return out;
      });

  nb::class_<Model>(m, "Model", "A model's weights, repacked for one backend.")
      .def_ro("spec", &Model::spec)
      .def_prop_ro("dtype", [](const Model& self) { return std::string(dtype_name(self.dtype)); })
      .def_ro("num_parameters", &Model::num_parameters)
      .def_prop_ro("weight_bytes", &Model::weight_bytes);

  nb::class_<ModelBuilder>(m, "ModelBuilder", "Takes a checkpoint's tensors one by one.")
      .def(
          "__init__",
          [](ModelBuilder* self, const ModelSpec& spec, std::shared_ptr<Backend> backend,
             const std::string& dtype, bool quantize_fp8) {
            new (self) ModelBuilder(spec, std::move(backend), dtype_from_name(dtype), quantize_fp8);
          },
          "spec"_a, "backend"_a, "dtype"_a = "bfloat16", "quantize_fp8"_a = false)
      .def("slots",
           [](const ModelBuilder& self) {
             nb::dict out;
             for (const auto& [name, shape] : self.slots()) out[name.c_str()] = nb::tuple(nb::cast(shape));
             return out;
           })
      .def("add", &add_tensor, "slot"_a, "data"_a, "format"_a, "shape"_a)
      .def("add_dummy", &add_dummy, "slot"_a, "shape"_a, "seed"_a = 0)
      .def("keep_wide", &ModelBuilder::keep_wide, "slot"_a)
      .def("missing", &ModelBuilder::missing)
      .def("finish", [](ModelBuilder& self) { return std::const_pointer_cast<Model>(self.finish()); });

  nb::class_<ExecutorHandle>(m, "Executor", "What an Engine runs its steps on; taken over by the Engine.");

  nb::class_<ModelExecutorHandle, ExecutorHandle>(m, "ModelExecutor")
      .def(
          "__init__",
          [](ModelExecutorHandle* self, std::shared_ptr<Model> model, int max_model_len, int block_size,
             int64_t num_blocks, const std::string& kv, int max_num_batched_tokens, int max_num_seqs,
             bool enforce_eager, int max_seq_len_to_capture, int64_t swap_blocks, int max_draft_rows,
             const std::optional<std::pair<float, float>>& typical, int64_t host_blocks, bool loads_by_layer,
             const DiskStoreHandle* disk) {
            new (self) ModelExecutorHandle();
            nb::gil_scoped_release release;
            ModelExecutorConfig config{max_model_len,
                                       block_size,
                                       num_blocks,
                                       kv_dtype(kv),
                                       max_num_batched_tokens,
                                       max_num_seqs,
                                       enforce_eager,
                                       max_seq_len_to_capture,
                                       swap_blocks + host_blocks,
                                       max_draft_rows};
            config.loads_by_layer = loads_by_layer;
            if (typical) {
              config.typical_acceptance = true;
              std::tie(config.typical_threshold, config.typical_alpha) = *typical;
            }
            config.disk = disk_access(disk);
            self->executor = std::make_unique<ModelExecutor>(model, config);
          },
          "model"_a, nb::kw_only(), "max_model_len"_a, "block_size"_a = 16, "num_blocks"_a,
          "kv_dtype"_a = "auto", "max_num_batched_tokens"_a = 2048, "max_num_seqs"_a = 256,
          "enforce_eager"_a = false, "max_seq_len_to_capture"_a = 8192, "swap_blocks"_a = 0,
          "max_draft_rows"_a = 0, "typical_acceptance"_a = nb::none(), "host_blocks"_a = 0,
          "loads_by_layer"_a = true, "disk"_a = nb::none())
      .def_static(
          "profile",
          [](std::shared_ptr<Model> model, int max_model_len, int block_size, const std::string& kv,
             int max_num_batched_tokens, int max_num_seqs, int max_draft_rows) {
            nb::gil_scoped_release release;
            return ModelExecutor::profile(model, {.max_model_len = max_model_len,
                                                  .block_size = block_size,
                                                  .num_blocks = 0,
                                                  .kv_dtype = kv_dtype(kv),
                                                  .max_num_batched_tokens = max_num_batched_tokens,
                                                  .max_num_seqs = max_num_seqs,
                                                  .enforce_eager = true,
                                                  .max_draft_rows = max_draft_rows});
          },
          "model"_a, nb::kw_only(), "max_model_len"_a, "block_size"_a = 16, "kv_dtype"_a = "auto",
          "max_num_batched_tokens"_a = 2048, "max_num_seqs"_a = 256, "max_draft_rows"_a = 0)
      .def_static(
          "block_bytes",
          [](const Model& model, int block_size, const std::string& kv) {
            return ModelExecutor::block_bytes(model, block_size, kv_dtype(kv));
          },
          "model"_a, "block_size"_a, "kv_dtype"_a = "auto")
      .def(
          "forward",
          [](ModelExecutorHandle& self, const std::vector<int32_t>& ids,
             const std::optional<std::vector<int>>& chunks) {
            ModelExecutor* executor = self.get();
            auto* out = new std::vector<float>();
            nb::capsule owner(out, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
            {
              nb::gil_scoped_release release;
              *out = executor->forward(ids, chunks.value_or(std::vector<int>{}));
            }
            size_t vocab = executor->vocab_size();
            return nb::ndarray<nb::numpy, float>(out->data(), {out->size() / vocab, vocab}, owner);
          },
          "token_ids"_a, "chunks"_a = nb::none())
      .def(
          "time_step",
          [](ModelExecutorHandle& self, int sequences, int drafts, int context) {
            TACO_REQUIRE(sequences > 0 && drafts >= 0 && context >= 0,
                         "time_step takes sequences above 0, and drafts and a context of at least 0");
            ModelExecutor* executor = self.get();
            nb::gil_scoped_release release;
            return executor->time_step(sequences, drafts, context);
          },
          "sequences"_a, "drafts"_a, "context"_a)
      .def_prop_ro("step_sizes", [](ModelExecutorHandle& self) { return self.get()->step_sizes(); });

  nb::class_<NullExecutorHandle, ExecutorHandle>(m, "NullExecutor")
      .def(
          "__init__",
          [](NullExecutorHandle* self, int vocab_size, int max_model_len, int block_size, int64_t num_blocks,
             double step_seconds, int32_t eos_token_id, int64_t num_host_blocks) {
            new (self) NullExecutorHandle();
            self->executor = std::make_unique<NullExecutor>(vocab_size, max_model_len, block_size, num_blocks,
                                                            step_seconds, eos_token_id, 1, num_host_blocks);
          },
          "vocab_size"_a, "max_model_len"_a = 4096, "block_size"_a = 16, "num_blocks"_a = 65536,
          "step_seconds"_a = 0.0, "eos_token_id"_a = -1, "num_host_blocks"_a = 0)
      .def_static(
          "token_at",
          [](const std::vector<int32_t>& prompt, int position, int vocab_size) {
            return NullExecutor::token_at(prompt, position, vocab_size);
          },
          "prompt"_a, "position"_a, "vocab_size"_a);

  m.def("cpu_info", [] {
    nb::dict out;
    out["isa"] = std::string(cpu::isa_name(cpu::active_isa()));
    out["detected"] = std::string(cpu::isa_name(cpu::best_isa()));
    out["model"] = cpu::cpu_model_name();
    cpu_set_t set;
    out["cores"] = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    out["features"] = cpu::cpu_feature_names();
    return out;
  });
}

}  // namespace taco::bindings
