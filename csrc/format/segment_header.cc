#include "format/segment_header.h"

#include <bit>
#include <cstring>

#include "base/crc32c.h"
#include "base/str_cat.h"

namespace mc {
namespace {

constexpr uint64_t kChecksumAlign = 4;
constexpr uint32_t kLeastPageBytes = 512;
constexpr uint64_t kMostDataBytes = uint64_t{1} << 46;  // keeps the arithmetic below from wrapping

bool lengths_fit(const SegmentHeader& header) {
  if (header.header_bytes != sizeof(SegmentHeader)) return false;
  if (header.page_bytes < kLeastPageBytes || !std::has_single_bit(header.page_bytes)) return false;
  if (header.data_bytes > kMostDataBytes || header.row_bytes == 0) return false;
  if (header.data_bytes / header.row_bytes != header.row_count) return false;
  if (header.data_bytes % header.row_bytes != 0) return false;
  const SegmentHeader expected = lay_out(header, {});
  const uint64_t runs_end = sizeof(SegmentHeader) + uint64_t{header.run_count} * sizeof(RunEntry);
  return header.data_offset == round_up(runs_end, header.page_bytes) &&
         header.checksums_offset - header.data_offset ==
             expected.checksums_offset - expected.data_offset &&
         header.file_bytes - header.data_offset == expected.file_bytes - expected.data_offset;
}

}  // namespace

SegmentHeader of_rows(SegmentHeader header, uint32_t family, uint8_t lod, const RowFormat& format) {
  header.kind = SegmentKind::kRows;
  header.family = family;
  header.lod = lod;
  header.type = format.type;
  header.group_size = format.group_size;
  header.row_bytes = static_cast<uint32_t>(format.row_bytes());
  return header;
}

SegmentHeader lay_out(SegmentHeader header, std::span<const RunEntry> runs) {
  const Bytes run_bytes = std::as_bytes(runs);
  header.features = is_scaled(header.type) ? kScaledSegment : 0;
  header.run_count = static_cast<uint32_t>(runs.size());
  header.runs_crc = crc32c(run_bytes);
  header.row_count = header.data_bytes / header.row_bytes;
  header.data_offset = round_up(sizeof(SegmentHeader) + run_bytes.size(), header.page_bytes);
  header.checksums_offset = round_up(header.data_offset + header.data_bytes, kChecksumAlign);
  header.file_bytes = header.checksums_offset + header.page_count() * sizeof(uint32_t);
  return header;
}

SegmentHeader seal(SegmentHeader header) {
  header.crc = crc32c(bytes_of_struct(header).first(offsetof(SegmentHeader, crc)));
  return header;
}

Result<SegmentHeader> decode_segment_header(Bytes bytes) {
  if (bytes.size() < sizeof(SegmentHeader)) {
    return Status::corruption(
        str_cat("0: expected a segment header of 128 bytes, got ", bytes.size()));
  }
  SegmentHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kSegmentMagic) return Status::corruption("0: expected the segment magic");
  const uint32_t crc = crc32c(bytes.first(offsetof(SegmentHeader, crc)));
  if (header.crc != crc) {
    return Status::corruption(str_cat("124: expected crc32c ", crc, ", got ", header.crc));
  }
  if (header.version > kSegmentVersion || (header.features & ~kScaledSegment) != 0) {
    return Status::unsupported(str_cat("8: expected segment version <= ", kSegmentVersion,
                                       " and features within ", kScaledSegment, ", got version ",
                                       header.version, ", features ", header.features));
  }
  const bool scaled = is_scaled(header.type);
  if (!is_known(header.type) || scaled != (header.features == kScaledSegment) ||
      scaled != (header.group_size > 0)) {
    return Status::corruption(
        str_cat("45: expected a row type that fits features and group size, got type ",
                int{static_cast<uint8_t>(header.type)}, ", features ", header.features,
                ", group size ", header.group_size));
  }
  if (header.kind > SegmentKind::kPostings || !lengths_fit(header)) {
    return Status::corruption("48: expected lengths that agree with one another");
  }
  return header;
}

Result<std::vector<RunEntry>> decode_runs(const SegmentHeader& header, Bytes bytes) {
  const uint64_t run_bytes = uint64_t{header.run_count} * sizeof(RunEntry);
  if (bytes.size() < run_bytes) {
    return Status::corruption(
        str_cat("128: expected a run table of ", run_bytes, " bytes, got ", bytes.size()));
  }
  const uint32_t crc = crc32c(bytes.first(run_bytes));
  if (crc != header.runs_crc) {
    return Status::corruption(
        str_cat("128: expected run table crc32c ", header.runs_crc, ", got ", crc));
  }
  std::vector<RunEntry> runs(header.run_count);
  if (run_bytes > 0) std::memcpy(runs.data(), bytes.data(), run_bytes);
  uint64_t rows = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const RunEntry& run = runs[i];
    const bool after = i == 0 || runs[i - 1].partition < run.partition ||
                       (runs[i - 1].partition == run.partition &&
                        runs[i - 1].first + runs[i - 1].count <= run.first);
    if (!after || run.count == 0 || run.first + run.count < run.first) {
      return Status::corruption(str_cat("128: run ", i, " is empty or out of order"));
    }
    rows += run.count;
  }
  if (header.kind == SegmentKind::kRows && rows != header.row_count) {
    return Status::corruption(
        str_cat("128: expected runs of ", header.row_count, " rows, got ", rows));
  }
  return runs;
}

}  // namespace mc
