#include "storage/read_path.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/str_cat.h"
#include "storage/prefetcher.h"

namespace mc {
namespace {

constexpr uint64_t kMostReadBytes = 256 << 10;
constexpr uint64_t kScratchBytes = 8 << 20;  // a batch; larger gathers are several
constexpr size_t kMostIdleScratch = 2;

struct PieceLess {
  bool operator()(const PagePiece& a, const PagePiece& b) const {
    return std::pair(a.segment->cache_id(), a.page) < std::pair(b.segment->cache_id(), b.page);
  }
};

}  // namespace

void add_pieces(const Segment& segment, const std::byte* start, uint64_t byte_count, std::byte* out,
                std::vector<PagePiece>& pieces) {
  const uint64_t page_bytes = segment.header().page_bytes;
  auto at = static_cast<uint64_t>(start - segment.rows());
  while (byte_count > 0) {
    const uint64_t within = at % page_bytes;
    const uint64_t count = std::min(byte_count, page_bytes - within);
    pieces.push_back({&segment, at / page_bytes, static_cast<uint32_t>(within),
                      static_cast<uint32_t>(count), out});
    at += count;
    byte_count -= count;
    if (out != nullptr) out += count;
  }
}

// Reads that share one scratch buffer, and the pieces that they serve.
struct ReadPath::Wave {
  struct Extent {  // pages side by side
    const PagePiece* first;
    const PagePiece* end;
    uint64_t skip;  // bytes of the read before the first page
  };
  MutableBytes scratch;
  uint64_t used = 0;
  std::vector<BatchRead> reads = {};
  std::vector<Extent> extents = {};
};

ReadPath::ReadPath(Env* env, const ReadOptions& options, uint32_t page_bytes,
                   std::shared_ptr<StoreMetrics> metrics)
    : env_(env),
      options_(options),
      metrics_(std::move(metrics)),
      cache_(options.page_cache_bytes, page_bytes),
      prefetcher_(std::make_unique<Prefetcher>(*this)) {}

ReadPath::~ReadPath() {
  prefetcher_->stop();
  for (MutableBytes buffer : scratch_) std::free(buffer.data());
}

void ReadPath::set_segment_bytes(uint64_t byte_count) {
  const auto memory = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                      static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  exceeds_memory_.store(byte_count > memory / 2, std::memory_order_relaxed);
}

Result<BatchReader*> ReadPath::batch_reader(bool direct) {
  std::lock_guard guard(mutex_);
  std::unique_ptr<BatchReader>& reader = batch_readers_[direct];
  if (reader == nullptr) {
    MC_ASSIGN_OR_RETURN(
        reader,
        env_->batch_reader({.engine = options_.engine, .depth = options_.depth, .direct = direct}));
  }
  return reader.get();
}

Result<MutableBytes> ReadPath::borrow_scratch() {
  std::lock_guard guard(mutex_);
  if (!scratch_.empty()) {
    const MutableBytes buffer = scratch_.back();
    scratch_.pop_back();
    return buffer;
  }
  void* made = std::aligned_alloc(kDirectAlign, kScratchBytes);
  if (made == nullptr) return Status::io_error("[read] no memory for a read buffer", ENOMEM);
  return MutableBytes(static_cast<std::byte*>(made), kScratchBytes);
}

void ReadPath::return_scratch(MutableBytes buffer) {
  std::lock_guard guard(mutex_);
  if (scratch_.size() < kMostIdleScratch) {
    scratch_.push_back(buffer);
  } else {
    std::free(buffer.data());
  }
}

Status ReadPath::read(std::vector<PagePiece>& pieces, bool expected) {
  std::sort(pieces.begin(), pieces.end(), PieceLess());
  if (is_direct()) {
    uint64_t hit_pages = 0;
    std::erase_if(pieces, [&](const PagePiece& piece) {
      const PageKey key{piece.segment->cache_id(), piece.page};
      const bool cached = piece.out == nullptr
                              ? cache_.contains(key)
                              : cache_.read(key, piece.offset, {piece.out, piece.byte_count});
      hit_pages += cached;
      return cached;
    });
    metrics_->cache_hit_pages.add(hit_pages);
  }
  if (pieces.empty()) return Status::ok();
  MC_ASSIGN_OR_RETURN(const MutableBytes scratch, borrow_scratch());
  const Status status = read_from_disk(pieces, scratch, expected);
  return_scratch(scratch);
  return status;
}

Status ReadPath::read_from_disk(const std::vector<PagePiece>& pieces, MutableBytes scratch,
                                bool expected) {
  Wave wave{scratch};
  const PagePiece* const end = pieces.data() + pieces.size();
  for (const PagePiece* at = pieces.data(); at != end;) {
    const Segment& segment = *at->segment;
    segment.want_checksums();
    const uint64_t page_bytes = segment.header().page_bytes;
    if (page_bytes > kScratchBytes) {
      return Status::unsupported(
          str_cat(segment.path(), ": page_bytes must be <= ", kScratchBytes, ", got ", page_bytes));
    }
    const PagePiece* last = at;  // of the pages that lie side by side from `at` on
    while (last + 1 != end && last[1].segment == at->segment && last[1].page <= last->page + 1 &&
           (last[1].page - at->page + 1) * page_bytes <= kMostReadBytes) {
      ++last;
    }
    // From and to what the disk can read directly, so pages may be smaller than its blocks.
    const uint64_t start = segment.header().data_offset + at->page * page_bytes;
    const uint64_t offset = start - start % kDirectAlign;
    const uint64_t byte_count =
        round_up(start + (last->page - at->page + 1) * page_bytes - offset, kDirectAlign);
    if (wave.used + byte_count > scratch.size()) MC_RETURN_IF_ERROR(read_wave(wave, expected));
    wave.reads.push_back({&segment.file(), offset, scratch.subspan(wave.used, byte_count), {}, 0});
    wave.extents.push_back({at, last + 1, start - offset});
    wave.used += byte_count;
    at = last + 1;
  }
  return read_wave(wave, expected);
}

Status ReadPath::read_wave(Wave& wave, bool expected) {
  if (wave.reads.empty()) return Status::ok();
  MC_ASSIGN_OR_RETURN(BatchReader* const reader, batch_reader(is_direct()));
  const LatencyTimer timer(metrics_->disk_latency_us);
  metrics_->disk_read_count.add(wave.reads.size());
  metrics_->disk_batch_reads.record(wave.reads.size());
  Status status;
  uint64_t pages = 0, bytes = 0;
  reader->read(wave.reads, [&](size_t index) {
    const BatchRead& read = wave.reads[index];
    const auto [first, end, skip] = wave.extents[index];
    const Segment& segment = *first->segment;
    bytes += read.byte_count;
    if (!read.status.is_ok()) {
      if (status.is_ok()) {
        status = Status::io_error(str_cat(segment.path(), ": ", read.status.message()),
                                  read.status.error_number());
      }
      return;
    }
    for (const PagePiece* at = first; at != end && status.is_ok();) {
      const PagePiece* next = at;
      while (next != end && next->page == at->page) ++next;
      const uint64_t from = skip + (at->page - first->page) * segment.header().page_bytes;
      const uint64_t count = segment.bytes_of_page(at->page);
      if (from + count > read.byte_count) {
        status = Status::corruption(str_cat(segment.path(), ":", read.offset + from, ": expected ",
                                            count, " bytes, got the end of the file"));
        return;
      }
      status = take_page(at, next, Bytes(read.out).subspan(from, count), expected);
      ++pages;
      at = next;
    }
  });
  metrics_->disk_pages.add(pages);
  metrics_->disk_read_bytes.add(bytes);
  wave.reads.clear();
  wave.extents.clear();
  wave.used = 0;
  return status;
}

// Checks one page that came from the disk, hands it to its pieces and keeps it.
Status ReadPath::take_page(const PagePiece* first, const PagePiece* end, Bytes page,
                           bool expected) {
  MC_RETURN_IF_ERROR(first->segment->verify_copy(first->page, page));
  for (const PagePiece* piece = first; piece != end; ++piece) {
    if (piece->out != nullptr) {
      std::memcpy(piece->out, page.data() + piece->offset, piece->byte_count);
    }
  }
  if (is_direct()) cache_.insert({first->segment->cache_id(), first->page}, page, expected);
  return Status::ok();
}

void ReadPath::list_metrics(MetricList& list) {
  const StoreMetrics& from = *metrics_;
  {
    std::lock_guard guard(mutex_);
    const BatchReader* reader = batch_readers_[is_direct()].get();
    list.gauge("read_depth", "1", "reads at once, at most", options_.depth);
    list.label("engine", std::string(reader == nullptr ? "unused" : reader->name()));
  }
  list.counter("read_count", "1", "calls that read rows", from.read_count.value());
  list.histogram("read_latency_us", "us", "of such a call", from.read_latency_us);
  list.counter("mapped_rows", "1", "rows copied from memory", from.mapped_rows.value());
  list.counter("cold_rows", "1", "rows that took the cold path", from.cold_rows.value());
  list.counter("cache_hit_pages", "1", "cold pages found in the page cache",
               from.cache_hit_pages.value());
  list.counter("disk_pages", "1", "cold pages read from the disk", from.disk_pages.value());
  list.counter("disk_read_count", "1", "reads of the disk, pages side by side being one",
               from.disk_read_count.value());
  list.counter("disk_read_bytes", "bytes", "read from the disk", from.disk_read_bytes.value());
  list.histogram("disk_latency_us", "us", "of a batch of reads", from.disk_latency_us);
  list.histogram("disk_batch_reads", "1", "reads in a batch", from.disk_batch_reads);
  list.counter("prefetch_count", "1", "prefetches asked for", from.prefetch_count.value());
  list.counter("prefetch_pages", "1", "pages they asked for", from.prefetch_pages.value());
  list.counter("prefetch_cancelled_count", "1", "prefetches that were cancelled",
               from.prefetch_cancelled_count.value());
  list.gauge("prefetch_waiting_bytes", "bytes", "that wait to be prefetched",
             prefetcher_->waiting_bytes());
  const PageCacheStats cache = cache_.stats();
  list.gauge("page_cache_limit_bytes", "bytes", "the page cache may take", cache_.byte_limit());
  list.gauge("page_cache_pages", "1", "pages in the page cache", cache.page_count);
  list.counter("page_cache_insertions", "1", "pages put into the page cache", cache.insertions);
  list.counter("page_cache_evictions", "1", "pages that left it", cache.evictions);
  list.counter("page_cache_returned", "1", "pages put in again soon after leaving", cache.returned);
}

}  // namespace mc
