// A ragged batch of attention over a paged cache with random contents, for tests and benchmarks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cpu/memory.h"
#include "backend/cpu/ref/ref.h"
#include "backend/ops.h"

namespace taco::cpu {

struct AttentionShape {
  int num_heads, num_kv_heads, head_dim, block_size;
  DType dtype;
  int window = 0;
  float softcap = 0.0f;
  bool alibi = false, sinks = false;
  KeyPattern pattern{};
};

struct SequenceShape {
  int q_len, kv_len;
};

// Slots that belong to no token hold NaN, as do the outputs before the op.
class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, std::vector<SequenceShape> sequences, uint32_t seed,
                float q_size = 1.0f)
      : shape_(shape), sequences_(std::move(sequences)) {
    std::mt19937 rng(seed);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    auto noise = [&] {  // uniform, variance 1
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<float>(state >> 40) * 0x1p-23f * 1.7320508f - 1.7320508f;
    };
    for (const SequenceShape& s : sequences_) {
      max_blocks_ = std::max<int64_t>(max_blocks_, (s.kv_len + shape.block_size - 1) / shape.block_size + 1);
      rows_ += s.q_len;
    }
    const int64_t num_blocks = max_blocks_ * static_cast<int64_t>(sequences_.size()) + 1;
    const int64_t elements = num_blocks * 2 * shape.num_kv_heads * shape.block_size * shape.head_dim;
    cache_ = PageBuffer(elements * dtype_size(shape.dtype));
    view_ = {cache_.data(), shape.dtype, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim};
    poison_cache();

    std::vector<int32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    // Unused entries of a table point nowhere.
    tables_.assign(max_blocks_ * sequences_.size(), -1);
    q_start_.push_back(0);
    for (size_t s = 0; s < sequences_.size(); ++s) {
      q_start_.push_back(q_start_.back() + sequences_[s].q_len);
      kv_len_.push_back(sequences_[s].kv_len);
      for (int t = 0; t < sequences_[s].kv_len; ++t) {
        int32_t& block = tables_[s * max_blocks_ + t / shape.block_size];
        if (t % shape.block_size == 0) {
          block = order.back();
          order.pop_back();
        }
        for (int value = 0; value < 2; ++value)
          for (int h = 0; h < shape.num_kv_heads; ++h)
            for (int d = 0; d < shape.head_dim; ++d)
              ref::kv_store(view_, block, value, h, t % shape.block_size, d, noise());
      }
    }
    q_stride_ = static_cast<int64_t>(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim + 3;
    q_.resize(rows_ * q_stride_, std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < rows_; ++r)
      for (int i = 0; i < shape.num_heads * shape.head_dim; ++i) q_[r * q_stride_ + i] = noise() * q_size;
    for (int h = 0; h < shape.num_heads; ++h) {
      slopes_.push_back(std::exp2(-8.0f * (h + 1) / shape.num_heads));
      sinks_.push_back(noise());
    }
  }

  AttentionParams params(std::vector<float>& out) const {
    AttentionParams p{};
    p.q = q_.data();
    p.q_stride = q_stride_;
    p.num_heads = shape_.num_heads;
    p.cache = view_;
    p.num_seqs = static_cast<int>(sequences_.size());
    p.q_start = q_start_.data();
    p.kv_len = kv_len_.data();
    p.block_tables = tables_.data();
    p.max_blocks = max_blocks_;
    p.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    p.softcap = shape_.softcap;
    p.window = shape_.window;
    p.pattern = shape_.pattern;
    p.alibi_slopes = shape_.alibi ? slopes_.data() : nullptr;
    p.sinks = shape_.sinks ? sinks_.data() : nullptr;
    p.out_stride = int64_t{shape_.num_heads} * shape_.head_dim + 5;
    out.assign(rows_ * p.out_stride, std::numeric_limits<float>::quiet_NaN());
    p.out = out.data();
    return p;
  }

  // Moves every block to another place; the contents that tokens see stay the same.
  void permute_blocks(uint32_t seed) {
    std::vector<int32_t> to(view_.num_blocks);
    std::iota(to.begin(), to.end(), 0);
    std::shuffle(to.begin(), to.end(), std::mt19937(seed));
    const size_t bytes = cache_.size() / view_.num_blocks;
    PageBuffer moved(cache_.size());
    for (int64_t b = 0; b < view_.num_blocks; ++b)
      std::memcpy(moved.as<char>() + to[b] * bytes, cache_.as<char>() + b * bytes, bytes);
    cache_ = std::move(moved);
    view_.data = cache_.data();
    for (int32_t& b : tables_) b = b < 0 ? b : to[b];
  }

  const AttentionShape& shape() const { return shape_; }
  const std::vector<SequenceShape>& sequences() const { return sequences_; }
  int64_t rows() const { return rows_; }
  const std::vector<int32_t>& q_start() const { return q_start_; }

 private:
  void poison_cache() {
    const int64_t n = static_cast<int64_t>(cache_.size() / dtype_size(shape_.dtype));
    for (int64_t i = 0; i < n; ++i) {
      if (shape_.dtype == DType::kF32) {
        cache_.as<float>()[i] = std::numeric_limits<float>::quiet_NaN();
      } else {
        cache_.as<uint16_t>()[i] = 0x7fff;
      }
    }
  }

  AttentionShape shape_;
  std::vector<SequenceShape> sequences_;
  int64_t max_blocks_ = 0, rows_ = 0, q_stride_ = 0;
  PageBuffer cache_;
  KvCacheView view_{};
  std::vector<float> q_, slopes_, sinks_;
  std::vector<int32_t> q_start_, kv_len_, tables_;
};

}  // namespace taco::cpu
