#include "storage/row_copy.h"

namespace mc {

Result<std::optional<SegmentEntry>> copy_rows(Env* env, const std::string& directory,
                                              const RowCopy& copy) {
  const uint32_t row_bytes = row_bytes_of(copy.family);
  std::vector<RunEntry> entries;
  RunList pieces;
  uint64_t data_bytes = 0;
  for (const auto& partition : copy.partitions) {
    for (const Run& run : partition->column(copy.family.id).runs()) {
      if (!copy.wanted(run)) continue;
      const uint64_t count = run.end - run.first;
      const bool goes_on = !entries.empty() && entries.back().partition == partition->about->id &&
                           entries.back().first + entries.back().count == run.first;
      if (goes_on) {
        entries.back().count += count;
      } else {
        entries.push_back({partition->about->id, 0, run.first, count});
      }
      pieces.push_back(run);
      data_bytes += count * row_bytes;
    }
  }
  if (entries.empty()) return std::optional<SegmentEntry>();
  MC_ASSIGN_OR_RETURN(auto writer,
                      SegmentWriter::create(env, directory, copy.header(data_bytes), entries));
  for (const Run& run : pieces) {
    const uint64_t byte_count = (run.end - run.first) * row_bytes;
    if (run.segment != nullptr) MC_RETURN_IF_ERROR(run.segment->verify(run.rows, byte_count));
    MC_RETURN_IF_ERROR(writer.append({run.rows, byte_count}));
  }
  MC_ASSIGN_OR_RETURN(const SegmentEntry entry, writer.finish());
  return std::optional<SegmentEntry>(entry);
}

}  // namespace mc
