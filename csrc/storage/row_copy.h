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

// What rounding rows to another format changed.
struct RoundingError {
  uint64_t row_count = 0;                     // rows that were rounded
  double squared_error = 0, squared_sum = 0;  // over all elements
  double largest_error = 0;
  // Root of the mean squared error over the root mean square of the values.
  double relative() const;
};

struct RowCopy {
  const DefineFamily& family;
  std::span<const std::shared_ptr<Partition>> partitions;
  // Rows that lie otherwise are rounded to it, which `error` then sums up.
  RowFormat format;
  std::function<bool(const Run&)> wanted;
  // Called when there are rows, with their bytes.
  std::function<SegmentHeader(uint64_t data_bytes)> header;
  RoundingError* error = nullptr;
};

// Nothing when no row is wanted. Checks each page that it copies. InvalidArgument when a row cannot
// be rounded to the format.
Result<std::optional<SegmentEntry>> copy_rows(Env* env, const std::string& directory,
                                              const RowCopy& copy);

// The formats that rows of a family lie in.
std::vector<RowFormat> formats_of(const DefineFamily& family,
                                  std::span<const std::shared_ptr<Partition>> partitions);

}  // namespace mc
