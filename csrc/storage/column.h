// Column: the rows of one family in one partition, wherever they lie: in mapped segments or in
// memory, not yet sealed. Copying it is cheap, and a copy is a stable view: rows that are appended
// later lie beyond its row_count, rows that are overwritten go to new memory.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "base/block_pool.h"
#include "base/bytes.h"
#include "base/status.h"
#include "storage/segment.h"

namespace mc {

// Rows in memory. Written once, front to back, never moved.
struct Extent {
  explicit Extent(uint64_t byte_count)
      : block(byte_count > BlockPool::kBlockBytes / 2 && byte_count <= BlockPool::kBlockBytes
                  ? BlockPool::shared().take()
                  : nullptr),
        own(block == nullptr ? new std::byte[byte_count] : nullptr) {}
  std::byte* bytes() const { return block != nullptr ? block.get() : own.get(); }

  const BlockPool::Block block;
  const std::unique_ptr<std::byte[]> own;
};

// Consecutive rows that lie side by side. Exactly one of `segment` and `extent` is set. Rows of an
// extent are in their family's format; a segment may keep them in another one (row_fetch.h).
struct Run {
  uint64_t first = 0;
  uint64_t end = 0;
  const std::byte* rows = nullptr;  // of row `first`
  uint64_t row_bytes = 0;           // of each row, as it lies here
  std::shared_ptr<const Segment> segment;
  std::shared_ptr<const Extent> extent;
};
using RunList = std::vector<Run>;

// Puts `run` over whatever the list has there. The list is sorted and never overlaps.
void place(RunList& runs, Run run);

class Column {
 public:
  uint64_t row_count() const { return row_count_; }

  // Amortised one copy of the rows.
  void append(const std::byte* rows, uint64_t count, uint64_t row_bytes);
  // first + count <= row_count().
  void overwrite(uint64_t first, const std::byte* rows, uint64_t count, uint64_t row_bytes);
  // Places rows of a segment; row_count grows to cover them.
  void attach(std::shared_ptr<const Segment> segment, const RunEntry& run, const std::byte* rows);
  // Places those of the rows that lie in `old` segments now; what else is shown stays.
  void replace(const std::vector<std::shared_ptr<const Segment>>& old,
               std::shared_ptr<const Segment> segment, const RunEntry& run, const std::byte* rows);
  // After attach() covered everything in memory, nothing may be appended to the old extent.
  void drop_tail() { tail_ = nullptr; }

  // Forgets the rows from `count` on, if there are any. What comes in their place goes to new
  // memory, since copies of this column still show them.
  void cut(uint64_t count);

  // Runs cut to row_count().
  RunList runs() const;
  RunList unsealed_runs() const;
  // First row that no run covers, or row_count().
  uint64_t first_gap() const;

  // Walks to single rows; remembers the run of the last one. Must not outlive the column.
  class Cursor {
   public:
    explicit Cursor(const Column& column) : column_(&column) {}
    // index < row_count(). Run and `row`, not yet verified, are valid while the column is.
    const Run& locate(uint64_t index, const std::byte*& row);

   private:
    const Column* column_;
    const Run* run_ = nullptr;
  };

 private:
  RunList& own_runs();  // a list that no copy of this column shares
  const Run* find(uint64_t index) const;

  std::shared_ptr<RunList> runs_;
  uint64_t row_count_ = 0;
  std::shared_ptr<Extent> tail_;  // of the last run, when rows may be appended to it
  uint64_t tail_first_ = 0, tail_end_ = 0;
};

}  // namespace mc
