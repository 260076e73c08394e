// PageCache: verified pages that were read around the system's page cache, under a byte limit.
// Evicts by S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023):
// a page that is asked for once leaves through a small queue, so a scan never empties the main
// one. Thread safe; a page is copied out under the lock of one of several shards.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"

namespace mc {

struct PageKey {
  uint64_t segment = 0;  // Segment::cache_id
  uint64_t page = 0;
  bool operator==(const PageKey&) const = default;
};

struct PageKeyHash {
  size_t operator()(const PageKey& key) const {
    uint64_t z = (key.segment * 0x9E3779B97F4A7C15) ^ (key.page * 0xD6E8FEB86659FD93);
    z = (z ^ (z >> 32)) * 0xD6E8FEB86659FD93;
    return static_cast<size_t>(z ^ (z >> 32));
  }
};

struct PageCacheStats {
  uint64_t capacity_pages = 0, page_count = 0;
  uint64_t hits = 0, misses = 0, insertions = 0, evictions = 0;
  uint64_t returned = 0;  // inserted again soon after leaving: went to the main queue
};

class PageCache {
 public:
  // Takes memory as pages come. A limit below one page keeps nothing.
  PageCache(uint64_t byte_limit, uint32_t page_bytes);
  ~PageCache();

  uint32_t page_bytes() const { return page_bytes_; }
  uint64_t byte_limit() const { return byte_limit_; }

  // Copies out.size() bytes from `offset` within the page; false when it is not here.
  bool read(const PageKey& key, uint32_t offset, MutableBytes out);
  bool contains(const PageKey& key) const;
  // A page of at most page_bytes. `expected`: somebody said that it will be asked for, so it
  // does not have to prove itself in the small queue.
  void insert(const PageKey& key, Bytes page, bool expected);

  PageCacheStats stats() const;

 private:
  struct Shard;
  Shard& shard_of(const PageKey& key) const;

  const uint64_t byte_limit_;
  const uint32_t page_bytes_;
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace mc
