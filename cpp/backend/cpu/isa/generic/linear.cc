// Matrix products in plain C++, for any processor.
#include "backend/cpu/isa/linear_kernels.h"

namespace taco::cpu::generic {
namespace {

typedef float Vec __attribute__((vector_size(64)));
typedef uint32_t VecU __attribute__((vector_size(64)));

inline float half_to_float(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  float f;
  if (rest < 0x400) {  // zero or subnormal: a multiple of 2^-24
    f = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -f : f;
  }
  uint32_t u = sign | (rest >= 0x7c00 ? 0x7f800000u | (rest & 0x3ffu) << 13 : (rest << 13) + 0x38000000u);
  __builtin_memcpy(&f, &u, 4);
  return f;
}

inline Vec zero() { return Vec{}; }
inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, 64);
  return v;
}
inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, 64); }
inline Vec broadcast(float x) { return Vec{} + x; }
inline Vec fmadd(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec load_half(const uint8_t* p) {
  Vec v;
  for (int i = 0; i < 16; ++i) {
    uint16_t h;
    __builtin_memcpy(&h, p + 2 * i, 2);
    v[i] = half_to_float(h);
  }
  return v;
}
inline void load_bf16_pair(const uint8_t* p, Vec* k0, Vec* k1) {
  VecU v;
  __builtin_memcpy(&v, p, 64);
  *k0 = reinterpret_cast<Vec>(v << 16);
  *k1 = reinterpret_cast<Vec>(v & 0xffff0000u);
}
constexpr int kMaxTileRows = 3;
constexpr int tile_panels(int) { return 1; }

#include "backend/cpu/isa/linear_float_impl.h"

constexpr int kLanes = 4;
#include "backend/cpu/isa/linear_store_impl.h"

void pack_int8(const PackRowsParams& s) {
  int64_t groups = s.stride / kQuantGroup;
  for (int64_t r = s.first; r < s.last; ++r) {
    const float* in = s.in + r * s.in_stride;
    int8_t* q = static_cast<int8_t*>(s.data) + r * s.stride;
    for (int64_t g = 0; g < groups; ++g) {
      float most = 0;
      int64_t begin = g * kQuantGroup, end = begin + kQuantGroup < s.k ? begin + kQuantGroup : s.k;
      for (int64_t k = begin; k < end; ++k) {
        float a = in[k] < 0 ? -in[k] : in[k];
        most = a > most ? a : most;
      }
      float inverse = most > 0 ? 127.0f / most : 0.0f;
      int32_t sum = 0;
      for (int64_t k = begin; k < begin + kQuantGroup; ++k) {
        int v = k < end ? static_cast<int>(__builtin_rintf(in[k] * inverse)) : 0;
        q[k] = static_cast<int8_t>(v);
        sum += v;
      }
      s.scale[r * groups + g] = most / 127.0f;
      s.offset[r * groups + g] = -128 * sum;
      s.scaled_sum[r * groups + g] = most / 127.0f * static_cast<float>(sum);
    }
  }
}

// One group of 32 columns of one panel against one row: `bytes` is [8 quads][16][4].
void int8_group(const uint8_t* bytes, const int8_t* x, int32_t offset, int32_t* dot) {
  for (int i = 0; i < 16; ++i) dot[i] = offset;
  for (int quad = 0; quad < 8; ++quad) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) dot[i] += bytes[quad * 64 + i * 4 + j] * x[quad * 4 + j];
    }
  }
}

inline float half_at(const uint8_t* p, int i) {
  uint16_t h;
  __builtin_memcpy(&h, p + 2 * i, 2);
  return half_to_float(h);
}

template <bool kNibbles>
void int8_product(const ProductParams& t) {
  int64_t groups = t.in.stride / kQuantGroup;
  for (int panel = 0; panel < t.panels; ++panel) {
    for (int64_t r = 0; r < t.rows; ++r) {
      float* c = t.c + r * t.c_stride + panel * kPanelRows;
      if (!t.accumulate) {
        for (int i = 0; i < 16; ++i) c[i] = 0;
      }
      for (int64_t g = t.k_begin / kQuantGroup; g < (t.k_end + kQuantGroup - 1) / kQuantGroup; ++g) {
        const int8_t* x = static_cast<const int8_t*>(t.in.data) + r * t.in.stride + g * kQuantGroup;
        float scale = t.in.scale[r * groups + g];
        int32_t dot[16];
        if (kNibbles) {
          const uint8_t* block = t.panel[panel] + g * kQ4BlockBytes;
          uint8_t bytes[512];
          for (int pair = 0; pair < 4; ++pair) {
            for (int i = 0; i < 64; ++i) {
              bytes[pair * 128 + i] = block[pair * 64 + i] & 15;
              bytes[pair * 128 + 64 + i] = block[pair * 64 + i] >> 4;
            }
          }
          int8_group(bytes, x, 0, dot);
          float sum = t.in.scaled_sum[r * groups + g];
          for (int i = 0; i < 16; ++i) {
            c[i] +=
                half_at(block + 256, i) * scale * static_cast<float>(dot[i]) + half_at(block + 288, i) * sum;
          }
        } else {
          const uint8_t* block = t.panel[panel] + g / 2 * kQ8BlockBytes;
          int8_group(block + g % 2 * 512, x, t.in.offset[r * groups + g], dot);
          for (int i = 0; i < 16; ++i) {
            c[i] += half_at(block + 1024 + g % 2 * 32, i) * scale * static_cast<float>(dot[i]);
          }
        }
      }
    }
  }
}

constexpr LinearKernels kernels_of(RowFormat rows, void (*pack)(const PackRowsParams&),
                                   void (*product)(const ProductParams&)) {
  return {rows, pack, nullptr, product, store_rows, 288, 512 << 10, 48, nullptr, nullptr};
}

constexpr LinearKernels kKernels[] = {
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kF32>),
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kF16>),
    kernels_of(RowFormat::kF32, nullptr, float_product<PanelFormat::kBF16>),
    kernels_of(RowFormat::kInt8, pack_int8, int8_product<false>),
    kernels_of(RowFormat::kInt8, pack_int8, int8_product<true>),
};

}  // namespace

const LinearKernels* linear_kernels(PanelFormat format) { return &kKernels[static_cast<int>(format)]; }

}  // namespace taco::cpu::generic
