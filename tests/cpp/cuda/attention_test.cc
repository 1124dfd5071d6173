// Attention on the device against a float64 one over the same (rounded) queries and cache.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda_test_util.h"

namespace taco::cuda::test {
namespace {

struct Shape {
  int num_heads = 8, num_kv_heads = 2, head_dim = 64, block_size = 16;
  DType dtype = DType::kBF16, kv_dtype = DType::kBF16;
  int window = 0;
  float softcap = 0.0f;
  bool alibi = false, sinks = false, tree = false;
  float q_size = 1.0f;
  KeyPattern pattern{};
};

struct Sequence {
  int q_len, kv_len;
};

std::string describe(const Shape& s) {
  return str_cat(s.num_heads, "/", s.num_kv_heads, " heads of ", s.head_dim, ", blocks of ", s.block_size,
                 ", ", dtype_name(s.dtype), ", cache ", dtype_name(s.kv_dtype), ", window ", s.window,
                 ", softcap ", s.softcap, s.alibi ? ", alibi" : "", s.sinks ? ", sinks" : "",
                 s.tree ? ", tree" : "", ", pattern of ", s.pattern.block);
}

// The rounded value of x in a cache of this dtype, and its bits.
float store(DType dtype, float x, std::vector<uint8_t>& bytes, size_t i) {
  auto put = [&](auto bits) { std::memcpy(bytes.data() + i * sizeof(bits), &bits, sizeof(bits)); };
  switch (dtype) {
    case DType::kF32:
      put(x);
      return x;
    case DType::kF16:
      put(to_f16(x).bits);
      return to_float(to_f16(x));
    case DType::kBF16:
      put(to_bf16(x).bits);
      return to_float(to_bf16(x));
    case DType::kF8E4M3:
      put(to_f8e4m3(x).bits);
      return to_float(to_f8e4m3(x));
    default:
      put(to_f8e5m2(x).bits);
      return to_float(to_f8e5m2(x));
  }
}

// A ragged batch. What belongs to no token is NaN: slots, blocks, the rows' other columns, the outputs
// before.
class Case {
 public:
  Case(const Shape& shape, std::vector<Sequence> sequences, uint64_t seed)
      : s_(shape), seqs_(std::move(sequences)) {
    std::mt19937_64 rng(seed);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    auto noise = [&] {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<float>(state >> 40) * 0x1p-23f * 1.7320508f - 1.7320508f;
    };
    q_start_ = {0};
    int64_t used = 0;
    for (const Sequence& q : seqs_) {
      q_start_.push_back(q_start_.back() + q.q_len);
      kv_len_.push_back(q.kv_len);
      int64_t blocks = (q.kv_len + s_.block_size - 1) / s_.block_size;
      used += blocks;
      max_blocks_ = std::max(max_blocks_, blocks + 2);
    }
    num_blocks_ = used + 3;
    std::vector<int32_t> order(num_blocks_);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    tables_.assign(max_blocks_ * seqs_.size(), 0x7ffffff);  // beyond the sequence: nowhere
    const bool fp8 = s_.kv_dtype == DType::kF8E4M3 || s_.kv_dtype == DType::kF8E5M2;
    k_scale_ = fp8 ? 0.7f : 1.0f;
    v_scale_ = fp8 ? 1.6f : 1.0f;
    const size_t elements = num_blocks_ * 2 * s_.num_kv_heads * s_.block_size * s_.head_dim;
    cache_.assign(elements * dtype_size(s_.kv_dtype), 0x7f);
    if (s_.kv_dtype == DType::kF32 || s_.kv_dtype == DType::kBF16 || s_.kv_dtype == DType::kF16)
      std::fill(cache_.begin(), cache_.end(), 0xff);
    for (size_t i = 0; i < seqs_.size(); ++i) {
      std::vector<float> k(seqs_[i].kv_len * width()), v(k.size());
      for (int t = 0; t < seqs_[i].kv_len; ++t) {
        int32_t& block = tables_[i * max_blocks_ + t / s_.block_size];
        if (t % s_.block_size == 0) {
          block = order.back();
          order.pop_back();
        }
        for (int h = 0; h < s_.num_kv_heads; ++h) {
          for (int d = 0; d < s_.head_dim; ++d) {
            size_t at =
                ((block * 2ull * s_.num_kv_heads + h) * s_.block_size + t % s_.block_size) * s_.head_dim + d;
            k[t * width() + h * s_.head_dim + d] = k_scale_ * store(s_.kv_dtype, noise(), cache_, at);
            at += size_t(s_.num_kv_heads) * s_.block_size * s_.head_dim;
            v[t * width() + h * s_.head_dim + d] = v_scale_ * store(s_.kv_dtype, noise(), cache_, at);
          }
        }
      }
      k_.push_back(std::move(k));
      v_.push_back(std::move(v));
    }
    q_stride_ = int64_t(s_.num_heads + 2 * s_.num_kv_heads) * s_.head_dim + 8;
    q_.assign(rows() * q_stride_, NAN);
    for (int64_t r = 0; r < rows(); ++r)
      for (int i = 0; i < s_.num_heads * s_.head_dim; ++i) q_[r * q_stride_ + i] = noise() * s_.q_size;
    q_ = rounded(q_, s_.dtype);
    for (int h = 0; h < s_.num_heads; ++h) {
      slopes_.push_back(std::exp2(-8.0f * (h + 1) / s_.num_heads));
      sinks_.push_back(noise());
    }
    // Trees: a node's parent stands before it; it sees its ancestors and itself.
    for (const Sequence& q : seqs_) {
      std::vector<int> depth(q.q_len);
      std::vector<uint64_t> mask(q.q_len);
      for (int j = 0; j < q.q_len; ++j) {
        int parent = j == 0 ? -1 : static_cast<int>(rng() % j);
        depth[j] = parent < 0 ? 0 : depth[parent] + 1;
        mask[j] = (parent < 0 ? 0 : mask[parent]) | uint64_t{1} << (j % 64);
        positions_.push_back(q.kv_len - q.q_len + depth[j]);
        masks_.push_back(mask[j]);
      }
    }
  }

  int64_t rows() const { return q_start_.back(); }
  int64_t out_width() const { return int64_t{s_.num_heads} * s_.head_dim; }

  // [rows, heads * head_dim], and the columns behind must stay as they were.
  std::vector<float> run(CudaBackend& b) const {
    Device d(*this);
    begin(b);
    b.attention(d.params(*this));
    return d.results(*this, b);
  }

  // Records a graph for this case, replays it for another one of as many rows.
  std::vector<float> replay_as(CudaBackend& b, const Case& other) const {
    Device d(*this), e(other);
    begin(b);
    b.attention(d.params(*this));
    std::unique_ptr<Graph> graph = b.capture([&] { b.attention(d.params(*this)); });
    auto move = [&](const DeviceBuffer& to, const DeviceBuffer& from, size_t bytes) {
      TACO_CUDA_CHECK(cudaMemcpy(to.as<>(), from.as<>(), bytes, cudaMemcpyDeviceToDevice));
    };
    b.synchronize();
    move(d.q, e.q, q_.size() * dtype_size(s_.dtype));
    move(d.tables, e.tables, tables_.size() * sizeof(int32_t));
    other.begin(b);
    b.replay(*graph);
    return d.results(*this, b);
  }

  std::vector<float> reference() const {
    std::vector<float> out(rows() * out_width());
    const int dim = s_.head_dim, group = s_.num_heads / s_.num_kv_heads;
    std::vector<double> scores, sum(dim);
    for (size_t i = 0; i < seqs_.size(); ++i) {
      const int q_len = seqs_[i].q_len, kv_len = seqs_[i].kv_len, oldest = kv_len - q_len;
      for (int j = 0; j < q_len; ++j) {
        const int row = q_start_[i] + j, position = s_.tree ? positions_[row] : oldest + j;
        for (int h = 0; h < s_.num_heads; ++h) {
          const float* q = q_.data() + row * q_stride_ + int64_t{h} * dim;
          double max = s_.sinks ? sinks_[h] : -INFINITY;
          scores.assign(kv_len, -INFINITY);
          for (int t = 0; t < kv_len; ++t) {
            int at = t;
            bool seen;
            if (s_.tree && t >= oldest) {
              seen = masks_[row] >> (t - oldest) & 1;
              at = positions_[q_start_[i] + t - oldest];
            } else {
              seen = t <= position || s_.tree;
            }
            if (!seen || (s_.window > 0 && at <= position - s_.window)) continue;
            if (s_.pattern.block > 0 && !sees_key(s_.pattern, h, position, at)) continue;
            double s = 0;
            const float* k = k_[i].data() + t * width() + h / group * dim;
            for (int d = 0; d < dim; ++d) s += double{q[d]} * k[d];
            s *= scale();
            if (s_.softcap > 0) s = s_.softcap * std::tanh(s / s_.softcap);
            if (s_.alibi) s += double{slopes_[h]} * (at - position);
            scores[t] = s;
            max = std::max(max, s);
          }
          double total = s_.sinks ? std::exp(sinks_[h] - max) : 0;
          std::fill(sum.begin(), sum.end(), 0.0);
          for (int t = 0; t < kv_len; ++t) {
            if (scores[t] == -INFINITY) continue;
            const double w = std::exp(scores[t] - max);
            total += w;
            const float* v = v_[i].data() + t * width() + h / group * dim;
            for (int d = 0; d < dim; ++d) sum[d] += w * v[d];
          }
          for (int d = 0; d < dim; ++d)
            out[row * out_width() + h * dim + d] = static_cast<float>(total > 0 ? sum[d] / total : 0);
        }
      }
    }
    return out;
  }

  // Takes the queries of a row of another case.
  void copy_row(const Case& from, int64_t row, int64_t to_row = 0) {
    std::copy_n(from.q_.begin() + row * q_stride_, q_stride_, q_.begin() + to_row * q_stride_);
  }
  // The same keys and values seen as other sequences: each of the pieces (rows [begin, end) of the first
  // sequence) becomes a sequence of its own.
  Case pieces(const std::vector<std::pair<int, int>>& parts) const {
    Case c = *this;
    c.seqs_.clear();
    c.q_start_ = {0};
    c.kv_len_.clear();
    c.q_.clear();
    c.tables_.clear();
    for (auto [begin, end] : parts) {
      c.seqs_.push_back({end - begin, end});
      c.q_start_.push_back(c.q_start_.back() + end - begin);
      c.kv_len_.push_back(end);
      c.q_.insert(c.q_.end(), q_.begin() + begin * q_stride_, q_.begin() + end * q_stride_);
      c.tables_.insert(c.tables_.end(), tables_.begin(), tables_.begin() + max_blocks_);
    }
    return c;
  }

 private:
  size_t width() const { return size_t(s_.num_kv_heads) * s_.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(s_.head_dim)); }

  void begin(CudaBackend& b) const {
    int max_q = 0, max_kv = 0;
    for (const Sequence& x : seqs_) max_q = std::max(max_q, x.q_len), max_kv = std::max(max_kv, x.kv_len);
    b.begin_step({.rows = rows(),
                  .num_seqs = static_cast<int>(seqs_.size()),
                  .q_start = q_start_.data(),
                  .kv_len = kv_len_.data(),
                  .max_q_len = max_q,
                  .max_kv_len = max_kv,
                  .tree = s_.tree});
  }

  struct Device {
    explicit Device(const Case& c)
        : q(to_device(c.q_, c.s_.dtype)),
          cache(c.cache_),
          tables(c.tables_),
          q_start(c.q_start_),
          kv_len(c.kv_len_),
          slopes(c.slopes_),
          sinks(c.sinks_),
          masks(c.masks_),
          positions(c.positions_),
          out(std::max<int64_t>(1, c.rows() * c.out_stride()) * dtype_size(c.s_.dtype)) {}
    AttentionParams params(const Case& c) const {
      AttentionParams p{};
      p.q = q.as<>();
      p.q_stride = c.q_stride_;
      p.num_heads = c.s_.num_heads;
      p.cache = {cache.as<>(),      c.s_.kv_dtype, c.num_blocks_, c.s_.block_size,
                 c.s_.num_kv_heads, c.s_.head_dim, c.k_scale_,    c.v_scale_};
      p.num_seqs = static_cast<int>(c.seqs_.size());
      p.q_start = q_start.as<int32_t>();
      p.kv_len = kv_len.as<int32_t>();
      p.block_tables = tables.as<int32_t>();
      p.max_blocks = c.max_blocks_;
      p.scale = c.scale();
      p.softcap = c.s_.softcap;
      p.window = c.s_.window;
      p.pattern = c.s_.pattern;
      p.alibi_slopes = c.s_.alibi ? slopes.as<float>() : nullptr;
      p.sinks = c.s_.sinks ? sinks.as<float>() : nullptr;
      p.out = out.as<>();
      p.out_stride = c.out_stride();
      p.tree_mask = c.s_.tree ? masks.as<uint64_t>() : nullptr;
      p.positions = c.s_.tree ? positions.as<int32_t>() : nullptr;
      p.dtype = c.s_.dtype;
      return p;
    }
    std::vector<float> results(const Case& c, CudaBackend& b) const {
      b.synchronize();
      std::vector<float> all = from_device(out, c.s_.dtype), dense;
      for (int64_t r = 0; r < c.rows(); ++r) {
        auto row = all.begin() + r * c.out_stride();
        dense.insert(dense.end(), row, row + c.out_width());
        for (int64_t i = c.out_width(); i < c.out_stride(); ++i)
          EXPECT_TRUE(std::isnan(row[i])) << "column " << i;
      }
      return dense;
    }
    DeviceBuffer q, cache, tables, q_start, kv_len, slopes, sinks, masks, positions, out;
  };
  int64_t out_stride() const { return out_width() + 8; }

  Shape s_;
  std::vector<Sequence> seqs_;
  int64_t max_blocks_ = 0, num_blocks_ = 0, q_stride_ = 0;
  float k_scale_, v_scale_;
  std::vector<int32_t> q_start_, kv_len_, tables_, positions_;
  std::vector<uint8_t> cache_;
  std::vector<float> q_, slopes_, sinks_;
  std::vector<uint64_t> masks_;
  std::vector<std::vector<float>> k_, v_;  // by token, as the cache holds them
};

// Products in 16 bits are in the cache's type (fp16 for FP8); results in the rows'.
double limit(const Shape& s) {
  if (s.dtype == DType::kBF16 || s.kv_dtype == DType::kBF16)
    return s.dtype == DType::kF32 ? tolerance(DType::kF32) : tolerance(DType::kBF16);
  return tolerance(s.dtype);
}

void check(const Shape& shape, const std::vector<Sequence>& seqs, uint64_t seed) {
  Case c(shape, seqs, seed);
  const std::vector<float> expected = c.reference();
  for (bool invariant : {false, true}) {
    EXPECT_LT(relative_error(c.run(backend(invariant)), expected), limit(shape))
        << describe(shape) << (invariant ? ", batch-invariant" : "");
  }
}

const std::vector<Sequence> kRagged{{1, 1},  {1, 37},  {0, 9},   {1, 64},   {1, 65},    {5, 5},
                                    {3, 16}, {1, 130}, {2, 129}, {40, 171}, {130, 130}, {1, 1037}};

constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
constexpr DType kFp8[] = {DType::kF8E4M3, DType::kF8E5M2};

TEST(CudaAttention, EveryShape) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 1;
  for (DType dtype : kTypes) {
    for (int dim : {64, 80, 96, 112, 128, 256, 16, 24, 33, 192}) {
      for (int block : {8, 16, 32}) {
        if (block != 16 && dim != 64 && dim != 96 && dim != 256) continue;
        check({.num_heads = 8,
               .num_kv_heads = 2,
               .head_dim = dim,
               .block_size = block,
               .dtype = dtype,
               .kv_dtype = dtype},
              kRagged, ++seed);
      }
    }
  }
}

TEST(CudaAttention, EveryGrouping) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 50;
  for (auto [heads, kv] : {std::pair{4, 4}, {9, 3}, {7, 1}, {16, 1}, {24, 2}, {71, 1}})
    for (int dim : {64, 128, 256})
      check({.num_heads = heads, .num_kv_heads = kv, .head_dim = dim}, kRagged, ++seed);
}

TEST(CudaAttention, Fp8Cache) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 100;
  for (DType kv : kFp8)
    for (DType dtype : kTypes)
      for (int dim : {64, 80, 128, 256, 40})
        check({.head_dim = dim, .block_size = dim == 128 ? 8 : 16, .dtype = dtype, .kv_dtype = kv}, kRagged,
              ++seed);
}

TEST(CudaAttention, RowsAndCacheOfDifferentTypes) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 150;
  for (DType dtype : kTypes)
    for (DType kv : kTypes)
      if (dtype != kv) check({.head_dim = 64, .dtype = dtype, .kv_dtype = kv}, kRagged, ++seed);
}

TEST(CudaAttention, EveryRule) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 200;
  const std::vector<Sequence> seqs{{1, 700}, {70, 640}, {33, 33}, {1, 5}, {2, 513}, {150, 300}, {6, 1200}};
  for (DType dtype : kTypes) {
    for (int window : {0, 1, 7, 100, 600}) {
      for (int rule = 0; rule < 8; ++rule) {
        if (rule != 0 && rule != 7 && window > 7) continue;
        check({.num_heads = 6,
               .num_kv_heads = 2,
               .head_dim = dtype == DType::kF16 ? 128 : 64,
               .dtype = dtype,
               .kv_dtype = dtype,
               .window = window,
               .softcap = rule & 1 ? 5.0f : 0.0f,
               .alibi = (rule & 2) != 0,
               .sinks = (rule & 4) != 0},
              seqs, ++seed);
      }
    }
  }
}

TEST(CudaAttention, PatternsOfBlocks) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 260;
  const std::vector<Sequence> seqs{{1, 700}, {70, 640}, {33, 33}, {1, 5}, {2, 513}, {150, 1300}};
  for (DType dtype : kTypes) {
    for (KeyPattern pattern : {KeyPattern{64, 2, 8, 1}, KeyPattern{16, 1, 3, 0}, KeyPattern{5, 3, 7, 2}}) {
      for (int window : {0, 100}) {
        check({.num_heads = 6,
               .num_kv_heads = 2,
               .head_dim = 128,
               .dtype = dtype,
               .kv_dtype = dtype,
               .window = window,
               .pattern = pattern},
              seqs, ++seed);
      }
    }
  }
}

TEST(CudaAttention, Trees) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 300;
  const std::vector<Sequence> seqs{{64, 64}, {1, 33}, {5, 700}, {64, 1000}, {17, 80}, {0, 4}, {33, 96}};
  for (DType dtype : kTypes) {
    for (DType kv : {dtype, DType::kF8E4M3}) {
      for (int window : {0, 20, 300}) {
        for (bool rules : {false, true})
          check({.num_heads = 8,
                 .num_kv_heads = 2,
                 .head_dim = rules ? 64 : 128,
                 .dtype = dtype,
                 .kv_dtype = kv,
                 .window = window,
                 .softcap = rules ? 8.0f : 0.0f,
                 .alibi = rules,
                 .sinks = rules,
                 .tree = true},
                seqs, ++seed);
      }
    }
  }
}

// Draft verification: a few rows of each sequence, in chains and in trees, alone and beside long chunks.
TEST(CudaAttention, FewRowsOfEachSequence) {
  TACO_SKIP_WITHOUT_DEVICE();
  uint64_t seed = 350;
  const std::vector<Sequence> drafts{{5, 700},  {1, 33},   {16, 1999}, {2, 2},
                                     {8, 1040}, {64, 300}, {0, 4},     {3, 65}};
  std::vector<Sequence> mixed = drafts;
  mixed.push_back({200, 500});
  for (auto [heads, kv] : {std::pair{8, 2}, {4, 4}, {16, 2}, {24, 2}}) {
    for (int dim : {64, 80, 128, 256}) {
      for (bool tree : {false, true}) {
        check({.num_heads = heads, .num_kv_heads = kv, .head_dim = dim, .tree = tree}, drafts, ++seed);
        if (!tree) check({.num_heads = heads, .num_kv_heads = kv, .head_dim = dim}, mixed, ++seed);
      }
    }
  }
  for (bool tree : {false, true}) {
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      for (DType kv : {DType::kBF16, DType::kF16, DType::kF8E4M3, DType::kF8E5M2})
        check({.head_dim = 128, .dtype = dtype, .kv_dtype = kv, .tree = tree}, drafts, ++seed);
    }
    for (int rule = 0; rule < 8; ++rule)
      check({.head_dim = 128,
             .window = rule & 1 ? 100 : 0,
             .softcap = rule & 2 ? 5.0f : 0.0f,
             .alibi = (rule & 4) != 0,
             .sinks = (rule & 4) != 0,
             .tree = tree},
            drafts, ++seed);
  }
}

// Many sequences, one long one, and lengths around the splits' boundaries.
TEST(CudaAttention, SplitsOfEveryKind) {
  TACO_SKIP_WITHOUT_DEVICE();
  const Shape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128};
  check(shape, {{1, 9000}}, 400);
  check(shape, std::vector<Sequence>(300, {1, 40}), 401);
  check(shape, {{1, 511}, {1, 512}, {1, 513}, {1, 1023}, {1, 1024}, {1, 1025}, {1, 63}, {1, 3000}}, 402);
  std::vector<Sequence> many;
  for (int i = 0; i < 70; ++i) many.push_back({1 + (i % 5 == 0 ? i : 0), 100 + i * 13});
  check(shape, many, 403);
  check({.num_heads = 2, .num_kv_heads = 1, .head_dim = 64}, std::vector<Sequence>(1500, {1, 3}), 404);
}

TEST(CudaAttention, LargeScores) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kF16, DType::kF32}) {
    Shape shape{.head_dim = 64, .dtype = dtype, .kv_dtype = dtype, .q_size = 100.0f};
    check(shape, {{1, 300}, {17, 200}, {100, 150}}, 500);
  }
}

// One after another over the same scratch memory: semaphores reset themselves.
TEST(CudaAttention, RepeatsBitForBit) {
  TACO_SKIP_WITHOUT_DEVICE();
  Case c({.num_heads = 32, .num_kv_heads = 8, .head_dim = 128}, {{1, 5000}, {1, 100}, {9, 3000}, {1, 777}},
         600);
  const std::vector<float> first = c.run(backend());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(first, c.run(backend()));
  Case drafts({.num_heads = 32, .num_kv_heads = 8, .head_dim = 128},
              {{5, 5000}, {16, 100}, {9, 3000}, {1, 777}}, 601);
  const std::vector<float> drafted = drafts.run(backend());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(drafted, drafts.run(backend()));
}

// In the batch-invariant mode a sequence's rows have the same bits alone, and in company.
TEST(CudaAttention, BatchInvariantModeIgnoresTheBatch) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int window : {0, 700}) {
    const Shape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128, .window = window};
    const std::vector<Sequence> first{{1, 1700}};
    Case alone(shape, first, 700);
    const std::vector<float> expected = alone.run(backend(true));
    for (int others : {1, 7, 130}) {
      std::vector<Sequence> seqs = first;
      for (int i = 0; i < others; ++i) seqs.push_back({i % 3 == 0 ? 90 : 1 + i % 2, 100 + 37 * i});
      // The same seed gives the first sequence the same keys; its queries are drawn after all keys.
      Case crowd(shape, seqs, 700);
      Case pair(shape, {first[0]}, 700);
      crowd.copy_row(pair, 0);
      std::vector<float> out = crowd.run(backend(true));
      out.resize(expected.size());
      EXPECT_EQ(out, expected) << others << " others, window " << window;
    }
  }
}

// ... and however many rows of its sequence a step computes, up to 64; a chunk of more rows has the same bits
// wherever it begins.
TEST(CudaAttention, BatchInvariantModeIgnoresChunks) {
  TACO_SKIP_WITHOUT_DEVICE();
  for (int window : {0, 300}) {
    const Shape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128, .window = window};
    Case whole(shape, {{1200, 1200}}, 800);
    const int64_t width = whole.out_width();
    auto compare = [&](const std::vector<std::pair<int, int>>& parts,
                       const std::vector<std::pair<int, int>>& other) {
      // Rows of both, by position.
      auto rows = [&](const std::vector<std::pair<int, int>>& list) {
        std::vector<std::vector<float>> by_row(1200);
        std::vector<float> out = whole.pieces(list).run(backend(true));
        int64_t at = 0;
        for (auto [begin, end] : list)
          for (int r = begin; r < end; ++r, ++at)
            by_row[r].assign(out.begin() + at * width, out.begin() + (at + 1) * width);
        return by_row;
      };
      auto a = rows(parts), b = rows(other);
      int compared = 0;
      for (int r = 0; r < 1200; ++r) {
        if (a[r].empty() || b[r].empty()) continue;
        ++compared;
        EXPECT_EQ(a[r], b[r]) << "row " << r << ", window " << window;
      }
      EXPECT_GT(compared, 0);
    };
    compare({{1100, 1101}, {600, 601}, {513, 514}}, {{1090, 1140}, {590, 606}, {511, 516}});
    compare({{0, 1200}}, {{0, 70}, {70, 300}, {300, 500}, {500, 800}, {800, 1200}});
  }
}

TEST(CudaAttention, GraphsFollowTheStep) {
  TACO_SKIP_WITHOUT_DEVICE();
  // A graph recorded for one set of lengths gives the results of another one.
  CudaBackend& b = backend();
  const Shape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128};
  Case c(shape, {{3000, 3000}}, 900);
  const std::vector<std::pair<int, int>> before{{2, 3}, {40, 41}, {100, 101}},
      after{{2999, 3000}, {0, 1}, {1500, 1501}};
  const std::vector<float> expected = c.pieces(after).run(b);
  EXPECT_EQ(c.pieces(before).replay_as(b, c.pieces(after)), expected);
  // Drafts: as many rows, shared out otherwise.
  const std::vector<std::pair<int, int>> drafts{{10, 15}, {40, 43}, {100, 101}, {700, 708}},
      others{{2992, 3000}, {0, 1}, {1500, 1504}, {64, 68}};
  const std::vector<float> drafted = c.pieces(others).run(b);
  EXPECT_EQ(c.pieces(drafts).replay_as(b, c.pieces(others)), drafted);
}

}  // namespace
}  // namespace taco::cuda::test
