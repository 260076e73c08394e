#include "storage/column.h"

#include <algorithm>

#include "base/checks.h"
#include "base/str_cat.h"
#include "storage/read_path.h"

namespace mc {
namespace {

constexpr uint64_t kLeastExtentBytes = 256;
constexpr uint64_t kMostExtentBytes = BlockPool::kBlockBytes;

Run cut(const Run& run, uint64_t first, uint64_t end, uint32_t row_bytes) {
  Run part = run;
  part.rows += (first - run.first) * row_bytes;
  part.first = first;
  part.end = end;
  return part;
}

bool continues(const Run& before, const Run& run, uint32_t row_bytes) {
  return before.segment != nullptr && before.segment == run.segment && before.end == run.first &&
         before.rows + (before.end - before.first) * row_bytes == run.rows;
}

}  // namespace

void place(RunList& runs, Run run, uint32_t row_bytes) {
  auto at = std::partition_point(runs.begin(), runs.end(),
                                 [&](const Run& other) { return other.end <= run.first; });
  RunList pieces;
  auto last = at;
  for (; last != runs.end() && last->first < run.end; ++last) {
    if (last->first < run.first) pieces.push_back(cut(*last, last->first, run.first, row_bytes));
  }
  const bool overlaps = last != at;
  const Run tail = overlaps && (last - 1)->end > run.end
                       ? cut(*(last - 1), run.end, (last - 1)->end, row_bytes)
                       : Run{};
  if (!overlaps && at != runs.begin() && continues(*(at - 1), run, row_bytes)) {
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

void Column::append(const std::byte* rows, uint64_t count, uint32_t row_bytes) {
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
      place(own_runs(), {tail_first_, tail_end_, tail_->bytes(), nullptr, tail_}, row_bytes);
    }
    const uint64_t take = std::min(count, tail_end_ - row_count_);
    std::memcpy(tail_->bytes() + (row_count_ - tail_first_) * row_bytes, rows, take * row_bytes);
    row_count_ += take;
    rows += take * row_bytes;
    count -= take;
  }
}

void Column::overwrite(uint64_t first, const std::byte* rows, uint64_t count, uint32_t row_bytes) {
  MC_ASSERT(first + count <= row_count_);
  if (count == 0) return;
  auto extent = std::make_shared<Extent>(count * row_bytes);
  std::memcpy(extent->bytes(), rows, count * row_bytes);
  RunList& runs = own_runs();
  if (!runs.empty()) runs.back().end = std::min(runs.back().end, row_count_);
  drop_tail();
  place(runs, {first, first + count, extent->bytes(), nullptr, extent}, row_bytes);
}

void Column::attach(std::shared_ptr<const Segment> segment, const RunEntry& run,
                    const std::byte* rows) {
  const uint32_t row_bytes = segment->header().row_bytes;
  RunList& list = own_runs();
  if (!list.empty()) list.back().end = std::min(list.back().end, row_count_);
  drop_tail();
  place(list, {run.first, run.first + run.count, rows, std::move(segment), nullptr}, row_bytes);
  row_count_ = std::max(row_count_, run.first + run.count);
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

Status Column::read(uint64_t start, uint64_t end, uint32_t row_bytes, std::byte* out) const {
  std::vector<PagePiece> none;
  return read_warm(start, end, row_bytes, out, nullptr, none);
}

Status Column::read_warm(uint64_t start, uint64_t end, uint32_t row_bytes, std::byte* out,
                         const ReadPath* path, std::vector<PagePiece>& cold) const {
  MC_ASSERT(end <= row_count_);
  while (start < end) {
    const Run* run = find(start);
    const uint64_t stop = std::min(end, run->end);
    const std::byte* rows = run->rows + (start - run->first) * row_bytes;
    const uint64_t byte_count = (stop - start) * row_bytes;
    if (run->segment != nullptr && path != nullptr &&
        !path->is_warm(*run->segment, rows, byte_count)) {
      add_pieces(*run->segment, rows, byte_count, out, cold);
    } else {
      if (run->segment != nullptr) MC_RETURN_IF_ERROR(run->segment->verify(rows, byte_count));
      std::memcpy(out, rows, byte_count);
    }
    out += byte_count;
    start = stop;
  }
  return Status::ok();
}

const Run& Column::Cursor::locate(uint64_t index, uint32_t row_bytes, const std::byte*& row) {
  if (run_ == nullptr || index < run_->first || index >= run_->end) run_ = column_->find(index);
  row = run_->rows + (index - run_->first) * row_bytes;
  return *run_;
}

}  // namespace mc
