// Sealing: rows in memory, or what still shows of some segments, become an immutable segment.
#include <algorithm>
#include <functional>

#include "base/str_cat.h"
#include "format/file_names.h"
#include "storage/row_copy.h"
#include "storage/store.h"

namespace mc {

// Of postings, until of_rows says otherwise.
SegmentHeader Store::new_segment(uint64_t data_bytes) {
  SegmentHeader header;
  header.segment_id = manifest_.next_segment_id++;
  header.store_id = manifest_.store_id;
  header.kind = SegmentKind::kPostings;
  header.page_bytes = options_.page_bytes;
  header.data_bytes = data_bytes;
  header.created_ms = env_->now_ms();
  header.row_bytes = 1;
  header.lod = 1;
  return header;
}

// Writes what is in memory (merged == nullptr), or what still shows of the `merged` segments.
Status Store::seal_rows(const StoreState& state, const DefineFamily& family, const Segments* merged,
                        const RowFormat& format, const NewSegment& header, Sealing& sealing) const {
  const auto wanted = [merged](const Run& run) {
    if (merged == nullptr) return run.extent != nullptr;
    return std::find(merged->begin(), merged->end(), run.segment) != merged->end();
  };
  const auto of_family = [&](uint64_t data_bytes) {
    return of_rows(header(data_bytes), family.id, family.lod, format);
  };
  const RowCopy copy{family, state.partitions, format, wanted, of_family, &sealing.rounding};
  MC_ASSIGN_OR_RETURN(const auto entry, copy_rows(env_, path_, copy));
  if (entry) sealing.fresh.push_back(*entry);
  return Status::ok();
}

Status Store::seal_postings(std::string bytes, const NewSegment& header, Sealing& sealing) const {
  MC_ASSIGN_OR_RETURN(const PostingsView view,
                      PostingsView::parse(std::as_bytes(std::span(bytes))));
  if (view.document_count() == 0) return Status::ok();  // all of them were cut away
  std::vector<RunEntry> entries;
  for (const DocumentRun& run : view.runs()) {
    entries.push_back({run.partition, 0, run.first_block, run.document_count});
  }
  MC_ASSIGN_OR_RETURN(auto writer,
                      SegmentWriter::create(env_, path_, header(bytes.size()), entries));
  MC_RETURN_IF_ERROR(writer.append(bytes_of(bytes)));
  MC_ASSIGN_OR_RETURN(const SegmentEntry entry, writer.finish());
  sealing.fresh.push_back(entry);
  return Status::ok();
}

Status Store::seal_merged_postings(const StoreState& state, const Segments& merged,
                                   const NewSegment& header, Sealing& sealing) const {
  MC_ASSIGN_OR_RETURN(const auto all_views, state.lexical.sealed().views());
  MC_ASSIGN_OR_RETURN(const auto all_masks, state.lexical.masks().masks());
  const Segments& sealed = state.lexical.sealed().segments();
  std::vector<PostingsView> views;
  std::vector<DocumentMask> masks;
  for (size_t i = 0; i < sealed.size(); ++i) {
    if (std::find(merged.begin(), merged.end(), sealed[i]) == merged.end()) continue;
    views.push_back(all_views[i]);
    masks.push_back(all_masks[i]);
  }
  if (views.empty()) return Status::ok();
  MC_ASSIGN_OR_RETURN(std::string bytes, merge(views, masks));
  return seal_postings(std::move(bytes), header, sealing);
}

// A merge is taken in right behind a seal, and only there: the manifest that names its segment also
// says what partitions there are, and the log that is replayed over it begins behind those.
Status Store::checkpoint_locked(Merges merges) {
  if (options_.merges == MergeMode::kInline) merges = Merges::kWaited;
  if (wal_->next_sequence() != manifest_.wal_sequence) {
    const LatencyTimer timer(metrics_->checkpoint_latency_us);
    MC_RETURN_IF_ERROR(seal_everything());
  } else if (!merging_.valid()) {
    return Status::ok();
  }
  const bool waits = merges == Merges::kWaited || merges_fall_behind();
  MC_RETURN_IF_ERROR(collect_merge(waits ? Merges::kWaited : Merges::kGoOn));
  MC_RETURN_IF_ERROR(begin_merge());
  return merges == Merges::kWaited ? collect_merge(merges) : Status::ok();
}

Status Store::seal_everything() {
  Sealing sealing;
  sealing.replaces_memory = true;
  const NewSegment header = [this](uint64_t data_bytes) { return new_segment(data_bytes); };
  for (const auto& segment : segments_) {
    const uint32_t family = segment->header().family;
    if (family != 0 && (state_.families[family - 1]->flags & kDropped) != 0) {
      sealing.obsolete.push_back(segment);
    }
  }
  for (const auto& family : state_.families) {
    MC_RETURN_IF_ERROR(
        failed(seal_rows(state_, *family, nullptr, family->format(), header, sealing)));
  }
  if (state_.lexical.unsealed_block_count() > 0) {
    auto bytes = state_.lexical.unsealed_postings();
    MC_RETURN_IF_ERROR(failed(bytes.status()));
    MC_RETURN_IF_ERROR(failed(seal_postings(std::move(bytes).value(), header, sealing)));
    sealing.clears_lexical_memory = true;
  }
  // Frames from here on go to a file of their own, which the manifest names as the start.
  auto position = wal_->finish_file();
  MC_RETURN_IF_ERROR(failed(position.status()));
  manifest_.wal_number = position.value().number;
  manifest_.wal_sequence = position.value().sequence;
  MC_RETURN_IF_ERROR(failed(install(sealing)));
  MC_RETURN_IF_ERROR(failed(wal_->retire_before(manifest_.wal_number)));
  unsealed_bytes_ = 0;
  metrics_->checkpoint_count.add();
  return Status::ok();
}

Manifest Store::next_manifest() const {
  Manifest manifest = manifest_;
  ++manifest.generation;
  for (const auto& family : state_.families) manifest.families.push_back(*family);
  for (const auto& partition : state_.partitions) manifest.partitions.push_back(*partition->about);
  return manifest;
}

// Names the new segments in a manifest, shows them to readers, removes the obsolete ones.
Status Store::install(Sealing& sealing) {
  Segments fresh, left;
  for (const SegmentEntry& entry : sealing.fresh) {
    MC_ASSIGN_OR_RETURN(auto segment, Segment::open(env_, path_, manifest_.store_id, entry));
    fresh.push_back(std::move(segment));
  }
  for (const auto& segment : segments_) {
    const auto& gone = sealing.obsolete;
    if (std::find(gone.begin(), gone.end(), segment) == gone.end()) left.push_back(segment);
  }
  left.insert(left.end(), fresh.begin(), fresh.end());
  // Whoever opens the store places segments over one another in this order. One that was merged
  // beside the writer is older than those that were sealed meanwhile.
  std::sort(left.begin(), left.end(), [](const auto& a, const auto& b) {
    return a->header().segment_id < b->header().segment_id;
  });
  CutList cuts = cuts_.pruned(left, state_.families);
  Manifest manifest = next_manifest();
  manifest.cuts = cuts.cuts();
  manifest.segments.clear();
  for (const auto& segment : left) manifest.segments.push_back(segment->entry());
  MC_RETURN_IF_ERROR(publish(manifest));
  manifest_.generation = manifest.generation;
  manifest_.segments = std::move(manifest.segments);
  segments_ = std::move(left);
  cuts_ = std::move(cuts);
  tell_read_path();
  {
    std::unique_lock lock(state_mutex_);
    for (const auto& segment : fresh) {
      if (segment->header().kind == SegmentKind::kRows) show_rows(segment, sealing);
    }
    Segments postings;
    for (const auto& segment : segments_) {
      if (segment->header().kind == SegmentKind::kPostings) postings.push_back(segment);
    }
    state_.lexical.replace_segments(std::move(postings), cuts_, sealing.clears_lexical_memory);
  }
  for (const auto& segment : sealing.obsolete) {
    // Mapped pages stay readable for snapshots that still show them.
    MC_RETURN_IF_ERROR(env_->remove(segment->path()));
    metrics_->reclaimed_bytes.add(segment->header().file_bytes);
  }
  return Status::ok();
}

// In place of what it was made of: rows in memory, or the obsolete segments. What was put over
// those since it was begun stays, and what was cut does not come back.
void Store::show_rows(const std::shared_ptr<const Segment>& segment, const Sealing& sealing) {
  const SegmentHeader& header = segment->header();
  const std::byte* rows = segment->rows();
  for (const RunEntry& run : segment->runs()) {
    auto& columns = own_partition(run.partition).columns;
    if (columns.size() >= header.family) {
      Column& column = columns[header.family - 1];
      if (sealing.replaces_memory) {
        column.attach(segment, run, rows);
      } else {
        column.replace(sealing.obsolete, segment, run, rows);
      }
    }
    rows += run.count * header.row_bytes;
  }
}

void Store::tell_read_path() {
  uint64_t byte_count = 0;
  for (const auto& segment : segments_) byte_count += segment->header().file_bytes;
  state_.read_path->set_segment_bytes(byte_count);
}

Store::SegmentGroups Store::grouped(const Segments& segments) {
  SegmentGroups groups;
  for (const auto& segment : segments) {
    const SegmentHeader& header = segment->header();
    groups[{header.family, header.type, header.group_size}].push_back(segment);
  }
  return groups;
}

// Segments of one group become one.
Status Store::seal_merged(const StoreState& state, const Segments& segments,
                          const NewSegment& header, Sealing& sealing) const {
  const SegmentHeader& first = segments.front()->header();
  if (first.kind == SegmentKind::kPostings) {
    MC_RETURN_IF_ERROR(seal_merged_postings(state, segments, header, sealing));
  } else {
    const DefineFamily& family = *state.families[first.family - 1];
    const RowFormat format = first.row_format(family.width);
    MC_RETURN_IF_ERROR(seal_rows(state, family, &segments, format, header, sealing));
  }
  sealing.obsolete.insert(sealing.obsolete.end(), segments.begin(), segments.end());
  return Status::ok();
}

}  // namespace mc
