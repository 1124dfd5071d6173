// Vocabulary and Engine.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/executor_handle.h"
#include "engine/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

// The engine's thread may be inside a Python logits processor: whoever waits for it must not hold the GIL.
class EngineHandle {
 public:
  EngineHandle(ExecutorHandle& executor, std::shared_ptr<Vocabulary> vocabulary, const EngineConfig& config) {
    executor.take_check();
    max_model_len = executor.executor->max_model_len();
    vocab_size = executor.executor->vocab_size();
    engine = std::make_unique<Engine>(std::move(executor.executor), std::move(vocabulary), config);
  }
  ~EngineHandle() {
    nb::gil_scoped_release release;
    engine.reset();
  }
  std::unique_ptr<Engine> engine;
  int max_model_len = 0, vocab_size = 0;
};

nb::list poll(EngineHandle& self, double timeout) {
  std::vector<Output> outputs;
  {
    nb::gil_scoped_release release;
    outputs = self.engine->poll(std::chrono::duration<double>(timeout));
  }
  nb::list list;
  for (Output& o : outputs) list.append(nb::cast(std::move(o)));
  return list;
}

Vocabulary* make_vocabulary(const std::vector<nb::bytes>& pieces, const std::vector<int32_t>& special,
                            bool strip) {
  std::vector<std::string> bytes;
  bytes.reserve(pieces.size());
  for (const nb::bytes& piece : pieces) bytes.emplace_back(piece.c_str(), piece.size());
  return new Vocabulary(std::move(bytes), special, strip);
}

Digest digest_of(const std::optional<nb::bytes>& bytes) {
  Digest digest;
  if (!bytes) return digest;
  TACO_REQUIRE(bytes->size() == digest.bytes.size(), "cache_root must have ", digest.bytes.size(),
               " bytes, not ", bytes->size());
  std::copy_n(static_cast<const uint8_t*>(bytes->data()), digest.bytes.size(), digest.bytes.begin());
  return digest;
}

PreemptionMode preemption_mode_of(const std::string& name) {
  if (name == "auto") return PreemptionMode::kAuto;
  if (name == "recompute") return PreemptionMode::kRecompute;
  TACO_REQUIRE(name == "swap", "preemption_mode must be auto, recompute or swap, not ", name);
  return PreemptionMode::kSwap;
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<Vocabulary>(m, "Vocabulary", "The bytes of each token.")
      .def(nb::new_(&make_vocabulary), "pieces"_a, "special"_a, "strip_leading_space"_a = false)
      .def("piece",
           [](const Vocabulary& v, int32_t id) {
             std::string_view piece = v.piece(id);
             return nb::bytes(piece.data(), piece.size());
           })
      .def("__len__", &Vocabulary::size);

  using release = nb::call_guard<nb::gil_scoped_release>;
  using Seconds = std::chrono::duration<double>;
  nb::class_<EngineHandle>(m, "Engine", "One thread that plans, runs and commits steps.")
      .def(
          "__init__",
          [](EngineHandle* self, ExecutorHandle& executor, std::shared_ptr<Vocabulary> vocabulary,
             int max_num_batched_tokens, int max_num_seqs, bool chunked, bool priority, int64_t max_waiting,
             uint64_t seed, int64_t swap_blocks, const std::string& preemption_mode,
             const SpeculationConfig* speculation, std::shared_ptr<Drafter> drafter,
             const PrefixCachingConfig* prefix_caching) {
            EngineConfig config;
            config.max_num_batched_tokens = max_num_batched_tokens;
            config.max_num_seqs = max_num_seqs;
            config.enable_chunked_prefill = chunked;
            config.priority_scheduling = priority;
            config.max_waiting = max_waiting;
            config.seed = seed;
            config.swap_blocks = swap_blocks;
            config.preemption_mode = preemption_mode_of(preemption_mode);
            if (speculation) config.speculation = *speculation;
            config.drafter = std::move(drafter);
            if (prefix_caching) config.prefix_caching = *prefix_caching;
            new (self) EngineHandle(executor, std::move(vocabulary), config);
          },
          "executor"_a, "vocabulary"_a = nb::none(), nb::kw_only(), "max_num_batched_tokens"_a = 2048,
          "max_num_seqs"_a = 256, "enable_chunked_prefill"_a = true, "priority_scheduling"_a = false,
          "max_waiting"_a = -1, "seed"_a = 0, "swap_blocks"_a = 0, "preemption_mode"_a = "auto",
          "speculation"_a = nb::none(), "drafter"_a = nb::none(), "prefix_caching"_a = nb::none())
      .def(
          "submit",
          [](EngineHandle& self, std::vector<int32_t> prompt, const SamplingParams& params, int priority,
             uint64_t name_space, const std::optional<nb::bytes>& cache_root) {
            return self.engine->submit(std::move(prompt), params, priority, name_space,
                                       digest_of(cache_root));
          },
          "prompt"_a, "params"_a, "priority"_a = 0, "name_space"_a = 0, "cache_root"_a = nb::none())
      .def(
          "abort", [](EngineHandle& self, RequestId id) { self.engine->abort(id); }, "request"_a)
      .def("abort_all", [](EngineHandle& self) { self.engine->abort_all(); })
      .def("poll", &poll, "timeout"_a = 0.0)
      .def("event_fd", [](const EngineHandle& self) { return self.engine->event_fd(); })
      .def(
          "drain", [](EngineHandle& self, double t) { return self.engine->drain(Seconds(t)); }, "timeout"_a,
          release())
      .def(
          "shutdown", [](EngineHandle& self) { self.engine->shutdown(); }, release())
      .def("stats", [](const EngineHandle& self) { return self.engine->stats(); })
      .def(
          "reset_prefix_cache", [](EngineHandle& self) { return self.engine->reset_prefix_cache(); },
          release())
      .def(
          "cache_report", [](EngineHandle& self, int hottest) { return self.engine->cache_report(hottest); },
          "hottest"_a = 20, release())
      .def("take_log_lines", [](EngineHandle& self) { return self.engine->take_log_lines(); })
      .def_ro("max_model_len", &EngineHandle::max_model_len)
      .def_ro("vocab_size", &EngineHandle::vocab_size);
}

}  // namespace taco::bindings
