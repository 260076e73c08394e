// Looking at a whole store: counts for people, and the check that reads every byte.
#include "base/str_cat.h"
#include "storage/store.h"

namespace mc {

StoreStats Store::stats() const {
  std::lock_guard writer(writer_mutex_);
  std::shared_lock lock(state_mutex_);
  StoreStats stats;
  stats.generation = manifest_.generation;
  stats.partition_count = state_.partitions.size();
  for (const auto& partition : state_.partitions) {
    stats.token_count += partition->column(kTokensFamily).row_count();
  }
  stats.segment_count = segments_.size();
  for (const auto& segment : segments_) {
    stats.segment_bytes += segment->header().file_bytes;
    stats.postings_segment_count += segment->header().kind == SegmentKind::kPostings;
  }
  stats.unsealed_bytes = unsealed_bytes_;
  if (wal_ != nullptr) {
    stats.wal_file_count = wal_->file_count();
    stats.wal_bytes_written = wal_->byte_count();
    stats.sync_count = wal_->sync_count();
  }
  stats.checkpoint_count = metrics_->checkpoint_count.value();
  stats.merge_count = metrics_->merge_count.value();
  stats.reclaimed_bytes = metrics_->reclaimed_bytes.value();
  return stats;
}

Status Store::check() const {
  std::lock_guard writer(writer_mutex_);
  if (!read_only_ && !closed_) {
    MC_ASSIGN_OR_RETURN(const Manifest manifest, read_manifest(env_, path_));
    if (manifest.generation != manifest_.generation || manifest.store_id != manifest_.store_id) {
      return Status::corruption(str_cat(path_, "/MANIFEST:32: expected generation ",
                                        manifest_.generation, ", got ", manifest.generation));
    }
  }
  for (const auto& segment : segments_) {
    MC_RETURN_IF_ERROR(segment->verify_all());
    const SegmentHeader& header = segment->header();
    if (!is_scaled(header.type)) continue;
    const uint32_t width = state_.families[header.family - 1]->width;
    const Status sound = check_rows(header.row_format(width), segment->row_bytes());
    if (!sound.is_ok()) return Status::corruption(str_cat(segment->path(), ": ", sound.message()));
  }
  MC_RETURN_IF_ERROR(require_no_gaps());
  MC_RETURN_IF_ERROR(state_.lexical.sealed().views().status());
  for (const auto& partition : state_.partitions) {
    const uint64_t tokens = partition->column(kTokensFamily).row_count();
    for (const auto& family : state_.families) {
      const uint64_t rows = partition->column(family->id).row_count();
      const uint64_t limit =
          full_node_count(tokens + tokens_per_node(family->lod) - 1, family->lod);
      const bool one_each = family->id == kCharStartsFamily;
      if (rows > limit || (one_each && rows != limit)) {
        return Status::corruption(str_cat(path_, ": partition ", partition->about->id, " of ",
                                          tokens, " tokens expected ", limit, " rows of '",
                                          family->name, "', got ", rows));
      }
    }
    if (partition->indexed_blocks > full_node_count(tokens + kFanOut - 1, 1)) {
      return Status::corruption(str_cat(path_, ": partition ", partition->about->id, " of ", tokens,
                                        " tokens has ", partition->indexed_blocks,
                                        " indexed blocks"));
    }
  }
  return Status::ok();
}

}  // namespace mc
