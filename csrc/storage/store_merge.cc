// Merging: many small segments of a family become one, beside the writer. The work is done over a
// snapshot and touches nothing that a writer changes; the writer takes the result in behind a seal.
#include <algorithm>
#include <chrono>

#include "format/file_names.h"
#include "storage/store.h"

namespace mc {

// Where a group has too many segments, its smallest become one: each row is rewritten about
// log2(rows) times over the life of a store.
std::vector<Store::Segments> Store::crowded_groups() const {
  std::vector<Segments> crowded;
  for (auto& [group, segments] : grouped(segments_)) {
    if (segments.size() <= options_.most_segments_per_family) continue;
    Segments smallest = segments;
    std::sort(smallest.begin(), smallest.end(), [](const auto& a, const auto& b) {
      return a->header().data_bytes < b->header().data_bytes;
    });
    size_t count = 0;
    for (uint64_t sum = 0; count < smallest.size(); ++count) {
      const uint64_t next = smallest[count]->header().data_bytes;
      if (count >= 2 && next > 2 * sum) break;
      sum += next;
    }
    smallest.resize(count);
    crowded.push_back(std::move(smallest));
  }
  return crowded;
}

// So many segments that the writer must wait: searches and opening cost a bit for each.
bool Store::merges_fall_behind() const {
  if (!merging_.valid()) return false;
  const SegmentGroups groups = grouped(segments_);
  return std::any_of(groups.begin(), groups.end(), [this](const auto& group) {
    return group.second.size() > 2 * options_.most_segments_per_family;
  });
}

// Begins to merge what is crowded, unless a merge is under way.
Status Store::begin_merge() {
  if (merging_.valid()) return Status::ok();
  std::vector<Segments> groups = crowded_groups();
  if (groups.empty()) return Status::ok();
  // Numbered now: below every segment, and every cut, that is made while the work goes on.
  std::vector<SegmentHeader> headers;
  for (size_t i = 0; i < groups.size(); ++i) headers.push_back(new_segment(0));
  StoreState state;
  {
    std::unique_lock lock(state_mutex_);
    ++epoch_;  // as for a snapshot: what is shown here stays
    state = state_;
  }
  auto work = [this, state = std::move(state), groups = std::move(groups),
               headers = std::move(headers)]() -> Result<std::vector<Sealing>> {
    std::vector<Sealing> made(groups.size());
    for (size_t i = 0; i < groups.size(); ++i) {
      const NewSegment header = [&headers, i](uint64_t data_bytes) {
        SegmentHeader of_bytes = headers[i];
        of_bytes.data_bytes = data_bytes;
        return of_bytes;
      };
      MC_RETURN_IF_ERROR(seal_merged(state, groups[i], header, made[i]));
    }
    return made;
  };
  const bool beside = options_.merges == MergeMode::kBeside;
  merging_ = std::async(beside ? std::launch::async : std::launch::deferred, std::move(work));
  return Status::ok();
}

// Shows what was merged, when it is ready or waited for. Everything must be sealed.
Status Store::collect_merge(Merges merges) {
  if (!merging_.valid()) return Status::ok();
  const bool waits = merges == Merges::kWaited;
  if (!waits && merging_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    return Status::ok();
  }
  Result<std::vector<Sealing>> made = merging_.get();
  MC_RETURN_IF_ERROR(failed(made.status()));
  Sealing whole;
  for (const Sealing& group : made.value()) {
    const bool all_there =
        std::all_of(group.obsolete.begin(), group.obsolete.end(), [this](const auto& segment) {
          return std::find(segments_.begin(), segments_.end(), segment) != segments_.end();
        });
    if (all_there) {
      whole.fresh.insert(whole.fresh.end(), group.fresh.begin(), group.fresh.end());
      whole.obsolete.insert(whole.obsolete.end(), group.obsolete.begin(), group.obsolete.end());
      metrics_->merge_count.add();
      continue;
    }
    // Its family was dropped meanwhile, and the segments with it.
    for (const SegmentEntry& entry : group.fresh) {
      const std::string file = join_path(path_, segment_file_name(entry.id));
      MC_RETURN_IF_ERROR(failed(env_->remove(file)));
    }
  }
  return whole.obsolete.empty() ? Status::ok() : failed(install(whole));
}

}  // namespace mc
