// SegmentWriter: writes one segment file front to back, with the checksum of each page.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "format/manifest.h"
#include "format/segment_header.h"
#include "io/env.h"

namespace mc {

class SegmentWriter {
 public:
  // `header` needs segment_id, store_id, family, kind, type, lod, row_bytes, page_bytes,
  // data_bytes and created_ms; the rest is computed.
  static Result<SegmentWriter> create(Env* env, const std::string& directory,
                                      const SegmentHeader& header,
                                      const std::vector<RunEntry>& runs);
  Status append(Bytes rows);
  // All data_bytes were appended. The content is durable on return, the name is not yet.
  Result<SegmentEntry> finish();

 private:
  SegmentWriter() = default;
  Status write(Bytes bytes);

  std::unique_ptr<WritableFile> file_;
  SegmentHeader header_;
  uint64_t offset_ = 0;      // in the file, of the buffer's first byte
  uint64_t data_bytes_ = 0;  // appended
  uint32_t page_crc_ = 0;    // of the page being filled
  std::vector<std::byte> buffer_;
  std::vector<uint32_t> checksums_;
};

}  // namespace mc
