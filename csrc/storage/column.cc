#include "storage/column.h"

#include <algorithm>

#include "base/checks.h"

namespace mc {
namespace {

constexpr uint64_t kLeastExtentBytes = 256;
constexpr uint64_t kMostExtentBytes = BlockPool::kBlockBytes;

Run cut(const Run& run, uint64_t first, uint64_t end) {
  Run part = run;
  part.rows += (first - run.first) * run.row_bytes;
  part.first = first;
  part.end = end;
  return part;
}

bool continues(const Run& before, const Run& run) {
  return before.segment != nullptr && before.segment == run.segment && before.end == run.first &&
         before.rows + (before.end - before.first) * before.row_bytes == run.rows;
}

}  // namespace

void place(RunList& runs, Run run) {
  auto at = std::partition_point(runs.begin(), runs.end(),
                                 [&](const Run& other) { return other.end <= run.first; });
  RunList pieces;
  auto last = at;
  for (; last != runs.end() && last->first < run.end; ++last) {
    if (last->first < run.first) pieces.push_back(cut(*last, last->first, run.first));
  }
  const bool overlaps = last != at;
  const Run tail =
      overlaps && (last - 1)->end > run.end ? cut(*(last - 1), run.end, (last - 1)->end) : Run{};
  if (!overlaps && at != runs.begin() && continues(*(at - 1), run)) {
    (at - 1)->end = run.end;
    return;
  }
  pieces.push_back(std::move(run));
  if (tail.end > tail.first) pieces.push_back(tail);
  at = runs.erase(at, last);
  runs.insert(at, pieces.begin(), pieces.end());
}

RunList& Column::own_runs() {
  // A snapshot may share the list. Copying is rare: once an extent or an overwrite.
  runs_ = runs_ == nullptr ? std::make_shared<RunList>() : std::make_shared<RunList>(*runs_);
  return *runs_;
}

void Column::append(const std::byte* rows, uint64_t count, uint64_t row_bytes) {
  while (count > 0) {
    if (tail_ == nullptr || row_count_ == tail_end_) {
      const uint64_t before = tail_ == nullptr ? 0 : tail_end_ - tail_first_;
      const uint64_t least = std::max<uint64_t>(kLeastExtentBytes / row_bytes, 1);
      const uint64_t most = std::max<uint64_t>(kMostExtentBytes / row_bytes, 1);
      const uint64_t capacity =
          std::clamp(std::max(2 * before, std::min(count, most)), least, std::max(least, most));
      tail_ = std::make_shared<Extent>(capacity * row_bytes);
      tail_first_ = row_count_;
      tail_end_ = row_count_ + capacity;
      place(own_runs(), {tail_first_, tail_end_, tail_->bytes(), row_bytes, nullptr, tail_});
    }
    const uint64_t take = std::min(count, tail_end_ - row_count_);
    std::memcpy(tail_->bytes() + (row_count_ - tail_first_) * row_bytes, rows, take * row_bytes);
    row_count_ += take;
    rows += take * row_bytes;
    count -= take;
  }
}

void Column::overwrite(uint64_t first, const std::byte* rows, uint64_t count, uint64_t row_bytes) {
  MC_ASSERT(first + count <= row_count_);
  if (count == 0) return;
  auto extent = std::make_shared<Extent>(count * row_bytes);
  std::memcpy(extent->bytes(), rows, count * row_bytes);
  RunList& runs = own_runs();
  if (!runs.empty()) runs.back().end = std::min(runs.back().end, row_count_);
  drop_tail();
  place(runs, {first, first + count, extent->bytes(), row_bytes, nullptr, extent});
}

void Column::attach(std::shared_ptr<const Segment> segment, const RunEntry& run,
                    const std::byte* rows) {
  const uint64_t row_bytes = segment->header().row_bytes;
  RunList& list = own_runs();
  if (!list.empty()) list.back().end = std::min(list.back().end, row_count_);
  drop_tail();
  place(list, {run.first, run.first + run.count, rows, row_bytes, std::move(segment), nullptr});
  row_count_ = std::max(row_count_, run.first + run.count);
}

void Column::replace(const std::vector<std::shared_ptr<const Segment>>& old,
                     std::shared_ptr<const Segment> segment, const RunEntry& run,
                     const std::byte* rows) {
  if (runs_ == nullptr) return;
  const uint64_t row_bytes = segment->header().row_bytes;
  const uint64_t end = std::min(run.first + run.count, row_count_);
  RunList parts;
  for (const Run& shown : *runs_) {
    if (std::find(old.begin(), old.end(), shown.segment) == old.end()) continue;
    const uint64_t first = std::max(shown.first, run.first);
    const uint64_t last = std::min(shown.end, end);
    if (first >= last) continue;
    if (!parts.empty() && parts.back().end == first) {
      parts.back().end = last;
    } else {
      const std::byte* start = rows + (first - run.first) * row_bytes;
      parts.push_back({first, last, start, row_bytes, segment, nullptr});
    }
  }
  if (parts.empty()) return;
  RunList& list = own_runs();
  for (Run& part : parts) place(list, std::move(part));
}

void Column::cut(uint64_t count) {
  if (count >= row_count_) return;
  row_count_ = count;
  runs_ = std::make_shared<RunList>(runs());
  drop_tail();
}

RunList Column::runs() const {
  RunList runs;
  if (runs_ == nullptr) return runs;
  for (const Run& run : *runs_) {
    if (run.first >= row_count_) break;
    runs.push_back(run);
    runs.back().end = std::min(run.end, row_count_);
  }
  return runs;
}

RunList Column::unsealed_runs() const {
  RunList unsealed = runs();
  std::erase_if(unsealed, [](const Run& run) { return run.extent == nullptr; });
  return unsealed;
}

uint64_t Column::first_gap() const {
  uint64_t covered = 0;
  for (const Run& run : runs()) {
    if (run.first != covered) break;
    covered = run.end;
  }
  return covered;
}

const Run* Column::find(uint64_t index) const {
  auto found = std::partition_point(runs_->begin(), runs_->end(),
                                    [index](const Run& run) { return run.end <= index; });
  MC_ASSERT(found != runs_->end() && found->first <= index);
  return &*found;
}

const Run& Column::Cursor::locate(uint64_t index, const std::byte*& row) {
  if (run_ == nullptr || index < run_->first || index >= run_->end) run_ = column_->find(index);
  row = run_->rows + (index - run_->first) * run_->row_bytes;
  return *run_;
}

}  // namespace mc
