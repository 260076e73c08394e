// Segment: one immutable file of rows, mapped. Each page is checked against its crc32c when it is
// first touched, so opening costs the header and the run table only. Thread safe.
#pragma once

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

  // Checks the pages under these bytes (at least one) unless that was done before.
  Status verify(const std::byte* start, uint64_t byte_count) const;
  // Checks every page again.
  Status verify_all() const;

 private:
  Segment() = default;
  Status verify_page(uint64_t page) const;

  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  SegmentHeader header_;
  std::vector<RunEntry> runs_;
  const std::byte* rows_ = nullptr;
  const std::byte* checksums_ = nullptr;
  uint32_t page_shift_ = 0;
  mutable std::vector<std::atomic<uint64_t>> verified_;  // a bit a page
};

}  // namespace mc
