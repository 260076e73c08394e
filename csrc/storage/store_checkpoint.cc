// Sealing: rows in memory become immutable segments, and many small segments become one.
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
Status Store::seal_rows(const DefineFamily& family, const Segments* merged, const RowFormat& format,
                        Sealing& sealing) {
  const auto wanted = [merged](const Run& run) {
    if (merged == nullptr) return run.extent != nullptr;
    return std::find(merged->begin(), merged->end(), run.segment) != merged->end();
  };
  const auto header = [&](uint64_t data_bytes) {
    return of_rows(new_segment(data_bytes), family.id, family.lod, format);
  };
  const RowCopy copy{family, state_.partitions, format, wanted, header, &sealing.rounding};
  MC_ASSIGN_OR_RETURN(const auto entry, copy_rows(env_, path_, copy));
  if (entry) sealing.fresh.push_back(*entry);
  return Status::ok();
}

Status Store::seal_postings(std::string bytes, Sealing& sealing) {
  MC_ASSIGN_OR_RETURN(const PostingsView view,
                      PostingsView::parse(std::as_bytes(std::span(bytes))));
  if (view.document_count() == 0) return Status::ok();  // all of them were cut away
  std::vector<RunEntry> entries;
  for (const DocumentRun& run : view.runs()) {
    entries.push_back({run.partition, 0, run.first_block, run.document_count});
  }
  MC_ASSIGN_OR_RETURN(auto writer,
                      SegmentWriter::create(env_, path_, new_segment(bytes.size()), entries));
  MC_RETURN_IF_ERROR(writer.append(bytes_of(bytes)));
  MC_ASSIGN_OR_RETURN(const SegmentEntry entry, writer.finish());
  sealing.fresh.push_back(entry);
  return Status::ok();
}

Status Store::seal_merged_postings(const Segments& merged, Sealing& sealing) {
  MC_ASSIGN_OR_RETURN(const auto all_views, state_.lexical.sealed().views());
  MC_ASSIGN_OR_RETURN(const auto all_masks, state_.lexical.masks().masks());
  const Segments& sealed = state_.lexical.sealed().segments();
  std::vector<PostingsView> views;
  std::vector<DocumentMask> masks;
  for (size_t i = 0; i < sealed.size(); ++i) {
    if (std::find(merged.begin(), merged.end(), sealed[i]) == merged.end()) continue;
    views.push_back(all_views[i]);
    masks.push_back(all_masks[i]);
  }
  if (views.empty()) return Status::ok();
  MC_ASSIGN_OR_RETURN(std::string bytes, merge(views, masks));
  return seal_postings(std::move(bytes), sealing);
}

Status Store::checkpoint_locked() {
  if (wal_->next_sequence() == manifest_.wal_sequence) return Status::ok();
  const LatencyTimer timer(metrics_->checkpoint_latency_us);
  MC_RETURN_IF_ERROR(seal_everything());
  return failed(merge_segments());
}

Status Store::seal_everything() {
  Sealing sealing;
  for (const auto& segment : segments_) {
    const uint32_t family = segment->header().family;
    if (family != 0 && (state_.families[family - 1]->flags & kDropped) != 0) {
      sealing.obsolete.push_back(segment);
    }
  }
  for (const auto& family : state_.families) {
    MC_RETURN_IF_ERROR(failed(seal_rows(*family, nullptr, family->format(), sealing)));
  }
  if (state_.lexical.unsealed_block_count() > 0) {
    auto bytes = state_.lexical.unsealed_postings();
    MC_RETURN_IF_ERROR(failed(bytes.status()));
    MC_RETURN_IF_ERROR(failed(seal_postings(std::move(bytes).value(), sealing)));
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
      if (segment->header().kind != SegmentKind::kRows) continue;
      const std::byte* rows = segment->rows();
      for (const RunEntry& run : segment->runs()) {
        Column& column = own_partition(run.partition).columns[segment->header().family - 1];
        column.attach(segment, run, rows);
        rows += run.count * segment->header().row_bytes;
      }
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
Status Store::seal_merged(const Segments& segments, Sealing& sealing) {
  const SegmentHeader& first = segments.front()->header();
  if (first.kind == SegmentKind::kPostings) {
    MC_RETURN_IF_ERROR(seal_merged_postings(segments, sealing));
  } else {
    const DefineFamily& family = *state_.families[first.family - 1];
    MC_RETURN_IF_ERROR(seal_rows(family, &segments, first.row_format(family.width), sealing));
  }
  sealing.obsolete.insert(sealing.obsolete.end(), segments.begin(), segments.end());
  return Status::ok();
}

// Where a group has too many segments, its smallest become one: each row is rewritten about
// log2(rows) times over the life of a store.
Status Store::merge_segments() {
  Sealing sealing;
  SegmentGroups groups = grouped(segments_);
  for (auto& [group, segments] : groups) {
    if (segments.size() <= options_.most_segments_per_family) continue;
    std::sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) {
      return a->header().data_bytes < b->header().data_bytes;
    });
    size_t count = 0;
    for (uint64_t sum = 0; count < segments.size(); ++count) {
      const uint64_t next = segments[count]->header().data_bytes;
      if (count >= 2 && next > 2 * sum) break;
      sum += next;
    }
    segments.resize(count);
    MC_RETURN_IF_ERROR(seal_merged(segments, sealing));
    metrics_->merge_count.add();
  }
  return sealing.obsolete.empty() ? Status::ok() : install(sealing);
}

}  // namespace mc
