// What takes something away: cutting, erasing, dropping, hiding, and the purge that gives the bytes
// back.
#include <algorithm>
#include <unordered_map>

#include "base/str_cat.h"
#include "storage/store.h"

namespace mc {

Status Store::erase_partition(uint32_t partition) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("erase_partition"));
  MC_RETURN_IF_ERROR(require_partition("erase_partition", state_, partition));
  return write({ErasePartition{partition}});
}

Status Store::set_hidden(uint32_t partition, bool hidden) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("set_hidden"));
  MC_RETURN_IF_ERROR(require_partition("set_hidden", state_, partition));
  return write({HidePartition{partition, hidden}});
}

Status Store::drop_rows(std::string_view name) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("drop_rows"));
  const DefineFamily* family = find_family(state_, name);
  if (family == nullptr) {
    return Status::not_found(str_cat("[drop_rows] no row family is named '", name, "'"));
  }
  return write({DropFamily{family->id}});
}

Status Store::clear_rows(std::string_view name, uint32_t partition) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("clear_rows"));
  MC_RETURN_IF_ERROR(require_partition("clear_rows", state_, partition));
  const DefineFamily* family = find_family(state_, name);
  if (family == nullptr) {
    return Status::not_found(str_cat("[clear_rows] no row family is named '", name, "'"));
  }
  return write({CutPartition{partition, family->id, 0}});
}

Status Store::purge() {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("purge"));
  MC_RETURN_IF_ERROR(seal_everything());
  MC_RETURN_IF_ERROR(collect_merge(Merges::kWaited));
  MC_RETURN_IF_ERROR(failed(rewrite_segments()));
  MC_RETURN_IF_ERROR(failed(wal_->remove_spares(0)));
  return failed(env_->sync_directory(path_));  // so that no removed name comes back
}

Status Store::rewrite_segments() {
  std::unordered_map<const Segment*, uint64_t> shown_bytes;
  for (const auto& partition : state_.partitions) {
    for (const auto& family : state_.families) {
      for (const Run& run : partition->column(family->id).runs()) {
        if (run.segment == nullptr) continue;
        shown_bytes[run.segment.get()] += (run.end - run.first) * run.row_bytes;
      }
    }
  }
  const LexicalIndex& lexical = state_.lexical;
  MC_ASSIGN_OR_RETURN(const auto masks, lexical.masks().masks());
  Segments dirty;
  for (size_t i = 0; i < masks.size(); ++i) {
    if (masks[i].dead_count > 0) dirty.push_back(lexical.sealed().segments()[i]);
  }
  for (const auto& segment : segments_) {
    const SegmentHeader& header = segment->header();
    const bool is_rows = header.kind == SegmentKind::kRows;
    if (is_rows && shown_bytes[segment.get()] != header.data_bytes) dirty.push_back(segment);
  }
  Sealing sealing;
  const NewSegment header = [this](uint64_t data_bytes) { return new_segment(data_bytes); };
  for (const auto& [group, segments] : grouped(dirty)) {
    MC_RETURN_IF_ERROR(seal_merged(state_, segments, header, sealing));
  }
  return sealing.obsolete.empty() ? Status::ok() : install(sealing);
}

// ---- changes ----

Status Store::change_index(LexicalIndex& index, const Change& change) {
  if (const auto* blocks = std::get_if<IndexBlocks>(&change)) return grow(index, *blocks);
  Cut cut{manifest_.next_segment_id, 0, 0, 0};
  if (const auto* made = std::get_if<CutPartition>(&change)) {
    cut.partition = made->partition;
    cut.family = made->family;
    cut.token_count = made->token_count;
  } else if (const auto* erased = std::get_if<ErasePartition>(&change)) {
    cut.partition = erased->partition;
  } else {
    return Status::ok();
  }
  cuts_.add(cut);
  if (cut.family == 0) index.cut(cut.partition, full_node_count(cut.token_count, 1), cuts_);
  return Status::ok();
}

Status Store::apply_one(const CutPartition& change) {
  if (change.partition >= state_.partitions.size() || change.family > state_.families.size()) {
    return Status::corruption(
        str_cat("partition ", change.partition, " or family ", change.family, " is not there"));
  }
  Partition& partition = own_partition(change.partition);
  if (change.token_count > partition.column(kTokensFamily).row_count()) {
    return Status::corruption(str_cat("cannot cut partition ", change.partition, " of ",
                                      partition.column(kTokensFamily).row_count(), " tokens to ",
                                      change.token_count));
  }
  for (size_t i = 0; i < partition.columns.size(); ++i) {
    const DefineFamily& family = *state_.families[i];
    if (change.family != 0 && change.family != family.id) continue;
    partition.columns[i].cut(kept_row_count(family, change.token_count));
  }
  if (change.family == 0) {
    partition.indexed_blocks =
        std::min(partition.indexed_blocks, full_node_count(change.token_count, 1));
  }
  return Status::ok();
}

Status Store::apply_one(const ErasePartition& change) {
  if (change.partition >= state_.partitions.size()) {
    return Status::corruption(str_cat("partition ", change.partition, " is not there"));
  }
  MC_RETURN_IF_ERROR(apply_one(HidePartition{change.partition, false}));
  Partition& partition = own_partition(change.partition);
  sources_.erase(partition.about->source);
  partition.about =
      std::make_shared<const AddPartition>(AddPartition{change.partition, 0, "", "{}", kErased});
  partition.columns.clear();
  partition.indexed_blocks = 0;
  return Status::ok();
}

Status Store::apply_one(const DropFamily& change) {
  if (change.family <= kBuiltinFamilies || change.family > state_.families.size()) {
    return Status::corruption(str_cat("family ", change.family, " is not there"));
  }
  DefineFamily dropped = *state_.families[change.family - 1];
  dropped.flags |= kDropped;
  state_.families[change.family - 1] = std::make_shared<const DefineFamily>(std::move(dropped));
  for (uint32_t id = 0; id < state_.partitions.size(); ++id) {
    if (state_.partitions[id]->columns.size() < change.family) continue;
    own_partition(id).columns[change.family - 1] = Column();
  }
  return Status::ok();
}

Status Store::apply_one(const HidePartition& change) {
  if (change.partition >= state_.partitions.size()) {
    return Status::corruption(str_cat("partition ", change.partition, " is not there"));
  }
  Partition& partition = own_partition(change.partition);
  AddPartition about = *partition.about;
  about.flags =
      static_cast<uint8_t>(change.hidden ? about.flags | kHidden : about.flags & ~kHidden);
  partition.about = std::make_shared<const AddPartition>(std::move(about));
  std::erase(state_.hidden, change.partition);
  if (change.hidden) state_.hidden.push_back(change.partition);
  std::sort(state_.hidden.begin(), state_.hidden.end());
  return Status::ok();
}

}  // namespace mc
