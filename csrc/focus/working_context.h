// WorkingContext: a fixed budget of places, shared by the tilings of all partitions.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "focus/collapse_queue.h"
#include "focus/entry.h"
#include "focus/score_field.h"
#include "focus/tiling.h"

namespace mc {

inline constexpr uint64_t kMaxTimelineTokens = uint64_t{1} << 40;
inline constexpr int kMaxCooldownSteps = 16;

struct WorkingContextConfig {
  uint64_t budget_places = 0;
  // gist_places[lod - 1]: places of a node of that LOD, 0 to 32. 0: its gist is not shown, the
  // node takes no place. LODs beyond the list have no gists.
  std::vector<uint32_t> gist_places = std::vector<uint32_t>(kMaxLod, 1);
  uint64_t protected_tail_tokens = 128;
};

// Every function leaves the working context as it was when it fails, and never over its budget.
// Invariants, all checked by check():
//   budget           places <= budget_places, and places is the sum over the entries
//   tiling           the entries of a partition cover [0, token_count) once, in order
//   grid             an entry of LOD n starts at a multiple of K^n, a raw block at one of K; only
//                    the last entry of a timeline may be cut
//   whole blocks     an expanded node has all its children as entries or expanded, none else has
//   protected tail   blocks in the tail of a timeline are raw, except excluded ones
//   pins             pinned blocks are raw, excluded ones are not
// Memory: 32 bytes an expanded node, independent of the length of the timelines.
// Not thread safe.
class WorkingContext {
 public:
  static Result<WorkingContext> create(WorkingContextConfig config);
  WorkingContext(WorkingContext&&) = default;

  // A new partition: the coarsest full nodes, with the protected tail raw; as one unfinished root
  // that takes no place where that does not fit or shows nothing. A known one becomes longer: new
  // blocks enter raw, newest first, as far as they fit (in a partition without a protected tail:
  // as coarsest nodes). Where the protected tail needs room, raw blocks far from the end of their
  // timelines are collapsed, then gists. `protected_tail_tokens` replaces the tail of this
  // partition. InvalidArgument: shorter than before. OverBudget: the tails and pins do not fit.
  // Cost: O(1) while the last block fills up, else O(expanded nodes).
  Status set_partition(uint32_t partition, uint64_t token_count,
                       std::optional<uint64_t> protected_tail_tokens = std::nullopt);
  Status remove_partition(uint32_t partition);
  // Every partition as set_partition() would tile it if it were new; pins stay.
  Status reset();

  // Carries out all actions in order, or none. InvalidArgument: an action that is not a
  // whole-block swap here, or touches what must or must not be raw. OverBudget.
  Status apply(const FocusPlan& plan);

  // Whole blocks that overlap [start, end) are always raw / never raw, from now on and at once.
  // InvalidArgument: outside the timeline, or pinned and excluded. OverBudget: no room to pin.
  Status pin(uint32_t partition, uint64_t start, uint64_t end);
  Status unpin(uint32_t partition, uint64_t start, uint64_t end);
  Status exclude(uint32_t partition, uint64_t start, uint64_t end);
  Status include(uint32_t partition, uint64_t start, uint64_t end);

  std::vector<Entry> entries() const;  // by partition, then by position
  // The score of each entry: the largest of its blocks.
  std::vector<float> entry_scores(const ScoreField& field) const;
  Status check() const;

  uint64_t places() const { return static_cast<uint64_t>(tiling_.places()); }
  uint64_t budget_places() const { return config_.budget_places; }
  uint64_t step() const { return step_; }  // plans applied so far
  const Timelines& timelines() const { return timelines_; }
  const Tiling& tiling() const { return tiling_; }
  // Whether `action` was carried out on the node by one of the last `steps` plans.
  bool was_recent(FocusActionKind action, uint32_t partition, NodeId node, int steps) const;

 private:
  explicit WorkingContext(WorkingContextConfig config);

  struct NodeKey {
    uint32_t partition;
    uint8_t lod;
    uint64_t index;
    bool operator==(const NodeKey&) const = default;
  };
  struct NodeKeyHash {
    size_t operator()(const NodeKey& key) const {
      return (key.index ^ uint64_t{key.partition} << 40 ^ uint64_t{key.lod} << 36) *
             0x9E3779B97F4A7C15ull;
    }
  };
  struct RecentAction {
    FocusActionKind action;
    uint64_t step;
  };

  int64_t free_places() const {
    return static_cast<int64_t>(config_.budget_places) - tiling_.places();
  }
  Result<Timeline*> timeline_of(const char* op, uint32_t partition);
  Result<Span> blocks_of(const char* op, const Timeline& timeline, uint64_t start, uint64_t end);
  bool fills_raw_block(Timeline* timeline, uint64_t token_count,
                       std::optional<uint64_t> protected_tail_tokens);
  void tile_new(Timeline& timeline);
  void extend(Timeline& timeline, uint64_t token_count);
  void enforce_raw(const Timeline& timeline);
  Status make_room(const char* op);
  Status check_action(const FocusAction& action, size_t number) const;
  Status check_timeline(const Timeline& timeline, int64_t& places) const;
  Status check_table() const;
  void remember(const FocusPlan& plan);

  WorkingContextConfig config_;
  Timelines timelines_;
  Tiling tiling_;
  uint64_t step_ = 0;
  std::unordered_map<NodeKey, RecentAction, NodeKeyHash> recent_;
  std::deque<std::pair<uint64_t, NodeKey>> recent_order_;
};

}  // namespace mc
