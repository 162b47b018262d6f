#include "base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace baton {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceInContiguousParts) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool({.threads = threads});
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t count : {0, 1, 2, 3, 7, 1000}) {
      std::vector<int> hits(static_cast<size_t>(count), 0);
      std::atomic<int> parts = 0;
      pool.ParallelFor(count, [&](int64_t begin, int64_t end, int thread) {
        EXPECT_LT(begin, end);
        EXPECT_TRUE(thread >= 0 && thread < threads) << thread;
        ++parts;
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), count);
      EXPECT_LE(parts, threads);
    }
  }
}

// One part is held up until all others are done, which has to happen whatever thread took them.
TEST(ThreadPoolTest, OneSlowPartKeepsNoOtherPartWaiting) {
  ThreadPool pool({.threads = 4, .spin_micros = 0});
  for (int64_t slow = 0; slow < 4; ++slow) {
    std::atomic<int> done = 0;
    pool.ParallelFor(4, [&](int64_t begin, int64_t, int thread) {
      if (begin == slow && thread != 0) {
        while (done < 3) std::this_thread::yield();
      }
      ++done;
    });
    EXPECT_EQ(done, 4);
  }
}

TEST(ThreadPoolTest, ManyCallsInARowSeeEachOthersWrites) {
  ThreadPool pool({.threads = 4});
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(64, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
    // The caller reads and writes between calls without any lock.
    values[0] += 1;
  }
  EXPECT_EQ(values[0], 2000);
  EXPECT_EQ(std::accumulate(values.begin() + 1, values.end(), int64_t{0}), 2000 * (63 * 64 / 2));
}

TEST(ThreadPoolTest, WakesThreadsThatHaveGoneToSleep) {
  ThreadPool pool({.threads = 3, .spin_micros = 0});
  std::vector<int> hits(3, 0);
  for (int round = 0; round < 200; ++round) {
    pool.ParallelFor(3, [&](int64_t begin, int64_t, int) { ++hits[static_cast<size_t>(begin)]; });
  }
  EXPECT_EQ(hits, std::vector<int>(3, 200));
}

TEST(ThreadPoolTest, ClampsAndPins) {
  EXPECT_EQ(ThreadPool({.threads = 0}).threads(), AllowedCpuCount());
  EXPECT_EQ(ThreadPool({.threads = -5}).threads(), 1);
  ThreadPool pinned({.threads = 2, .pin = true});
  int64_t sum[2] = {0, 0};
  pinned.ParallelFor(2, [&](int64_t begin, int64_t, int thread) { sum[thread] += begin + 1; });
  EXPECT_EQ(sum[0] + sum[1], 3);
}

}  // namespace
}  // namespace baton
