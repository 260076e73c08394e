// An immutable segment file as bytes: header, run table, rows, page checksums.
//
//   0             SegmentHeader (128 bytes)
//   128           RunEntry[run_count], sorted by (partition, first), never overlapping
//   data_offset   rows back to back in run order; data_offset is a multiple of page_bytes, so a
//                 row's place is arithmetic and a mapped row keeps its alignment
//   data_offset + data_bytes, rounded up to 4
//                 u32 crc32c of each page of the rows (the last page may be short)
//
// A postings segment has the same frame; its rows are the bytes of one search/ posting list file
// (row_bytes 1) and its runs say which blocks of which partitions it covers.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "format/row_format.h"
#include "format/wal_frame.h"

namespace mc {

inline constexpr std::array<char, 8> kSegmentMagic = {'M', 'C', 'S', 'E', 'G', '\0', '\1', '\n'};
inline constexpr uint32_t kSegmentVersion = 1;
inline constexpr uint64_t kScaledSegment = 1;  // the rows have a scaled type

enum class SegmentKind : uint8_t { kRows = 0, kPostings = 1 };  // on disk

// offset size field
//      0    8 magic             "MCSEG\0\1\n"
//      8    4 version           1
//     12    4 header_bytes      128
//     16    8 segment_id        as in the file's name; of two segments with the same row the
//                               one with the higher id holds its value
//     24   16 store_id
//     40    4 family            id of the row family; 0 for postings
//     44    1 kind              0 rows, 1 postings
//     45    1 type              of a row's elements (row_type.h)
//     46    1 lod
//     47    1 reserved          0
//     48    4 row_bytes
//     52    4 page_bytes        a power of two >= 512
//     56    8 row_count         sum over the runs (rows); bytes of the posting lists (postings)
//     64    8 data_bytes        row_count * row_bytes
//     72    8 data_offset
//     80    8 checksums_offset
//     88    8 file_bytes
//     96    4 run_count
//    100    4 runs_crc          crc32c of the run table
//    104    8 features          bits a reader must know: 1 scaled rows
//    112    8 created_ms
//    120    4 group_size        of scaled rows, else 0
//    124    4 crc               crc32c of bytes 0..123
struct SegmentHeader {
  std::array<char, 8> magic = kSegmentMagic;
  uint32_t version = kSegmentVersion;
  uint32_t header_bytes = 128;
  uint64_t segment_id = 0;
  StoreId store_id{};
  uint32_t family = 0;
  SegmentKind kind = SegmentKind::kRows;
  RowType type = RowType::kU8;
  uint8_t lod = 0;
  uint8_t reserved = 0;
  uint32_t row_bytes = 0;
  uint32_t page_bytes = 0;
  uint64_t row_count = 0;
  uint64_t data_bytes = 0;
  uint64_t data_offset = 0;
  uint64_t checksums_offset = 0;
  uint64_t file_bytes = 0;
  uint32_t run_count = 0;
  uint32_t runs_crc = 0;
  uint64_t features = 0;
  uint64_t created_ms = 0;
  uint32_t group_size = 0;
  uint32_t crc = 0;

  RowFormat row_format(uint32_t width) const { return {type, width, group_size}; }
  uint64_t page_count() const { return (data_bytes + page_bytes - 1) / page_bytes; }
};
static_assert(sizeof(SegmentHeader) == 128);
static_assert(offsetof(SegmentHeader, segment_id) == 16);
static_assert(offsetof(SegmentHeader, family) == 40 && offsetof(SegmentHeader, kind) == 44);
static_assert(offsetof(SegmentHeader, row_bytes) == 48);
static_assert(offsetof(SegmentHeader, row_count) == 56);
static_assert(offsetof(SegmentHeader, data_offset) == 72);
static_assert(offsetof(SegmentHeader, file_bytes) == 88);
static_assert(offsetof(SegmentHeader, run_count) == 96);
static_assert(offsetof(SegmentHeader, features) == 104);
static_assert(offsetof(SegmentHeader, group_size) == 120);
static_assert(offsetof(SegmentHeader, crc) == 124);

// offset size field
//      0    4 partition
//      4    4 reserved   0
//      8    8 first      index of the first row (or block) in its partition
//     16    8 count
struct RunEntry {
  uint32_t partition = 0;
  uint32_t reserved = 0;
  uint64_t first = 0;
  uint64_t count = 0;
};
static_assert(sizeof(RunEntry) == 24 && offsetof(RunEntry, first) == 8);

// Says whose rows a segment holds, and how they lie.
SegmentHeader of_rows(SegmentHeader header, uint32_t family, uint8_t lod, const RowFormat& format);

// Fills offsets, features, file_bytes and runs_crc from type, row_bytes, page_bytes, data_bytes and
// the runs.
SegmentHeader lay_out(SegmentHeader header, std::span<const RunEntry> runs);
SegmentHeader seal(SegmentHeader header);  // with its crc

// Everything that can be checked without the rest of the file, arithmetic included.
Result<SegmentHeader> decode_segment_header(Bytes bytes);
// `bytes` begins at the run table. Checks the crc, the order and the sum of the counts.
Result<std::vector<RunEntry>> decode_runs(const SegmentHeader& header, Bytes bytes);

}  // namespace mc
