// What a step costs on the CPU by its width: sequences with a context, each with 1, 2, 3, ... rows to verify,
// all of whose logits are computed. The model has SmolLM2-135M's shape and random weights.
//   width_bench [--dtype bf16|f32] [--threads n] [--sequences n] [--context n] [--repeats n] [--profile]
//   [rows ...]
// The least of the repeats, taken in turns over the widths; with --profile where the time of the last one
// went.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/profiling_backend.h"
#include "base/clock.h"
#include "model/decoder.h"

namespace taco {
namespace {

constexpr int kBlock = 16;

struct Options {
  DType dtype = DType::kBF16;
  int threads = 0, sequences = 1, context = 700, repeats = 30;
  bool profile = false;
  std::vector<int> widths;
};

ModelSpec smollm_spec() {
  ModelSpec spec;
  spec.architecture = "bench";
  spec.vocab_size = 49152;
  spec.hidden = 576;
  spec.max_positions = 8192;
  RopeSpec rope;
  rope.rotary_dim = 64;
  for (int i = 0; i < 32; ++i) rope.inv_freq.push_back(1.0f / static_cast<float>(1 + i));
  spec.ropes = {rope};
  LayerSpec layer;
  layer.attn_norm.kind = layer.ffn_norm.kind = NormKind::kRms;
  layer.attn.num_heads = 9;
  layer.attn.num_kv_heads = 3;
  layer.attn.head_dim = 64;
  layer.attn.rope = 0;
  layer.ffn.intermediate = 1536;
  spec.layers.assign(30, layer);
  spec.final_norm.kind = NormKind::kRms;
  spec.tied_head = true;
  return spec;
}

std::shared_ptr<const Model> random_model(std::shared_ptr<Backend> backend, DType dtype) {
  ModelBuilder builder(smollm_spec(), backend, dtype);
  uint32_t state = 1;
  for (const auto& [slot, shape] : std::map<std::string, std::vector<int64_t>>(builder.slots())) {
    HostMatrix m;
    m.rows = shape.size() == 2 ? shape[0] : 1;
    m.cols = shape.back();
    auto data = std::make_shared<std::vector<float>>(m.rows * m.cols);
    for (float& v : *data) {
      state = state * 1664525u + 1013904223u;
      v = (static_cast<float>(state >> 8) * 0x1p-23f - 1) * 0.05f;
    }
    m.data = data->data();
    m.owner = data;
    builder.add(slot, m, shape);
  }
  return builder.finish();
}

class Bench {
 public:
  explicit Bench(const Options& o) : o_(o) {
    std::shared_ptr<Backend> backend = std::make_shared<CpuBackend>(o.threads);
    if (o.profile) backend = profiling_ = std::make_shared<ProfilingBackend>(backend);
    model_ = random_model(backend, o.dtype);
    const int most = *std::max_element(o.widths.begin(), o.widths.end());
    blocks_ = (o.context + most + kBlock - 1) / kBlock;
    cache_.dtype = o.dtype;
    cache_.block_size = kBlock;
    cache_.num_blocks = blocks_ * o.sequences;
    const size_t bytes =
        kv_block_bytes(model_->spec, kBlock, o.dtype) * static_cast<size_t>(cache_.num_blocks);
    kv_.reset(backend->allocate(bytes, true), [backend](void* p) { backend->release(p); });
    cache_.data = kv_.get();
    for (int i = 0; i < cache_.num_blocks; ++i) tables_.push_back(i);
    decoder_ = std::make_unique<Decoder>(model_, most * o.sequences, 8192);
    logits_.resize(static_cast<size_t>(most * o.sequences) * 49152);
  }

  double step(int width) {
    std::vector<int32_t> ids, positions, index, q_start = {0}, kv_len;
    std::vector<int64_t> slots;
    for (int s = 0; s < o_.sequences; ++s) {
      for (int r = 0; r < width; ++r) {
        index.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back(17 + 31 * r + s);
        positions.push_back(o_.context + r);
        slots.push_back(s * blocks_ * kBlock + o_.context + r);
      }
      q_start.push_back(static_cast<int32_t>(ids.size()));
      kv_len.push_back(o_.context + width);
    }
    const DecoderBatch batch = {.rows = static_cast<int64_t>(ids.size()),
                                .ids = ids.data(),
                                .positions = positions.data(),
                                .slots = slots.data(),
                                .num_seqs = o_.sequences,
                                .q_start = q_start.data(),
                                .kv_len = kv_len.data(),
                                .block_tables = tables_.data(),
                                .max_blocks = blocks_,
                                .max_kv_len = o_.context + width};
    if (profiling_) profiling_->reset();
    const double begin = monotonic_seconds();
    decoder_->forward(batch, cache_);
    decoder_->logits(index.data(), batch.rows, logits_.data());
    return monotonic_seconds() - begin;
  }

  void run() {
    std::vector<double> best(o_.widths.size(), 1e9);
    std::vector<std::map<std::string, OpTime>> times(o_.widths.size());
    for (int i = 0; i < o_.repeats; ++i) {
      for (size_t w = 0; w < o_.widths.size(); ++w) {
        const double seconds = step(o_.widths[w]);
        best[w] = std::min(best[w], seconds);
        if (!profiling_) continue;
        for (const auto& [op, time] : profiling_->times()) {
          OpTime& least = times[w].try_emplace(op, time).first->second;
          least.seconds = std::min(least.seconds, time.seconds);
        }
      }
    }
    for (size_t w = 0; w < o_.widths.size(); ++w) {
      std::printf("%2d sequences, context %d, %2d rows each: %7.2f ms  %.2fx\n", o_.sequences, o_.context,
                  o_.widths[w], 1e3 * best[w], best[w] / best[0]);
      for (const auto& [op, time] : times[w])
        if (time.seconds > 0.01 * best[w])
          std::printf("    %-24s %7.3f ms\n", op.c_str(), 1e3 * time.seconds);
    }
  }

 private:
  Options o_;
  std::shared_ptr<ProfilingBackend> profiling_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<void> kv_;
  KvCache cache_{};
  int64_t blocks_ = 0;
  std::vector<int32_t> tables_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<float> logits_;
};

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  taco::Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] { return ++i < argc ? argv[i] : "0"; };
    if (word == "--dtype") {
      o.dtype = std::strcmp(value(), "f32") == 0 ? taco::DType::kF32 : taco::DType::kBF16;
    } else if (word == "--threads") {
      o.threads = std::atoi(value());
    } else if (word == "--sequences") {
      o.sequences = std::max(1, std::atoi(value()));
    } else if (word == "--context") {
      o.context = std::max(1, std::atoi(value()));
    } else if (word == "--repeats") {
      o.repeats = std::max(1, std::atoi(value()));
    } else if (word == "--profile") {
      o.profile = true;
    } else if (std::atoi(word.c_str()) > 0) {
      o.widths.push_back(std::atoi(word.c_str()));
    } else {
      std::fprintf(stderr, "unknown argument %s\n", word.c_str());
      return 1;
    }
  }
  if (o.widths.empty()) o.widths = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16};
  taco::Bench(o).run();
  return 0;
}
