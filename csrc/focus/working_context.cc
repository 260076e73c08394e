#include "focus/working_context.h"

#include <algorithm>
#include <limits>

#include "base/checks.h"
#include "base/str_cat.h"

namespace mc {
namespace {

int root_lod_of(uint64_t token_count) {
  int lod = 2;
  while (tokens_per_node(lod) < token_count) ++lod;
  return lod;
}

}  // namespace

Result<WorkingContext> WorkingContext::create(WorkingContextConfig config) {
  if (config.budget_places > std::numeric_limits<int32_t>::max()) {
    return Status::invalid_argument(
        str_cat("[working context] budget_places must be below 2^31, got ", config.budget_places));
  }
  if (config.gist_places.size() > kMaxLod) {
    return Status::invalid_argument(str_cat("[working context] gist_places must have at most ",
                                            kMaxLod, " LODs, got ", config.gist_places.size()));
  }
  for (const uint32_t places : config.gist_places) {
    if (places <= kFanOut) continue;
    return Status::invalid_argument(
        str_cat("[working context] gist_places must be at most ", kFanOut, " each, got ", places));
  }
  return WorkingContext(std::move(config));
}

WorkingContext::WorkingContext(WorkingContextConfig config)
    : config_(std::move(config)), tiling_(PlaceCosts(config_.gist_places)) {}

Result<Timeline*> WorkingContext::timeline_of(const char* op, uint32_t partition) {
  Timeline* timeline = timelines_.find(partition);
  if (timeline != nullptr) return timeline;
  return Status::not_found(
      str_cat("[", op, "] partition must be in the working context, got ", partition));
}

Status WorkingContext::set_partition(uint32_t partition, uint64_t token_count,
                                     std::optional<uint64_t> protected_tail_tokens) {
  if (token_count > kMaxTimelineTokens) {
    return Status::invalid_argument(str_cat("[set_partition] token_count must be at most ",
                                            kMaxTimelineTokens, ", got ", token_count));
  }
  Timeline* timeline = timelines_.find(partition);
  const uint64_t known = timeline == nullptr ? 0 : timeline->token_count;
  if (token_count < known) {
    return Status::invalid_argument(str_cat("[set_partition] token_count must be at least ", known,
                                            " of partition ", partition, ", got ", token_count));
  }
  if (token_count == 0 || fills_raw_block(timeline, token_count, protected_tail_tokens)) {
    return Status::ok();
  }
  const uint64_t tail = protected_tail_tokens.value_or(
      timeline == nullptr ? config_.protected_tail_tokens : timeline->protected_tail_tokens);
  if (std::min(tail, token_count) > config_.budget_places) {
    return Status::over_budget(str_cat("[set_partition] a protected tail of ",
                                       std::min(tail, token_count), " tokens of partition ",
                                       partition, " needs more than budget_places ",
                                       config_.budget_places));
  }
  const Tiling tiling_before = tiling_;
  const Timeline timeline_before = timeline == nullptr ? Timeline() : *timeline;
  if (timeline == nullptr) {
    Timeline fresh;
    fresh.partition = partition;
    fresh.token_count = token_count;
    timeline = &timelines_.insert(std::move(fresh));
  }
  timeline->protected_tail_tokens = tail;
  if (known == 0) {
    tile_new(*timeline);
  } else if (token_count > known) {
    extend(*timeline, token_count);
  }
  enforce_raw(*timeline);
  const Status status = make_room("set_partition");
  if (status.is_ok()) return status;
  tiling_ = tiling_before;
  if (known == 0) {
    timelines_.erase(partition);
  } else {
    *timeline = timeline_before;
  }
  return status;
}

// The step of decoding: a token joins the last block, which is raw and has room in the budget.
bool WorkingContext::fills_raw_block(Timeline* timeline, uint64_t token_count,
                                     std::optional<uint64_t> protected_tail_tokens) {
  if (timeline == nullptr || protected_tail_tokens) return false;
  const NodeId last{1, timeline->block_count() - 1};
  if (token_count > last.span().end || !tiling_.is_expanded(*timeline, last)) return false;
  if (static_cast<int64_t>(token_count - timeline->token_count) > free_places()) return false;
  tiling_.grow(*timeline, token_count);
  return true;
}

void WorkingContext::tile_new(Timeline& timeline) {
  timeline.root_lod = root_lod_of(timeline.token_count);
  tiling_.add_timeline(timeline);
  const int64_t gists = tiling_.costs().of_coarsest_tiling(timeline.token_count);
  if (gists > 0 && gists <= free_places()) tiling_.open_gists(timeline, timeline.root());
}

void WorkingContext::extend(Timeline& timeline, uint64_t token_count) {
  const uint64_t first_new_block = timeline.block_count();
  tiling_.grow(timeline, token_count);
  const uint64_t first_raw_block =
      timeline.protected_tail_tokens == 0 ? timeline.block_count() : first_new_block;
  for (uint64_t block = timeline.block_count(); block-- > first_raw_block;) {
    if (!timeline.may_be_raw(block)) continue;
    if (tiling_.descent_to(timeline, block).cost > free_places()) break;
    tiling_.make_raw(timeline, block);
  }
  const NodeId last = tiling_.last_unexpanded(timeline);
  if (last.span().start < first_new_block * kFanOut || timeline.is_full(last)) return;
  const uint64_t unfinished_tokens = timeline.span_of(last).token_count();
  const int64_t gists = tiling_.costs().of_coarsest_tiling(unfinished_tokens);
  if (gists > 0 && gists <= free_places()) tiling_.open_gists(timeline, last);
}

void WorkingContext::enforce_raw(const Timeline& timeline) {
  for (uint64_t block = timeline.first_protected_block(); block < timeline.block_count(); ++block) {
    if (timeline.may_be_raw(block)) tiling_.make_raw(timeline, block);
  }
  for (const Span& range : timeline.pinned.ranges()) {
    for (uint64_t block = range.start; block < range.end; ++block) {
      tiling_.make_raw(timeline, block);
    }
  }
}

// Without scores: raw blocks before gists, finer gists before coarser, far from the end first.
Status WorkingContext::make_room(const char* op) {
  if (free_places() >= 0) return Status::ok();
  CollapseQueue queue(tiling_, timelines_,
                      [](const Timeline&, NodeId node) { return static_cast<float>(node.lod); });
  while (free_places() < 0) {
    const std::optional<CollapseCandidate> candidate = queue.pop();
    if (!candidate) {
      return Status::over_budget(str_cat("[", op, "] protected tails and pinned blocks need ",
                                         tiling_.places(), " places, budget_places is ",
                                         config_.budget_places));
    }
    const Timeline& timeline = *timelines_.find(candidate->partition);
    if (tiling_.costs().of_expanding(timeline, candidate->node) < 0) continue;  // would cost more
    tiling_.collapse(timeline, candidate->node);
    queue.on_collapsed(timeline, candidate->node);
  }
  return Status::ok();
}

Status WorkingContext::remove_partition(uint32_t partition) {
  MC_ASSIGN_OR_RETURN(const Timeline* timeline, timeline_of("remove_partition", partition));
  tiling_.remove_timeline(*timeline);
  timelines_.erase(partition);
  for (auto at = recent_.begin(); at != recent_.end();) {
    at = at->first.partition == partition ? recent_.erase(at) : std::next(at);
  }
  return Status::ok();
}

Status WorkingContext::reset() {
  const Tiling before = tiling_;
  tiling_ = Tiling(PlaceCosts(config_.gist_places));
  for (const auto& [partition, timeline] : timelines_) {
    tile_new(*timelines_.find(partition));
    enforce_raw(timeline);
  }
  const Status status = make_room("reset");
  if (!status.is_ok()) {
    tiling_ = before;
    return status;
  }
  recent_.clear();
  recent_order_.clear();
  return status;
}

Result<Span> WorkingContext::blocks_of(const char* op, const Timeline& timeline, uint64_t start,
                                       uint64_t end) {
  if (start < end && end <= timeline.token_count) {
    return Span{start / kFanOut, (end + kFanOut - 1) / kFanOut};
  }
  return Status::invalid_argument(str_cat("[", op, "] span must be within [0, ",
                                          timeline.token_count, ") of partition ",
                                          timeline.partition, ", got [", start, ", ", end, ")"));
}

Status WorkingContext::pin(uint32_t partition, uint64_t start, uint64_t end) {
  MC_ASSIGN_OR_RETURN(Timeline* const timeline, timeline_of("pin", partition));
  MC_ASSIGN_OR_RETURN(const Span blocks, blocks_of("pin", *timeline, start, end));
  if (timeline->excluded.overlaps(blocks)) {
    return Status::invalid_argument(str_cat("[pin] span must not be excluded, got [", start, ", ",
                                            end, ") of partition ", partition));
  }
  if (blocks.token_count() > config_.budget_places) {
    return Status::over_budget(str_cat("[pin] ", blocks.token_count(),
                                       " blocks need more places than budget_places ",
                                       config_.budget_places));
  }
  const Tiling tiling_before = tiling_;
  const BlockSet pinned_before = timeline->pinned;
  timeline->pinned.add(blocks);
  enforce_raw(*timeline);
  const Status status = make_room("pin");
  if (!status.is_ok()) {
    tiling_ = tiling_before;
    timeline->pinned = pinned_before;
  }
  return status;
}

Status WorkingContext::unpin(uint32_t partition, uint64_t start, uint64_t end) {
  MC_ASSIGN_OR_RETURN(Timeline* const timeline, timeline_of("unpin", partition));
  MC_ASSIGN_OR_RETURN(const Span blocks, blocks_of("unpin", *timeline, start, end));
  timeline->pinned.remove(blocks);
  return Status::ok();
}

Status WorkingContext::exclude(uint32_t partition, uint64_t start, uint64_t end) {
  MC_ASSIGN_OR_RETURN(Timeline* const timeline, timeline_of("exclude", partition));
  MC_ASSIGN_OR_RETURN(const Span blocks, blocks_of("exclude", *timeline, start, end));
  if (timeline->pinned.overlaps(blocks)) {
    return Status::invalid_argument(str_cat("[exclude] span must not be pinned, got [", start, ", ",
                                            end, ") of partition ", partition));
  }
  timeline->excluded.add(blocks);
  std::vector<NodeId> raw;
  tiling_.for_each_entry(*timeline, [&](const Entry& entry) {
    if (entry.lod == 0 && blocks.start <= entry.index && entry.index < blocks.end) {
      raw.push_back({1, entry.index});
    }
  });
  for (const NodeId block : raw) tiling_.collapse(*timeline, block);
  return make_room("exclude");
}

Status WorkingContext::include(uint32_t partition, uint64_t start, uint64_t end) {
  MC_ASSIGN_OR_RETURN(Timeline* const timeline, timeline_of("include", partition));
  MC_ASSIGN_OR_RETURN(const Span blocks, blocks_of("include", *timeline, start, end));
  const Tiling tiling_before = tiling_;
  const BlockSet excluded_before = timeline->excluded;
  timeline->excluded.remove(blocks);
  enforce_raw(*timeline);  // of the protected tail
  const Status status = make_room("include");
  if (!status.is_ok()) {
    tiling_ = tiling_before;
    timeline->excluded = excluded_before;
  }
  return status;
}

Status WorkingContext::check_action(const FocusAction& action, size_t number) const {
  const NodeId node{action.lod, action.index};
  const auto refuse = [&](const char* why) {
    return Status::invalid_argument(
        str_cat("[apply] action ", number, " must be a whole-block swap: ",
                action.action == FocusActionKind::kExpand ? "expand" : "collapse", " of partition ",
                action.partition, " LOD ", int{action.lod}, " node ", action.index, " ", why));
  };
  const Timeline* timeline = timelines_.find(action.partition);
  if (timeline == nullptr) return refuse("is of an unknown partition");
  if (action.lod < 1 || action.lod > timeline->root_lod ||
      action.index >= kMaxTimelineTokens >> (kFanOutLog2 * action.lod)) {
    return refuse("is outside the tree");
  }
  if (action.action == FocusActionKind::kCollapse) {
    if (tiling_.is_collapsible(*timeline, node)) return Status::ok();
    return refuse("needs all its children as entries, none of which must be raw");
  }
  if (action.action != FocusActionKind::kExpand) return refuse("is of an unknown kind");
  if (!tiling_.is_entry(*timeline, node)) return refuse("needs the node as an entry");
  if (node.lod == 1 && !timeline->may_be_raw(node.index)) return refuse("is excluded");
  const int64_t cost = tiling_.costs().of_expanding(*timeline, node);
  if (cost <= free_places()) return Status::ok();
  return Status::over_budget(str_cat("[apply] action ", number, " needs ", cost, " places, ",
                                     free_places(), " of ", config_.budget_places, " are free"));
}

Status WorkingContext::apply(const FocusPlan& plan) {
  for (size_t i = 0; i < plan.actions.size(); ++i) {
    const FocusAction& action = plan.actions[i];
    Status status = check_action(action, i);
    if (status.is_ok()) {
      const Timeline& timeline = *timelines_.find(action.partition);
      const NodeId node{action.lod, action.index};
      if (action.action == FocusActionKind::kExpand) {
        tiling_.expand(timeline, node);
        continue;
      }
      tiling_.collapse(timeline, node);
      if (free_places() >= 0) continue;
      tiling_.expand(timeline, node);  // a gist may cost more than what it stands for
      status = Status::over_budget(
          str_cat("[apply] action ", i, " needs more than the ", free_places(), " free places"));
    }
    for (size_t undo = i; undo-- > 0;) {
      const FocusAction& done = plan.actions[undo];
      const Timeline& timeline = *timelines_.find(done.partition);
      const NodeId node{done.lod, done.index};
      if (done.action == FocusActionKind::kExpand) {
        tiling_.collapse(timeline, node);
      } else {
        tiling_.expand(timeline, node);
      }
    }
    return status;
  }
  remember(plan);
#ifndef NDEBUG
  MC_ASSERT(check().is_ok());
#endif
  return Status::ok();
}

void WorkingContext::remember(const FocusPlan& plan) {
  ++step_;
  for (const FocusAction& action : plan.actions) {
    const NodeKey key{action.partition, action.lod, action.index};
    recent_[key] = {action.action, step_};
    recent_order_.emplace_back(step_, key);
  }
  while (!recent_order_.empty() && recent_order_.front().first + kMaxCooldownSteps < step_) {
    const auto found = recent_.find(recent_order_.front().second);
    if (found != recent_.end() && found->second.step == recent_order_.front().first) {
      recent_.erase(found);
    }
    recent_order_.pop_front();
  }
}

bool WorkingContext::was_recent(FocusActionKind action, uint32_t partition, NodeId node,
                                int steps) const {
  if (steps == 0) return false;
  const auto found = recent_.find({partition, node.lod, node.index});
  return found != recent_.end() && found->second.action == action &&
         found->second.step + static_cast<uint64_t>(steps) > step_;
}

std::vector<Entry> WorkingContext::entries() const {
  std::vector<Entry> entries;
  for (const auto& [partition, timeline] : timelines_) {
    tiling_.for_each_entry(timeline, [&](const Entry& entry) { entries.push_back(entry); });
  }
  return entries;
}

std::vector<float> WorkingContext::entry_scores(const ScoreField& field) const {
  std::vector<float> scores;
  for (const auto& [partition, timeline] : timelines_) {
    const ScorePyramid* pyramid = field.find(partition);
    const uint64_t block_count = timeline.block_count();
    tiling_.for_each_entry(timeline, [&](const Entry& entry) {
      const NodeId node{std::max(entry.lod, uint8_t{1}), entry.index};
      scores.push_back(pyramid == nullptr ? 0.0f : pyramid->score(node, block_count));
    });
  }
  return scores;
}

}  // namespace mc
