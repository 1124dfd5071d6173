// The bounded table of continuations, against a plain map.
#include "spec/lookahead/cell_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "spec/lookahead/context_hash.h"

namespace taco {
namespace {

uint64_t key_of(uint64_t i) { return hash_key(hash_step(hash_seed(1), static_cast<int32_t>(i))); }

// The cell's rule in plain words: a known continuation counts once more and comes to the front; in a full
// cell the rarest gives way, the oldest of them, and where none is below the threshold all decay first.
struct NaiveCell {
  struct Entry {
    uint32_t value;
    int freq;
  };
  std::vector<Entry> entries;

  void add(uint32_t value, size_t max_size, int threshold, float decay) {
    auto at = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.value == value; });
    int freq = kFreqOne;
    if (at != entries.end()) {
      freq += at->freq;
      entries.erase(at);
    } else if (entries.size() == max_size) {
      size_t victim = 0;
      for (size_t i = 0; i < entries.size(); ++i)
        if (entries[i].freq <= entries[victim].freq) victim = i;
      // The oldest of the rarest stands last.
      if (entries[victim].freq >= threshold)
        for (Entry& e : entries) e.freq = static_cast<int>(static_cast<float>(e.freq) * decay);
      entries.erase(entries.begin() + static_cast<ptrdiff_t>(victim));
    }
    entries.insert(entries.begin(), {value, freq});
  }
};

TEST(CellTable, AgreesWithAMapWhileThereIsRoom) {
  for (const float decay : {0.5f, 0.1f}) {
    MemoryBudget budget(64 << 20);
    CellTable table({5, 2.0f, decay, false, 0}, &budget);
    std::map<uint64_t, NaiveCell> naive;
    std::mt19937 random(7);
    for (int i = 0; i < 300000; ++i) {
      // Some keys often, most of them rarely.
      const uint64_t key = random() % 4 ? random() % 50 : random() % 50000;
      const uint32_t value = random() % 3 ? random() % 4 : random() % 12;
      table.add(key_of(key), value);
      naive[key].add(value, 5, 2 * kFreqOne, decay);
    }
    // A bucket may overflow before its segment splits; that costs single keys.
    int missing = 0;
    for (const auto& [key, cell] : naive) {
      const auto found = table.find(key_of(key));
      if (found.empty()) {
        ++missing;
        continue;
      }
      if (key >= 50) continue;  // may have been lost and come back
      ASSERT_EQ(found.size(), cell.entries.size());
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].value, cell.entries[i].value) << "key " << key;
        ASSERT_EQ(found[i].freq, cell.entries[i].freq) << "key " << key;
      }
    }
    EXPECT_LT(missing, static_cast<int>(naive.size()) / 50);
    EXPECT_EQ(table.bytes(), budget.used());
    EXPECT_EQ(table.num_keys(), static_cast<int64_t>(naive.size()) - missing);
  }
}

TEST(CellTable, NeverHoldsMoreThanItsBound) {
  for (const size_t bound : {size_t{200} << 10, size_t{1} << 20, size_t{8} << 20}) {
    MemoryBudget budget(bound);
    CellTable table({16, 2.0f, 0.5f, false, 0}, &budget);
    std::mt19937 random(3);
    for (int i = 0; i < 1000000; ++i) {
      const uint64_t key = random() % 4 ? random() % 1000 : random();
      table.add(key_of(key), random() % 20);
      if (i % 1000 == 0) {
        ASSERT_LE(budget.used(), bound);
      }
    }
    EXPECT_LE(budget.peak(), bound);
    EXPECT_GT(table.evictions(), 0);
    EXPECT_GT(budget.used(), bound / 2) << "the memory is used";
    // What is used often stays.
    int present = 0;
    for (uint64_t key = 0; key < 1000; ++key) present += !table.find(key_of(key)).empty();
    EXPECT_GT(present, 900) << bound;
  }
}

TEST(CellTable, GivesSegmentsBackAndKeepsWhatFits) {
  MemoryBudget budget(64 << 20);
  CellTable table({4, 2.0f, 0.5f, false, 0}, &budget);
  constexpr int kKeys = 40000;
  for (int i = 0; i < kKeys; ++i) table.add(key_of(i), i % 7);
  const size_t full = budget.used();
  ASSERT_EQ(table.num_keys(), kKeys - table.evictions());
  int given = 0;
  while (table.shrink()) ++given;
  EXPECT_GT(given, 4);
  EXPECT_LT(budget.used(), full / 4);
  EXPECT_EQ(budget.used(), table.bytes());
  int present = 0;
  for (int i = 0; i < kKeys; ++i) {
    const auto cell = table.find(key_of(i));
    if (cell.empty()) continue;
    ++present;
    EXPECT_EQ(cell[0].value, static_cast<uint32_t>(i % 7));
  }
  EXPECT_EQ(present, table.num_keys());
  EXPECT_GT(present, 3500);  // one segment's worth of 4096
  // And it grows again.
  for (int i = 0; i < kKeys; ++i) table.add(key_of(i), i % 7);
  EXPECT_GT(table.num_keys(), kKeys * 95 / 100);
}

TEST(CellTable, KeepsToItsNumberOfKeys) {
  MemoryBudget budget(64 << 20);
  CellTable table({16, 2.0f, 0.5f, false, 100}, &budget);
  for (int i = 0; i < 10000; ++i) {
    table.add(key_of(i), 1);
    ASSERT_LE(table.num_keys(), 101);
  }
  EXPECT_GE(table.num_keys(), 90);
}

TEST(CellTable, TellsItsKeysAndTakesThemBack) {
  MemoryBudget budget(64 << 20), other_budget(64 << 20);
  const CellTableOptions options{16, 2.0f, 0.5f, false, 0};
  CellTable table(options, &budget), other(options, &other_budget);
  std::mt19937 random(11);
  for (int i = 0; i < 100000; ++i) table.add(key_of(random() % 20000), random() % 9);
  uint64_t cursor = 0;
  int64_t told = 0;
  do {
    cursor = table.visit_segment(cursor, [&](uint64_t stem, std::span<const CellEntry> cell) {
      ++told;
      EXPECT_TRUE(other.restore(stem, cell));
    });
  } while (cursor != 0);
  EXPECT_EQ(told, table.num_keys());
  for (int i = 0; i < 20000; ++i) {
    const auto a = table.find(key_of(i)), b = other.find(key_of(i));
    if (b.empty()) continue;  // a bucket that overflowed
    ASSERT_EQ(a.size(), b.size());
    for (size_t j = 0; j < a.size(); ++j) {
      EXPECT_EQ(a[j].value, b[j].value);
      EXPECT_EQ(a[j].freq, b[j].freq);
    }
  }
  EXPECT_GT(other.num_keys(), told * 98 / 100);
}

}  // namespace
}  // namespace taco
