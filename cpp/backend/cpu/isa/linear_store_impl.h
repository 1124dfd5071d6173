// The epilogue of a matrix product, in plain loops that the compiler vectorises for the including source's
// instruction set. Included inside that source's own namespace: everything here is static.

static inline float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

// e^x to about 1e-7 relative: x = n ln 2 + r, a polynomial in r, and n added to the exponent.
static inline float exp_approx(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  float n = (x * 1.44269504f + kRound) - kRound;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  float y = p * r * r + r + 1.0f;
  return y * bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_approx(-x)); }

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
static inline float erf_approx(float x) {
  float a = x < 0 ? -x : x;
  float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float y = 1.0f - p * t * exp_approx(-a * a);
  return x < 0 ? -y : y;
}

struct ActNone {
  static inline float apply(float x) { return x; }
};
struct ActSilu {
  static inline float apply(float x) { return x * sigmoid(x); }
};
struct ActGelu {
  static inline float apply(float x) { return 0.5f * x * (1.0f + erf_approx(x * 0.70710678f)); }
};
struct ActGeluTanh {  // 0.5 (1 + tanh u) = sigmoid(2u)
  static inline float apply(float x) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); }
};
struct ActGeluQuick {
  static inline float apply(float x) { return x * sigmoid(1.702f * x); }
};
struct ActRelu {
  static inline float apply(float x) { return x > 0 ? x : 0.0f; }
};
struct ActRelu2 {
  static inline float apply(float x) { return x > 0 ? x * x : 0.0f; }
};

template <typename Act>
static void store_activation(const StoreParams& s) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* __restrict c = s.c + r * s.c_stride;
    float* __restrict out = s.out + r * s.out_stride;
    const float* bias = s.bias;
    if (bias) {
      for (int64_t i = 0; i < s.cols; ++i) out[i] = Act::apply(c[i] + bias[i]);
    } else {
      for (int64_t i = 0; i < s.cols; ++i) out[i] = Act::apply(c[i]);
    }
  }
}

template <typename Act>
static void store_gated(const StoreParams& s) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* __restrict gate = s.c + r * s.c_stride;
    const float* __restrict up = s.c_up + r * s.c_stride;
    float* __restrict out = s.out + r * s.out_stride;
    if (s.bias) {
      for (int64_t i = 0; i < s.cols; ++i) out[i] = Act::apply(gate[i] + s.bias[i]) * (up[i] + s.bias_up[i]);
    } else {
      for (int64_t i = 0; i < s.cols; ++i) out[i] = Act::apply(gate[i]) * up[i];
    }
  }
}

static void store_accumulate(const StoreParams& s) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* __restrict c = s.c + r * s.c_stride;
    float* __restrict out = s.out + r * s.out_stride;
    if (s.bias) {
      for (int64_t i = 0; i < s.cols; ++i) out[i] += (c[i] + s.bias[i]) * s.out_scale;
    } else {
      for (int64_t i = 0; i < s.cols; ++i) out[i] += c[i] * s.out_scale;
    }
  }
}

template <typename Act>
static void store_with(const StoreParams& s) {
  if (s.epilogue == 3) {
    store_gated<Act>(s);
  } else {
    store_activation<Act>(s);
  }
}

static void store_rows(const StoreParams& s) {
  if (s.epilogue == 0) return store_activation<ActNone>(s);
  if (s.epilogue == 1) return store_accumulate(s);
  switch (s.activation) {
    case 1:
      return store_with<ActSilu>(s);
    case 2:
      return store_with<ActGelu>(s);
    case 3:
      return store_with<ActGeluTanh>(s);
    case 4:
      return store_with<ActGeluQuick>(s);
    case 5:
      return store_with<ActRelu>(s);
    case 6:
      return store_with<ActRelu2>(s);
    default:
      return store_with<ActNone>(s);
  }
}
