// The CPU backend's activations are float32.
#pragma once

namespace taco {

inline const float* f32(const void* activations) { return static_cast<const float*>(activations); }
inline float* f32(void* activations) { return static_cast<float*>(activations); }

}  // namespace taco
