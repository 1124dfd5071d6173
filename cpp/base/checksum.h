// CRC-32C (Castagnoli; RFC 3720, appendix B.4): finds torn and flipped data. Not a defence against an author:
// base/digest.h is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace taco {

// `crc`: what the bytes before these gave, so that a message may come in pieces.
uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t crc = 0);

namespace crc32c_kernels {

// On the register itself: the callers invert it before the first byte and after the last.
using Extend = uint32_t (*)(uint32_t state, const uint8_t* bytes, size_t count);

uint32_t extend_portable(uint32_t state, const uint8_t* bytes, size_t count);
// With the crc32 instruction of SSE 4.2; nullptr in a build for another processor. checksum_sse42.cc.
extern const Extend extend_sse42;

// Those that this machine can run, the fastest last.
std::vector<Extend> available();

}  // namespace crc32c_kernels
}  // namespace taco
