#include "focus/allocator.h"

#include <algorithm>
#include <cmath>

#include "base/str_cat.h"
#include "focus/block_queue.h"
#include "focus/collapse_queue.h"

namespace mc {
namespace {

// One plan in the making, on a copy of the tiling.
class Planner {
 public:
  Planner(const WorkingContext& context, const ScoreField& field, const AllocatorConfig& config)
      : context_(context),
        field_(field),
        config_(config),
        tiling_(context.tiling()),
        target_places_(
            static_cast<int64_t>(context.budget_places()) -
            static_cast<int64_t>(std::min(config.reserve_places, context.budget_places()))),
        collapse_queue_(
            tiling_, context.timelines(),
            [this](const Timeline& timeline, NodeId node) { return score_of(timeline, node); }) {}

  FocusPlan run() {
    free_reserve();
    expand_best();
    collapse_lowest();
    return {std::move(actions_)};
  }

 private:
  float score_of(const Timeline& timeline, NodeId node) const {
    const ScorePyramid* pyramid = field_.find(timeline.partition);
    return pyramid == nullptr ? 0.0f : pyramid->score(node, timeline.block_count());
  }
  const Timeline& timeline_of(const CollapseCandidate& candidate) const {
    return *context_.timelines().find(candidate.partition);
  }
  int64_t free_places() const { return target_places_ - tiling_.places(); }
  size_t actions_left() const { return config_.max_actions - actions_.size(); }

  int64_t refund_of(const CollapseCandidate& candidate) const {
    return tiling_.costs().of_expanding(timeline_of(candidate), candidate.node);
  }
  bool is_cooling(FocusActionKind done, uint32_t partition, NodeId node) const {
    return context_.was_recent(done, partition, node, config_.cooldown_steps);
  }

  void expand(const Timeline& timeline, NodeId node, float score) {
    tiling_.expand(timeline, node);
    actions_.push_back({FocusActionKind::kExpand, timeline.partition, node.lod, node.index, score});
  }
  void collapse(const CollapseCandidate& candidate) {
    const Timeline& timeline = timeline_of(candidate);
    tiling_.collapse(timeline, candidate.node);
    actions_.push_back({FocusActionKind::kCollapse, candidate.partition, candidate.node.lod,
                        candidate.node.index, candidate.score});
    collapse_queue_.on_collapsed(timeline, candidate.node);
  }

  void free_reserve() {
    while (free_places() < 0 && actions_left() > 0) {
      const std::optional<CollapseCandidate> lowest = collapse_queue_.pop();
      if (!lowest) break;
      if (refund_of(*lowest) >= 0) collapse(*lowest);
    }
  }

  void expand_best() {
    BlockQueue blocks(context_, field_, config_.expand_threshold);
    int64_t hopeless_peak = INT64_MAX;  // a better block of this cost did not fit
    const int64_t whole_block = static_cast<int64_t>(kFanOut) - tiling_.costs().of_gist(1);
    while (hopeless_peak > std::max<int64_t>(whole_block, 0) && actions_left() > 0) {
      const std::optional<ScoredBlock> best = blocks.pop();
      if (!best) return;
      const Timeline& timeline = *best->timeline;
      if (!timeline.may_be_raw(best->block)) continue;
      const Descent descent = tiling_.descent_to(timeline, best->block);
      if (descent.length == 0 || descent.peak >= hopeless_peak) continue;
      if (is_blocked(timeline, descent)) continue;
      if (!make_room(descent, best->score)) {
        hopeless_peak = descent.peak;
        continue;
      }
      for (const NodeId node : descent.nodes()) expand(timeline, node, best->score);
    }
  }

  // A node on the way was collapsed a moment ago, by an earlier plan or by this one. What takes no
  // place may come and go.
  bool is_blocked(const Timeline& timeline, const Descent& descent) const {
    for (const NodeId node : descent.nodes()) {
      if (tiling_.costs().of_expanding(timeline, node) == 0) continue;
      if (is_cooling(FocusActionKind::kCollapse, timeline.partition, node)) return true;
      if (context_.tiling().is_expanded(timeline, node)) return true;
    }
    return false;
  }

  // The lowest node whose collapse may make room: none that would take places, and none that an
  // earlier plan has just expanded. Those stay as they are, so each is looked at once a plan.
  std::optional<CollapseCandidate> pop_usable() {
    for (;;) {
      const std::optional<CollapseCandidate> lowest = collapse_queue_.pop();
      if (!lowest) return lowest;
      const int64_t refund = refund_of(*lowest);
      const bool is_usable =
          refund == 0 ||
          (refund > 0 && !is_cooling(FocusActionKind::kExpand, lowest->partition, lowest->node));
      if (is_usable) return lowest;
    }
  }

  // Collapses what is worth less than a block of `score`, or nothing when that is not enough.
  bool make_room(const Descent& descent, float score) {
    const size_t first_action = actions_.size();
    const size_t needed_actions = static_cast<size_t>(descent.length);
    std::vector<CollapseCandidate> collapsed;
    float loss = 0;
    bool fits = needed_actions <= actions_left();
    while (fits && descent.peak > free_places()) {
      const std::optional<CollapseCandidate> lowest = pop_usable();
      fits = false;
      if (!lowest) break;
      if (refund_of(*lowest) > 0) loss += std::max(lowest->score, 0.0f);
      if (lowest->score >= score || score - loss <= config_.hysteresis) {
        collapse_queue_.push(*lowest);
        break;
      }
      collapsed.push_back(*lowest);
      collapse(*lowest);
      fits = needed_actions <= actions_left();
    }
    if (fits) return true;
    for (size_t undo = collapsed.size(); undo-- > 0;) {
      tiling_.expand(timeline_of(collapsed[undo]), collapsed[undo].node);
    }
    actions_.resize(first_action);
    for (const CollapseCandidate& candidate : collapsed) collapse_queue_.push(candidate);
    return false;
  }

  void collapse_lowest() {
    while (actions_left() > 0) {
      const std::optional<CollapseCandidate> lowest = pop_usable();
      if (!lowest || lowest->score > config_.expand_threshold) return;
      const bool is_unwanted = lowest->score < -config_.collapse_threshold;
      if (is_unwanted || refund_of(*lowest) == 0) collapse(*lowest);
    }
  }

  const WorkingContext& context_;
  const ScoreField& field_;
  const AllocatorConfig& config_;
  Tiling tiling_;
  int64_t target_places_;
  CollapseQueue collapse_queue_;
  std::vector<FocusAction> actions_;
};

bool is_at_least_zero(float value) {
  return std::isfinite(value) && value >= 0;
}

}  // namespace

Result<Allocator> Allocator::create(const AllocatorConfig& config) {
  for (const auto& [name, value] : {std::pair("expand_threshold", config.expand_threshold),
                                    std::pair("collapse_threshold", config.collapse_threshold),
                                    std::pair("hysteresis", config.hysteresis)}) {
    if (is_at_least_zero(value)) continue;
    return Status::invalid_argument(
        str_cat("[allocator] ", name, " must be at least 0 and finite, got ", value));
  }
  if (config.cooldown_steps < 0 || config.cooldown_steps > kMaxCooldownSteps) {
    return Status::invalid_argument(str_cat("[allocator] cooldown_steps must be 0 to ",
                                            kMaxCooldownSteps, ", got ", config.cooldown_steps));
  }
  return Allocator(config);
}

Result<FocusPlan> Allocator::plan(const WorkingContext& context, const ScoreField& field) const {
  for (const auto& [partition, timeline] : context.timelines()) {
    const ScorePyramid* pyramid = field.find(partition);
    if (pyramid == nullptr || pyramid->block_count() <= timeline.block_count()) continue;
    return Status::invalid_argument(str_cat("[plan] scores of partition ", partition,
                                            " must be at most ", timeline.block_count(),
                                            ", one a block, got ", pyramid->block_count()));
  }
  return Planner(context, field, config_).run();
}

}  // namespace mc
