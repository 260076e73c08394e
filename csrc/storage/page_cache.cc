#include "storage/page_cache.h"

#include <algorithm>
#include <cstring>

namespace mc {
namespace {

constexpr uint64_t kMostShards = 16;
constexpr uint64_t kLeastPagesPerShard = 64;
constexpr uint8_t kMostUses = 3;
constexpr uint8_t kUsesToStay = 2;  // while in the small queue

}  // namespace

struct PageCache::Shard {
  struct Frame {
    PageKey key;
    std::unique_ptr<std::byte[]> bytes;
    uint32_t byte_count = 0;
    uint8_t uses = 0;
  };

  mutable std::mutex mutex;
  uint64_t capacity = 0;
  std::vector<Frame> frames;  // grows up to capacity
  std::vector<uint32_t> free;
  std::unordered_map<PageKey, uint32_t, PageKeyHash> places;
  std::deque<uint32_t> small, main;  // frames, oldest first
  std::deque<PageKey> ghosts;        // that left the small queue, oldest first
  std::unordered_map<PageKey, uint32_t, PageKeyHash> ghost_counts;
  PageCacheStats stats;

  uint64_t small_capacity() const { return std::max<uint64_t>(capacity / 10, 1); }

  void remember(const PageKey& key) {
    ghosts.push_back(key);
    ++ghost_counts[key];
    while (ghosts.size() > capacity) {
      const auto oldest = ghost_counts.find(ghosts.front());
      if (--oldest->second == 0) ghost_counts.erase(oldest);
      ghosts.pop_front();
    }
  }

  void release(uint32_t frame) {
    places.erase(frames[frame].key);
    free.push_back(frame);
    ++stats.evictions;
  }

  // Each turn moves a page to the main queue, takes one of its uses, or frees a frame.
  void make_room() {
    while (free.empty() && frames.size() == capacity) {
      const bool from_small = main.empty() || small.size() >= small_capacity();
      std::deque<uint32_t>& queue = from_small && !small.empty() ? small : main;
      const uint32_t oldest = queue.front();
      queue.pop_front();
      Frame& frame = frames[oldest];
      if (&queue == &small) {
        if (frame.uses >= kUsesToStay) {
          frame.uses = 0;
          main.push_back(oldest);
        } else {
          remember(frame.key);
          release(oldest);
        }
      } else if (frame.uses > 0) {
        --frame.uses;
        main.push_back(oldest);
      } else {
        release(oldest);
      }
    }
  }

  uint32_t take_frame(uint32_t page_bytes) {
    make_room();
    if (free.empty()) {
      frames.push_back({{}, std::make_unique_for_overwrite<std::byte[]>(page_bytes)});
      return static_cast<uint32_t>(frames.size() - 1);
    }
    const uint32_t frame = free.back();
    free.pop_back();
    return frame;
  }
};

PageCache::PageCache(uint64_t byte_limit, uint32_t page_bytes)
    : byte_limit_(byte_limit), page_bytes_(page_bytes) {
  const uint64_t pages = byte_limit / page_bytes;
  const uint64_t count = std::clamp<uint64_t>(pages / kLeastPagesPerShard, 1, kMostShards);
  for (uint64_t i = 0; i < count && pages > 0; ++i) {
    shards_.push_back(std::make_unique<Shard>());
    shards_.back()->capacity = pages / count;
  }
}

PageCache::~PageCache() = default;

PageCache::Shard& PageCache::shard_of(const PageKey& key) const {
  return *shards_[(PageKeyHash()(key) >> 40) % shards_.size()];
}

bool PageCache::read(const PageKey& key, uint32_t offset, MutableBytes out) {
  if (shards_.empty()) return false;
  Shard& shard = shard_of(key);
  std::lock_guard guard(shard.mutex);
  const auto found = shard.places.find(key);
  if (found == shard.places.end()) {
    ++shard.stats.misses;
    return false;
  }
  Shard::Frame& frame = shard.frames[found->second];
  if (offset + out.size() > frame.byte_count) return false;
  std::memcpy(out.data(), frame.bytes.get() + offset, out.size());
  if (frame.uses < kMostUses) ++frame.uses;
  ++shard.stats.hits;
  return true;
}

bool PageCache::contains(const PageKey& key) const {
  if (shards_.empty()) return false;
  const Shard& shard = shard_of(key);
  std::lock_guard guard(shard.mutex);
  return shard.places.contains(key);
}

void PageCache::insert(const PageKey& key, Bytes page, bool expected) {
  if (shards_.empty() || page.size() > page_bytes_) return;
  Shard& shard = shard_of(key);
  std::lock_guard guard(shard.mutex);
  if (shard.places.contains(key)) return;
  const bool returns = shard.ghost_counts.contains(key);
  const uint32_t index = shard.take_frame(page_bytes_);
  Shard::Frame& frame = shard.frames[index];
  frame.key = key;
  frame.byte_count = static_cast<uint32_t>(page.size());
  frame.uses = 0;
  std::memcpy(frame.bytes.get(), page.data(), page.size());
  shard.places.emplace(key, index);
  (returns || expected ? shard.main : shard.small).push_back(index);
  ++shard.stats.insertions;
  shard.stats.returned += returns;
}

PageCacheStats PageCache::stats() const {
  PageCacheStats sum;
  for (const auto& shard : shards_) {
    std::lock_guard guard(shard->mutex);
    sum.capacity_pages += shard->capacity;
    sum.page_count += shard->places.size();
    sum.hits += shard->stats.hits;
    sum.misses += shard->stats.misses;
    sum.insertions += shard->stats.insertions;
    sum.evictions += shard->stats.evictions;
    sum.returned += shard->stats.returned;
  }
  return sum;
}

}  // namespace mc
