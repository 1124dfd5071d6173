// Mixture of experts over the backend's linears.
#include <cmath>
#include <cstring>

#include "backend/cpu/activations.h"
#include "backend/cpu/ops/ops.h"
#include "base/error.h"

namespace taco::cpu {

namespace {

// The weight of the k-th choice among those not chosen before it.
float sparse_mixer_weight(const MoeParams& p, const float* logits, const int32_t* experts, int k) {
  const float own = logits[experts[k]];
  float sum = 0.0f;
  for (int e = 0; e < p.num_experts; ++e) {
    bool taken = false;
    for (int j = 0; j < k; ++j) taken |= experts[j] == e;
    const float scale = std::fmax(std::fabs(logits[e]), own);
    if (!taken && !((own - logits[e]) / scale > 2.0f * p.jitter)) sum += std::exp(logits[e] - own);
  }
  return 1.0f / sum;
}

}  // namespace

void route(const MoeParams& p, const float* logits, int32_t* experts, float* weights) {
  const int num_experts = p.num_experts, top_k = p.top_k;
  // A softmax and a sigmoid keep the order, so the logits choose.
  for (int k = 0; k < top_k; ++k) {
    int best = -1;
    for (int e = 0; e < num_experts; ++e) {
      bool taken = false;
      for (int j = 0; j < k; ++j) taken |= experts[j] == e;
      // A NaN is never greater: without the second test a row of NaNs would choose nothing.
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    experts[k] = best;
  }
  float sum = 0.0f;
  if (p.routing == MoeRouting::kSigmoidTopK) {
    for (int k = 0; k < top_k; ++k) sum += weights[k] = 1.0f / (1.0f + std::exp(-logits[experts[k]]));
    if (!p.renormalize) sum = 1.0f;
  } else if (p.routing == MoeRouting::kSparseMixer) {
    for (int k = 0; k < top_k; ++k) sum += weights[k] = sparse_mixer_weight(p, logits, experts, k);
    if (!p.renormalize) sum = 1.0f;
  } else {
    const float max = logits[experts[0]];
    for (int k = 0; k < top_k; ++k) sum += weights[k] = std::exp(logits[experts[k]] - max);
    if (p.routing == MoeRouting::kSoftmaxTopK && !p.renormalize) {
      sum = 0.0f;
      for (int e = 0; e < num_experts; ++e) sum += std::exp(logits[e] - max);
    }
  }
  for (int k = 0; k < top_k; ++k) weights[k] = weights[k] / sum * p.weight_scale;
}

void Moe::run(const MoeParams& p, ThreadPool& pool, const RunLinear& linear) {
  TACO_CHECK(p.top_k > 0 && p.top_k <= p.num_experts, p.top_k, " of ", p.num_experts, " experts");
  if (p.rows <= 0) return;
  const int64_t pairs = p.rows * p.top_k;
  experts_.resize(pairs);
  weights_.resize(pairs);
  rows_.resize(pairs);
  sorted_weights_.resize(pairs);
  const int64_t stride = p.router_stride ? p.router_stride : p.num_experts;
  pool.parallel_for(p.rows, 1 + 4096 / (p.num_experts * p.top_k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      route(p, p.router_logits + row * stride, experts_.data() + row * p.top_k,
            weights_.data() + row * p.top_k);
  });

  // Rows by expert, in order.
  starts_.assign(p.num_experts + 1, 0);
  for (int32_t e : experts_) ++starts_[e + 1];
  for (int e = 0; e < p.num_experts; ++e) starts_[e + 1] += starts_[e];
  counts_.assign(p.num_experts, 0);
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t e = experts_[i];
    const int32_t at = starts_[e] + counts_[e]++;
    rows_[at] = static_cast<int32_t>(i / p.top_k);
    sorted_weights_[at] = weights_[i];
  }

  int32_t most = 0;
  for (int32_t c : counts_) most = c > most ? c : most;
  in_.reserve(most * p.hidden * sizeof(float));
  inner_.reserve(most * p.intermediate * sizeof(float));
  out_.reserve(most * p.hidden * sizeof(float));
  std::memset(f32(p.out), 0, p.rows * p.hidden * sizeof(float));

  // Experts one after the other, by id: each row's sum has one order, whatever the other rows choose.
  const VectorKernels& kernels = vector_kernels();
  for (int e = 0; e < p.num_experts; ++e) {
    const int64_t n = counts_[e];
    if (n == 0) continue;
    const int32_t* rows = rows_.data() + starts_[e];
    const float* weights = sorted_weights_.data() + starts_[e];
    run_gather_rows({f32(p.in), rows, n, p.hidden, p.hidden, in_.as<float>()}, pool);
    LinearParams up{};
    up.weight = p.gate_up[e];
    up.in = in_.as<float>();
    up.rows = n;
    up.in_stride = p.hidden;
    up.out_stride = p.intermediate;
    up.epilogue = p.gated ? Epilogue::kGated : Epilogue::kActivation;
    up.activation = p.activation;
    up.gating = p.gating;
    up.out = inner_.as<float>();
    linear(up);
    LinearParams down{};
    down.weight = p.down[e];
    down.in = inner_.as<float>();
    down.rows = n;
    down.in_stride = p.intermediate;
    down.out_stride = p.hidden;
    down.out = out_.as<float>();
    linear(down);
    pool.parallel_for(n, 1 + 16384 / p.hidden, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        kernels.scale_add(f32(p.out) + rows[i] * p.hidden, out_.as<float>() + i * p.hidden, weights[i],
                          p.hidden);
    });
  }
  if (!p.shared) return;
  pool.parallel_for(p.rows, 1 + 16384 / p.hidden, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = p.shared_gate ? 1.0f / (1.0f + std::exp(-p.shared_gate[row * stride])) : 1.0f;
      kernels.scale_add(f32(p.out) + row * p.hidden, f32(p.shared) + row * p.hidden, factor, p.hidden);
    }
  });
}

}  // namespace taco::cpu
