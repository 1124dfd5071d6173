// The CPU backend's allocator and its choice of instruction set.
#include "backend/cpu/memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "backend/cpu/isa/dispatch.h"
#include "base/error.h"

namespace taco::cpu {
namespace {

TEST(Memory, BlocksAreAlignedApartAndZeroWhenAsked) {
  std::vector<std::pair<uint8_t*, size_t>> blocks;
  // The heap, shared slabs (more than one), mappings of their own; twice, so that freed places are used
  // again.
  for (int round = 0; round < 2; ++round) {
    for (size_t bytes : {1u, 100u, 40000u, 5u << 20, 12u << 20, 15u << 20, 12u << 20, 17u << 20}) {
      auto* p = static_cast<uint8_t*>(allocate_pages(bytes, true));
      ASSERT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
      for (size_t i = 0; i < bytes; i += 61) ASSERT_EQ(p[i], 0);
      std::memset(p, static_cast<int>(blocks.size() + 1), bytes);
      blocks.push_back({p, bytes});
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      auto [p, bytes] = blocks[i];
      EXPECT_EQ(p[0], i + 1);
      EXPECT_EQ(p[bytes - 1], i + 1);
    }
    for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) release_pages(it->first);
    blocks.clear();
  }
  release_pages(nullptr);
}

TEST(Memory, RefusesTheImpossible) { EXPECT_THROW(allocate_pages(size_t{1} << 60), Error); }

TEST(Memory, LimitsAreSane) {
  MemoryLimits limits = memory_limits();
  EXPECT_GT(limits.total, size_t{64} << 20);
  EXPECT_LE(limits.available, limits.total);
}

TEST(Dispatch, LevelsGoByNameAndMissingOnesAreErrors) {
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    EXPECT_EQ(isa_from_name(isa_name(isa)), isa);
    if (isa_available(isa)) {
      force_isa(isa);
      EXPECT_EQ(active_isa(), isa);
      continue;
    }
    try {
      force_isa(isa);
      FAIL() << isa_name(isa);
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("generic"), std::string::npos) << "names what the machine has";
    }
  }
  force_isa(best_isa());
  EXPECT_THROW(isa_from_name("sse9"), Error);
  EXPECT_EQ(available_isas().front(), Isa::kGeneric);
  EXPECT_EQ(available_isas().back(), best_isa());
}

}  // namespace
}  // namespace taco::cpu
