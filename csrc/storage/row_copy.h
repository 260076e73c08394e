// Rows of one family, from wherever they lie, to one new segment.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "storage/row_reader.h"
#include "storage/segment_writer.h"

namespace mc {

struct RowCopy {
  const DefineFamily& family;
  std::span<const std::shared_ptr<Partition>> partitions;
  std::function<bool(const Run&)> wanted;
  // Called when there are rows, with their bytes.
  std::function<SegmentHeader(uint64_t data_bytes)> header;
};

// Nothing when no row is wanted. Checks each page that it copies.
Result<std::optional<SegmentEntry>> copy_rows(Env* env, const std::string& directory,
                                              const RowCopy& copy);

}  // namespace mc
