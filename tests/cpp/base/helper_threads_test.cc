#include "base/helper_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"

namespace taco {
namespace {

TEST(HelperThreads, EachItemOnce) {
  for (int helpers : {0, 1, 3}) {
    HelperThreads threads(helpers);
    EXPECT_EQ(threads.size(), helpers + 1);
    for (int round = 0; round < 2000; ++round) {
      const int count = round % 37;
      std::vector<int> calls(static_cast<size_t>(count), 0);
      std::vector<int> by(static_cast<size_t>(count), -1);
      threads.run(count, [&](int item, int thread) {
        ++calls[static_cast<size_t>(item)];
        by[static_cast<size_t>(item)] = thread;
      });
      for (int i = 0; i < count; ++i) {
        ASSERT_EQ(calls[static_cast<size_t>(i)], 1) << "item " << i << " of " << count;
        ASSERT_GE(by[static_cast<size_t>(i)], 0);
        ASSERT_LE(by[static_cast<size_t>(i)], helpers);
      }
    }
  }
}

// The second item goes to a helper: the first one ends only then.
TEST(HelperThreads, ItemsRunBesideEachOther) {
  HelperThreads threads(1);
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> begun{0};
    std::thread::id ids[2];
    threads.run(2, [&](int item, int) {
      ids[item] = std::this_thread::get_id();
      ++begun;
      while (begun < 2) std::this_thread::yield();
    });
    EXPECT_NE(ids[0], ids[1]);
  }
}

// A helper that comes late finds the next job or none, never the one that is over.
TEST(HelperThreads, JobsFollowEachOtherAtOnce) {
  HelperThreads threads(3);
  int64_t sum = 0;
  for (int job = 1; job <= 20000; ++job) {
    std::atomic<int64_t> part{0};
    threads.run(3, [&part, job](int item, int) { part += int64_t{job} * (item + 1); });
    ASSERT_EQ(part, int64_t{job} * 6);
    sum += part;
  }
  EXPECT_EQ(sum, 6 * int64_t{20000} * 20001 / 2);
}

TEST(HelperThreads, AFailedItemIsTheCallersError) {
  HelperThreads threads(3);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> done{0};
    EXPECT_THROW(threads.run(16,
                             [&](int item, int) {
                               ++done;
                               if (item == round % 16) fail(ErrorCode::kInternal, "item ", item);
                             }),
                 Error);
    EXPECT_EQ(done, 16);
    threads.run(4, [&](int, int) { ++done; });
    EXPECT_EQ(done, 20);
  }
}

TEST(HelperThreads, RefusesWhatItCannotCount) {
  EXPECT_THROW(HelperThreads(-1), Error);
  HelperThreads threads(0);
  EXPECT_THROW(threads.run(HelperThreads::kMostItems + 1, [](int, int) {}), Error);
}

}  // namespace
}  // namespace taco
