// The epilogue of a matrix product, in the compiler's own vectors, which it turns into the including source's
// instructions. Included inside that source's own namespace, after it has defined
//   constexpr int kLanes    the floats in one of its registers
// Everything here is static.

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t LanesI __attribute__((vector_size(4 * kLanes)));

static inline Lanes all(float x) { return Lanes{} + x; }

// e^x to about 1e-7 relative: x = n ln 2 + r, a polynomial in r, and n added to the exponent.
static inline Lanes exp_approx(Lanes x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Lanes shifted = x * 1.44269504f + kRound;
  Lanes n = shifted - kRound;
  Lanes r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Lanes p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  Lanes y = p * r * r + r + 1.0f;
  // The integer stands in the low bits of `shifted`; its upper bits are shifted out.
  LanesI exponent = (reinterpret_cast<LanesI>(shifted) + 127) << 23;
  return y * reinterpret_cast<Lanes>(exponent);
}

static inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exp_approx(-x)); }

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
static inline Lanes erf_approx(Lanes x) {
  Lanes a = x < 0.0f ? -x : x;
  Lanes t = 1.0f / (1.0f + 0.3275911f * a);
  Lanes p = 1.061405429f * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Lanes y = 1.0f - p * t * exp_approx(-a * a);
  return x < 0.0f ? -y : y;
}

struct ActNone {
  static inline Lanes apply(Lanes x) { return x; }
};
struct ActSilu {
  static inline Lanes apply(Lanes x) { return x / (1.0f + exp_approx(-x)); }
};
struct ActGelu {
  static inline Lanes apply(Lanes x) { return 0.5f * x * (1.0f + erf_approx(x * 0.70710678f)); }
};
struct ActGeluTanh {  // 0.5 (1 + tanh u) = sigmoid(2u)
  static inline Lanes apply(Lanes x) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); }
};
struct ActGeluQuick {
  static inline Lanes apply(Lanes x) { return x * sigmoid(1.702f * x); }
};
struct ActRelu {
  static inline Lanes apply(Lanes x) { return x > 0.0f ? x : all(0.0f); }
};
struct ActRelu2 {
  static inline Lanes apply(Lanes x) { return x > 0.0f ? x * x : all(0.0f); }
};

static inline Lanes load_lanes(const float* p) {
  Lanes v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// The pieces of a last, partial vector.
static Lanes load_some(const float* p, int64_t count) {
  float v[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return load_lanes(v);
}
static void store_some(float* p, Lanes v, int64_t count) {
  float f[kLanes];
  __builtin_memcpy(f, &v, sizeof(v));
  for (int64_t i = 0; i < count; ++i) p[i] = f[i];
}

template <typename Act>
static inline Lanes gate(Lanes y, Lanes u, const StoreParams& s) {
  if (s.gate_limit > 0.0f) {
    const Lanes high = all(s.gate_limit), low = all(-s.gate_limit);
    y = y > high ? high : y;
    u = u > high ? high : u < low ? low : u;
  }
  return Act::apply(y) * (u + s.up_offset);
}

enum class Form { kApply, kGate, kAdd };

// Products are padded to whole panels, so a whole vector of them may be read anywhere; of outputs and biases
// not.
template <typename Act, Form kForm, bool kBias>
static void store_panels(const StoreParams& s) {
  const int64_t whole = s.cols / kLanes * kLanes, rest = s.cols - whole;
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* c = s.c + r * s.c_stride;
    const float* up = s.c_up + r * s.c_stride;
    float* out = s.out + r * s.out_stride;
    for (int64_t i = 0; i < whole; i += kLanes) {
      Lanes y = load_lanes(c + i);
      if (kBias) y += load_lanes(s.bias + i);
      if (kForm == Form::kGate) {
        Lanes u = load_lanes(up + i);
        if (kBias) u += load_lanes(s.bias_up + i);
        y = gate<Act>(y, u, s);
      } else {
        y = kForm == Form::kAdd ? load_lanes(out + i) + y * s.out_scale : Act::apply(y);
      }
      __builtin_memcpy(out + i, &y, sizeof(y));
    }
    if (rest) {
      Lanes y = load_lanes(c + whole);
      if (kBias) y += load_some(s.bias + whole, rest);
      if (kForm == Form::kGate) {
        Lanes u = load_lanes(up + whole);
        if (kBias) u += load_some(s.bias_up + whole, rest);
        y = gate<Act>(y, u, s);
      } else {
        y = kForm == Form::kAdd ? load_some(out + whole, rest) + y * s.out_scale : Act::apply(y);
      }
      store_some(out + whole, y, rest);
    }
  }
}

template <typename Act, Form kForm>
static void store_form(const StoreParams& s) {
  if (s.bias) {
    store_panels<Act, kForm, true>(s);
  } else {
    store_panels<Act, kForm, false>(s);
  }
}

template <typename Act>
static void store_with(const StoreParams& s) {
  if (s.epilogue == 3) {
    store_form<Act, Form::kGate>(s);
  } else {
    store_form<Act, Form::kApply>(s);
  }
}

static void store_rows(const StoreParams& s) {
  if (s.epilogue == 0) return store_form<ActNone, Form::kApply>(s);
  if (s.epilogue == 1) return store_form<ActNone, Form::kAdd>(s);
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
