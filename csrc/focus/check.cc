// The invariants of the working context, recomputed from nothing but its entries and its table.
#include <algorithm>

#include "base/str_cat.h"
#include "focus/working_context.h"

namespace mc {
namespace {

Status violated(const Entry& entry, const std::string& what) {
  return Status::corruption(str_cat("[check] partition ", entry.partition, " LOD ", int{entry.lod},
                                    " entry [", entry.start, ", ", entry.end, ") ", what));
}

// Whether one of these blocks must be raw. Looks at the tail and the pins, not at every block.
bool covers_raw(const Timeline& timeline, Span blocks) {
  if (timeline.pinned.overlaps(blocks)) return true;
  const uint64_t end = std::min(blocks.end, timeline.block_count());
  for (uint64_t block = std::max(blocks.start, timeline.first_protected_block()); block < end;
       ++block) {
    if (timeline.may_be_raw(block)) return true;
  }
  return false;
}

}  // namespace

Status WorkingContext::check() const {
  int64_t places = 0;
  for (const auto& [partition, timeline] : timelines_) {
    MC_RETURN_IF_ERROR(check_timeline(timeline, places));
  }
  if (places != tiling_.places()) {
    return Status::corruption(str_cat("[check] places must be the sum over the entries, ", places,
                                      ", got ", tiling_.places()));
  }
  if (places > static_cast<int64_t>(config_.budget_places)) {
    return Status::corruption(str_cat("[check] places must be at most budget_places ",
                                      config_.budget_places, ", got ", places));
  }
  return check_table();
}

Status WorkingContext::check_timeline(const Timeline& timeline, int64_t& places) const {
  uint64_t position = 0;
  Status status;
  tiling_.for_each_entry(timeline, [&](const Entry& entry) {
    if (!status.is_ok()) return;
    const int lod = std::max<int>(entry.lod, 1);
    const Span whole = NodeId{static_cast<uint8_t>(lod), entry.index}.span();
    const bool is_last = entry.end == timeline.token_count;
    const bool is_raw = entry.lod == 0;
    const uint32_t gist = entry.lod > 0 &&
                                  static_cast<size_t>(entry.lod) <= config_.gist_places.size() &&
                                  entry.end == whole.end
                              ? config_.gist_places[entry.lod - 1u]
                              : 0;
    if (entry.start != position || entry.end <= entry.start) {
      status = violated(entry, str_cat("must start at ", position));
    } else if (entry.start != whole.start || (entry.end != whole.end && !is_last)) {
      status = violated(entry, "must be on the grid of its LOD");
    } else if (entry.places != (is_raw ? entry.end - entry.start : gist)) {
      status = violated(entry, str_cat("must not take ", entry.places, " places"));
    } else if (is_raw && !timeline.may_be_raw(entry.index)) {
      status = violated(entry, "must not be raw: it is excluded");
    } else if (!is_raw && covers_raw(timeline, {whole.start / kFanOut, whole.end / kFanOut})) {
      status = violated(entry, "must be raw: it is protected or pinned");
    }
    position = entry.end;
    places += entry.places;
  });
  if (status.is_ok() && position != timeline.token_count) {
    return Status::corruption(str_cat("[check] entries of partition ", timeline.partition,
                                      " must end at ", timeline.token_count, ", got ", position));
  }
  return status;
}

// Whole-block swaps: every expanded node is reached from its root by expanded nodes, and the bits
// say exactly which children are expanded.
Status WorkingContext::check_table() const {
  Status status;
  tiling_.expanded().for_each([&](uint32_t partition, NodeId node, uint32_t expanded_children) {
    const Timeline* timeline = timelines_.find(partition);
    bool is_sound = timeline != nullptr && node.lod <= timeline->root_lod &&
                    node.span().start < timeline->token_count;
    if (is_sound && node.lod < timeline->root_lod) {
      const uint32_t* siblings = tiling_.expanded().find(partition, node.parent());
      is_sound = siblings != nullptr && ((*siblings >> node.place_in_parent()) & 1);
    }
    for (uint64_t which = 0; is_sound && which < kFanOut; ++which) {
      if (!((expanded_children >> which) & 1)) continue;
      const NodeId child = node.child(which);
      is_sound = child.span().start < timeline->token_count &&
                 (child.lod == 1 || tiling_.expanded().find(partition, child) != nullptr);
    }
    if (!is_sound && status.is_ok()) {
      status = Status::corruption(str_cat("[check] expanded node of partition ", partition, " LOD ",
                                          int{node.lod}, " index ", node.index,
                                          " must have an expanded parent and whole children"));
    }
  });
  return status;
}

}  // namespace mc
