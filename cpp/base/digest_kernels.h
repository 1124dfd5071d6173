// SHA-256's compression function, once for each kind of processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace taco::sha256_kernels {

extern const uint32_t kRound[64];  // FIPS 180-4, 4.2.2

// Adds `count` blocks of 64 bytes (of any alignment) to the state of eight words: FIPS 180-4, 6.2.2.
using Compress = void (*)(uint32_t* state, const uint8_t* blocks, size_t count);

void compress_portable(uint32_t* state, const uint8_t* blocks, size_t count);
// With the SHA instructions of x86; nullptr in a build for another processor. digest_shani.cc.
extern const Compress compress_shani;

// Those that this machine can run, the fastest last.
std::vector<Compress> available();

}  // namespace taco::sha256_kernels
