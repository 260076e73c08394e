#include "storage/page_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

namespace mc {
namespace {

constexpr uint32_t kPage = 64;

std::vector<std::byte> content(const PageKey& key) {
  std::vector<std::byte> bytes(kPage);
  for (uint32_t i = 0; i < kPage; ++i) {
    bytes[i] = static_cast<std::byte>(key.segment * 31 + key.page * 7 + i);
  }
  return bytes;
}

// Asks for a page and puts it in when it is not there, as the read path does.
bool touch(PageCache& cache, const PageKey& key) {
  std::vector<std::byte> got(kPage);
  if (cache.read(key, 0, got)) {
    EXPECT_EQ(got, content(key));
    return true;
  }
  cache.insert(key, content(key), false);
  return false;
}

TEST(PageCache, gives_back_what_was_put_in_and_never_more_than_its_limit) {
  PageCache cache(100 * kPage, kPage);
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    touch(cache, {random() % 3, random() % 120});
    ASSERT_LE(cache.stats().page_count, 100u);
  }
  const PageCacheStats stats = cache.stats();
  EXPECT_GT(stats.hits, 4'000u);  // of a set 3.6 times as large
  EXPECT_EQ(stats.hits + stats.misses, 20'000u);
  EXPECT_EQ(stats.insertions - stats.evictions, stats.page_count);
}

TEST(PageCache, a_part_of_a_page_is_read_and_nothing_beyond_its_end) {
  PageCache cache(10 * kPage, kPage);
  const auto bytes = content({1, 2});
  cache.insert({1, 2}, Bytes(bytes).first(20), false);
  std::vector<std::byte> got(5);
  ASSERT_TRUE(cache.read({1, 2}, 15, got));
  EXPECT_TRUE(std::equal(got.begin(), got.end(), bytes.begin() + 15));
  EXPECT_FALSE(cache.read({1, 2}, 16, got));
}

TEST(PageCache, a_scan_does_not_drive_out_what_is_used) {
  PageCache cache(1000 * kPage, kPage);
  for (int round = 0; round < 5; ++round) {
    for (uint64_t page = 0; page < 500; ++page) touch(cache, {1, page});
  }
  for (uint64_t page = 0; page < 100'000; ++page) touch(cache, {2, page});  // a scan
  uint64_t left = 0;
  for (uint64_t page = 0; page < 500; ++page) left += cache.contains({1, page});
  EXPECT_GT(left, 450u);  // an LRU would have none
}

TEST(PageCache, follows_when_what_is_used_changes) {
  PageCache cache(1000 * kPage, kPage);
  for (uint64_t set = 0; set < 4; ++set) {
    uint64_t hits = 0;
    for (int round = 0; round < 20; ++round) {
      hits = 0;
      for (uint64_t page = 0; page < 700; ++page) hits += touch(cache, {set, page});
    }
    EXPECT_GT(hits, 600u) << "set " << set;
  }
}

TEST(PageCache, an_expected_page_outlives_a_scan_that_comes_before_it_is_asked_for) {
  PageCache cache(1000 * kPage, kPage);
  for (uint64_t page = 0; page < 200; ++page) cache.insert({1, page}, content({1, page}), true);
  for (uint64_t page = 0; page < 3000; ++page) touch(cache, {2, page});
  uint64_t left = 0;
  for (uint64_t page = 0; page < 200; ++page) left += cache.contains({1, page});
  EXPECT_EQ(left, 200u);
}

TEST(PageCache, without_room_for_a_page_it_keeps_nothing) {
  PageCache cache(kPage - 1, kPage);
  EXPECT_FALSE(touch(cache, {1, 1}));
  EXPECT_FALSE(touch(cache, {1, 1}));
  EXPECT_EQ(cache.stats().page_count, 0u);
}

TEST(PageCache, serves_many_threads) {
  PageCache cache(2000 * kPage, kPage);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&cache, i] {
      std::mt19937 random(i);
      for (int step = 0; step < 20'000; ++step) touch(cache, {random() % 2, random() % 3000});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.stats().page_count, 2000u);
}

}  // namespace
}  // namespace mc
