#include "storage/row_copy.h"

#include <algorithm>
#include <cmath>

#include "base/str_cat.h"

namespace mc {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;  // rounded at once

// Adds what `rounded`, made of `rows`, differs by.
void add_error(const RowFormat& from, Bytes rows, const RowFormat& to, Bytes rounded,
               RoundingError& error) {
  error.row_count += rows.size() / from.row_bytes();
  std::vector<float> before(from.width), after(to.width);
  for (uint64_t i = 0; i < rows.size() / from.row_bytes(); ++i) {
    decode_row(from, rows.data() + i * from.row_bytes(), before.data());
    decode_row(to, rounded.data() + i * to.row_bytes(), after.data());
    for (size_t at = 0; at < before.size(); ++at) {
      const double value = before[at], change = std::fabs(value - double{after[at]});
      error.squared_sum += value * value;
      error.squared_error += change * change;
      error.largest_error = std::max(error.largest_error, change);
    }
  }
}

Status append_rounded(const RowCopy& copy, const Run& run, uint32_t partition,
                      SegmentWriter& writer) {
  const RowFormat held = format_of(run, copy.family.format());
  const uint64_t step = std::max<uint64_t>(kPieceBytes / held.row_bytes(), 1);
  std::vector<std::byte> rounded;
  for (uint64_t at = run.first; at < run.end; at += step) {
    const uint64_t count = std::min(step, run.end - at);
    const Bytes rows{run.rows + (at - run.first) * run.row_bytes, count * run.row_bytes};
    rounded.resize(count * copy.format.row_bytes());
    const Status status = convert_rows(held, rows, copy.format, rounded);
    if (!status.is_ok()) {
      return Status::invalid_argument(
          str_cat("partition ", partition, ", from row ", at, " on: ", status.message()));
    }
    if (copy.error != nullptr) add_error(held, rows, copy.format, rounded, *copy.error);
    MC_RETURN_IF_ERROR(writer.append(rounded));
  }
  return Status::ok();
}

}  // namespace

double RoundingError::relative() const {
  return squared_sum == 0 ? 0 : std::sqrt(squared_error / squared_sum);
}

Result<std::optional<SegmentEntry>> copy_rows(Env* env, const std::string& directory,
                                              const RowCopy& copy) {
  const RowFormat declared = copy.family.format();
  std::vector<RunEntry> entries;
  std::vector<std::pair<Run, uint32_t>> pieces;  // with their partitions
  uint64_t row_count = 0;
  for (const auto& partition : copy.partitions) {
    const uint32_t id = partition->about->id;
    for (const Run& run : partition->column(copy.family.id).runs()) {
      if (!copy.wanted(run)) continue;
      const uint64_t count = run.end - run.first;
      const bool goes_on = !entries.empty() && entries.back().partition == id &&
                           entries.back().first + entries.back().count == run.first;
      if (goes_on) {
        entries.back().count += count;
      } else {
        entries.push_back({id, 0, run.first, count});
      }
      pieces.emplace_back(run, id);
      row_count += count;
    }
  }
  if (entries.empty()) return std::optional<SegmentEntry>();
  const SegmentHeader header = copy.header(row_count * copy.format.row_bytes());
  MC_ASSIGN_OR_RETURN(auto writer, SegmentWriter::create(env, directory, header, entries));
  for (const auto& [run, partition] : pieces) {
    const uint64_t byte_count = (run.end - run.first) * run.row_bytes;
    if (run.segment != nullptr) MC_RETURN_IF_ERROR(run.segment->verify(run.rows, byte_count));
    if (format_of(run, declared) == copy.format) {
      MC_RETURN_IF_ERROR(writer.append({run.rows, byte_count}));
    } else {
      MC_RETURN_IF_ERROR(append_rounded(copy, run, partition, writer));
    }
  }
  MC_ASSIGN_OR_RETURN(const SegmentEntry entry, writer.finish());
  return std::optional<SegmentEntry>(entry);
}

std::vector<RowFormat> formats_of(const DefineFamily& family,
                                  std::span<const std::shared_ptr<Partition>> partitions) {
  std::vector<RowFormat> formats;
  for (const auto& partition : partitions) {
    for (const Run& run : partition->column(family.id).runs()) {
      const RowFormat format = format_of(run, family.format());
      if (std::find(formats.begin(), formats.end(), format) == formats.end()) {
        formats.push_back(format);
      }
    }
  }
  return formats;
}

}  // namespace mc
