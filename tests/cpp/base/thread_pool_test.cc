#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"

namespace taco {
namespace {

TEST(ThreadPool, RunsEveryThreadOnce) {
  for (int n : {1, 2, 3, 5}) {
    ThreadPool pool(n);
    EXPECT_EQ(pool.size(), n);
    std::vector<int> calls(n, 0);
    for (int round = 0; round < 200; ++round) {
      pool.run([&](int thread, int threads) {
        ASSERT_EQ(threads, n);
        calls[thread]++;
      });
    }
    for (int c : calls) EXPECT_EQ(c, 200);
  }
}

TEST(ThreadPool, CallerIsThreadZero) {
  ThreadPool pool(2);
  std::thread::id zero;
  pool.run([&](int thread, int) {
    if (thread == 0) zero = std::this_thread::get_id();
  });
  EXPECT_EQ(zero, std::this_thread::get_id());
}

// Each job reads what the one before wrote on another thread: the barrier must order them.
TEST(ThreadPool, JobsAreOrdered) {
  ThreadPool pool(2);
  int values[2] = {0, 0};
  for (int i = 0; i < 2000; ++i) {
    pool.run([&](int thread, int) { values[thread] = values[thread] + 1; });
    pool.run([&](int thread, int) {
      if (values[1 - thread] != i + 1) throw std::runtime_error("stale");
    });
  }
  EXPECT_EQ(values[0] + values[1], 4000);
}

TEST(ThreadPool, ParallelForCoversTheRangeOnce) {
  ThreadPool pool(3);
  for (int64_t count : {0, 1, 2, 3, 7, 100}) {
    for (int64_t grain : {1, 4}) {
      std::vector<int> hits(count, 0);
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) hits[i]++;
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), count);
      for (int h : hits) EXPECT_EQ(h, 1);
    }
  }
}

TEST(ThreadPool, WakesFromSleepAndFromPark) {
  ThreadPool pool(2);
  std::vector<int> calls(2, 0);
  for (int i = 0; i < 5; ++i) {
    if (i % 2) pool.park();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    pool.run([&](int thread, int) { calls[thread]++; });
  }
  EXPECT_EQ(calls, (std::vector<int>{5, 5}));
}

TEST(ThreadPool, AnErrorOnAnyThreadReachesTheCaller) {
  ThreadPool pool(2);
  for (int bad : {0, 1}) {
    EXPECT_THROW(pool.run([&](int thread, int) {
      if (thread == bad) throw std::runtime_error("bad");
    }),
                 std::runtime_error);
    int calls[2] = {0, 0};
    pool.run([&](int thread, int) { calls[thread]++; });  // and the pool goes on
    EXPECT_EQ(calls[0] + calls[1], 2);
  }
}

TEST(ThreadPool, RefusesANestedJob) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.run([&](int thread, int) {
    if (thread == 0) pool.run([](int, int) {});
  }),
               Error);
}

TEST(ThreadPool, RefusesANegativeSize) { EXPECT_THROW(ThreadPool(-1), Error); }

TEST(ThreadPool, DefaultSizeIsAtLeastOne) {
  ThreadPool pool(0);
  EXPECT_GE(pool.size(), 1);
  EXPECT_LE(pool.size(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace taco
