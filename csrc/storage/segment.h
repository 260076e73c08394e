// Segment: one immutable file of rows, mapped. Each page is checked against its crc32c when it is
// first touched, so opening costs the header and the run table only. Thread safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "format/manifest.h"
#include "format/segment_header.h"
#include "io/env.h"

namespace mc {

class Segment {
 public:
  // Corruption when the file is not the one the entry describes.
  static Result<std::shared_ptr<const Segment>> open(Env* env, const std::string& directory,
                                                     const StoreId& store_id,
                                                     const SegmentEntry& entry);

  const SegmentHeader& header() const { return header_; }
  const std::vector<RunEntry>& runs() const { return runs_; }
  const std::string& path() const { return path_; }
  SegmentEntry entry() const { return {header_.segment_id, header_.file_bytes, header_.crc}; }

  // Rows back to back in run order.
  const std::byte* rows() const { return rows_; }
  Bytes row_bytes() const { return {rows_, header_.data_bytes}; }

  const ReadableFile& file() const { return *file_; }
  // Of this process, never used twice.
  uint64_t cache_id() const { return cache_id_; }
  uint64_t bytes_of_page(uint64_t page) const {
    return std::min<uint64_t>(header_.page_bytes, header_.data_bytes - page * header_.page_bytes);
  }

  // Whether verify() of these bytes has nothing left to do.
  bool is_verified(const std::byte* start, uint64_t byte_count) const {
    const auto offset = static_cast<uint64_t>(start - rows_);
    const uint64_t last = (offset + byte_count - 1) >> page_shift_;
    for (uint64_t page = offset >> page_shift_; page <= last; ++page) {
      const uint64_t word = verified_[page / 64].load(std::memory_order_relaxed);
      if (!(word >> (page % 64) & 1)) return false;
    }
    return true;
  }
  bool is_resident(const std::byte* start, uint64_t byte_count) const {
    const auto offset = static_cast<uint64_t>(start - rows_);
    return file_->is_resident(header_.data_offset + offset, byte_count);
  }
  // Begins to read the table of checksums, once: otherwise each piece of it is a wait of its own
  // when the first pages are checked.
  void want_checksums() const {
    if (wants_checksums_.exchange(true, std::memory_order_relaxed)) return;
    file_->will_need(header_.checksums_offset, header_.page_count() * sizeof(uint32_t));
  }
  // Checks a copy of one page that was not read through the mapping.
  Status verify_copy(uint64_t page, Bytes bytes) const;
  // Checks the pages under these bytes (at least one) unless that was done before.
  Status verify(const std::byte* start, uint64_t byte_count) const;
  // Checks every page again.
  Status verify_all() const;

 private:
  Segment() = default;
  Status verify_page(uint64_t page) const;

  uint64_t cache_id_ = 0;
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  SegmentHeader header_;
  std::vector<RunEntry> runs_;
  const std::byte* rows_ = nullptr;
  const std::byte* checksums_ = nullptr;
  uint32_t page_shift_ = 0;
  mutable std::vector<std::atomic<uint64_t>> verified_;  // a bit a page
  mutable std::atomic<bool> wants_checksums_{false};
};

}  // namespace mc
