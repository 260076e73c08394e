// ReadPath: how rows of segments get into memory. Warm rows are copied from the mapping of their
// file; cold ones are read in one batch, checked and copied to the caller. While the segments fit
// into half of the machine's memory, that batch goes through the system's page cache, where the
// mapping finds it the next time; beyond, around it and into the PageCache. One ReadPath serves a
// store and all of its snapshots.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "io/batch_reader.h"
#include "io/env.h"
#include "storage/page_cache.h"
#include "storage/segment.h"
#include "storage/store_metrics.h"

namespace mc {

class Prefetcher;

enum class ReadMode : uint8_t {
  kAuto = 0,    // a row is warm when the system has its pages in memory, else cold
  kMapped = 1,  // every row is warm: the system reads page by page what is not in memory
  kDirect = 2,  // every row is cold: memory is the PageCache and nothing else
};

struct ReadOptions {
  ReadMode mode = ReadMode::kAuto;
  BatchEngine engine = BatchEngine::kAuto;
  uint32_t depth = 64;  // reads at once
  uint64_t page_cache_bytes = 64 << 20;
  uint64_t prefetch_bytes = 16 << 20;  // most that may wait to be prefetched
};

// Part of one page of a segment, and where it goes (null: only to the cache).
struct PagePiece {
  const Segment* segment = nullptr;
  uint64_t page = 0;
  uint32_t offset = 0, byte_count = 0;
  std::byte* out = nullptr;
};

class ReadPath {
 public:
  ReadPath(Env* env, const ReadOptions& options, uint32_t page_bytes,
           std::shared_ptr<StoreMetrics> metrics);
  ~ReadPath();

  // Whether these bytes of the mapping may be touched without waiting for a disk (or mode says so).
  bool is_warm(const Segment& segment, const std::byte* start, uint64_t byte_count) const {
    if (options_.mode == ReadMode::kMapped) return true;
    if (options_.mode == ReadMode::kDirect) return false;
    if (!exceeds_memory_.load(std::memory_order_relaxed) && segment.is_verified(start, byte_count))
      return true;
    return segment.is_resident(start, byte_count);
  }
  // Reads all pieces; sorts them. Pages that lie side by side are one read.
  Status read(std::vector<PagePiece>& pieces, bool expected);

  // Whether pages are read around the system's page cache and kept in ours.
  bool is_direct() const {
    return options_.mode == ReadMode::kDirect || exceeds_memory_.load(std::memory_order_relaxed);
  }
  // Of all segments. Above half of the machine's memory, a page that was touched once need not
  // be there any more, so residency is asked for each time.
  void set_segment_bytes(uint64_t byte_count);

  PageCache& cache() { return cache_; }
  StoreMetrics& metrics() { return *metrics_; }
  const ReadOptions& options() const { return options_; }
  Prefetcher& prefetcher() { return *prefetcher_; }
  void list_metrics(MetricList& list);

 private:
  struct Wave;
  Result<BatchReader*> batch_reader(bool direct);
  Result<MutableBytes> borrow_scratch();
  void return_scratch(MutableBytes buffer);
  Status read_from_disk(const std::vector<PagePiece>& pieces, MutableBytes scratch, bool expected);
  Status read_wave(Wave& wave, bool expected);
  Status take_page(const PagePiece* first, const PagePiece* end, Bytes page, bool expected);

  Env* const env_;
  const ReadOptions options_;
  const std::shared_ptr<StoreMetrics> metrics_;
  PageCache cache_;
  std::atomic<bool> exceeds_memory_ = false;
  std::mutex mutex_;
  std::unique_ptr<BatchReader> batch_readers_[2];  // [direct]
  std::vector<MutableBytes> scratch_;              // idle buffers of kScratchBytes
  std::unique_ptr<Prefetcher> prefetcher_;
};

// Splits bytes of a segment's mapping into pieces of its pages.
void add_pieces(const Segment& segment, const std::byte* start, uint64_t byte_count, std::byte* out,
                std::vector<PagePiece>& pieces);

}  // namespace mc
