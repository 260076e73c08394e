// Rows to fewer bits, and the mark in the manifest without which no rows lie in such formats.
#include <algorithm>

#include "base/str_cat.h"
#include "format/file_names.h"
#include "storage/store.h"

namespace mc {

// A reader that does not know such formats must refuse the store before it meets one, so the mark
// is durable before the first family or segment. The last manifest is taken, and not the present
// state, since the log that follows it is replayed over it.
Status Store::require_encoded_rows() {
  if (manifest_.features & kEncodedRows) return Status::ok();
  MC_ASSIGN_OR_RETURN(Manifest manifest, read_manifest(env_, path_));
  manifest.features |= kEncodedRows;
  ++manifest.generation;
  MC_RETURN_IF_ERROR(publish(manifest));
  manifest_.features = manifest.features;
  manifest_.generation = manifest.generation;
  return Status::ok();
}

Result<ReencodeReport> Store::reencode(std::string_view name, RowType type, uint32_t group_size) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("reencode"));
  const DefineFamily* family = find_family(state_, name);
  if (family == nullptr) {
    return Status::not_found(str_cat("[reencode] no row family is named '", name, "'"));
  }
  if (group_size == 0) group_size = default_group_size(type, family->width);
  const RowFormat format{type, family->width, group_size};
  if (!family->format().holds_floats() || !format.holds_floats() || !format.is_valid()) {
    return Status::invalid_argument(str_cat("[reencode] rows of '", name, "' are ",
                                            describe(family->format()), ", got ",
                                            describe(format)));
  }
  if (format != family->format()) MC_RETURN_IF_ERROR(failed(require_encoded_rows()));
  const LatencyTimer timer(metrics_->reencode_latency_us);
  if (wal_->next_sequence() != manifest_.wal_sequence) MC_RETURN_IF_ERROR(seal_everything());
  MC_RETURN_IF_ERROR(collect_merge(Merges::kWaited));
  return reencode_segments(*family, format);
}

Result<ReencodeReport> Store::reencode_segments(const DefineFamily& family,
                                                const RowFormat& format) {
  Sealing sealing;
  for (const auto& segment : segments_) {
    const SegmentHeader& header = segment->header();
    const bool lies_otherwise =
        header.family == family.id && header.row_format(family.width) != format;
    if (lies_otherwise) sealing.obsolete.push_back(segment);
  }
  if (sealing.obsolete.empty()) return ReencodeReport{};
  const uint64_t fresh_id = manifest_.next_segment_id;
  const NewSegment header = [this](uint64_t data_bytes) { return new_segment(data_bytes); };
  const Status sealed = seal_rows(state_, family, &sealing.obsolete, format, header, sealing);
  if (sealed.code() == StatusCode::kInvalidArgument) {
    MC_RETURN_IF_ERROR(failed(env_->remove(join_path(path_, segment_file_name(fresh_id)))));
    return Status::invalid_argument(str_cat("[reencode] ", sealed.message()));
  }
  MC_RETURN_IF_ERROR(failed(sealed));
  MC_RETURN_IF_ERROR(failed(install(sealing)));

  ReencodeReport report;
  report.error = sealing.rounding;
  for (const auto& segment : sealing.obsolete) report.bytes_before += segment->header().file_bytes;
  for (const SegmentEntry& entry : sealing.fresh) report.bytes_after += entry.file_bytes;
  metrics_->reencode_count.add();
  metrics_->reencoded_rows.add(report.error.row_count);
  if (report.bytes_before > report.bytes_after) {
    metrics_->reencode_saved_bytes.add(report.bytes_before - report.bytes_after);
  }
  return report;
}

}  // namespace mc
