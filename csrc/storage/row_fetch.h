// Rows on their way from where they lie to a caller, in the format that the caller wants. Sealed
// rows may lie in another format than their family's (Store::reencode); they are decoded here.
#pragma once

#include <vector>

#include "storage/column.h"
#include "storage/read_path.h"

namespace mc {

// How rows of a run lie, where `declared` is their family's format.
inline RowFormat format_of(const Run& run, const RowFormat& declared) {
  return run.segment == nullptr ? declared : run.segment->header().row_format(declared.width);
}

// What could not be answered from memory: pages to read in one batch, and rows among them to decode
// afterwards. The columns that the rows are of must outlive it.
class ColdRows {
 public:
  bool empty() const { return pieces_.empty(); }
  // `count` rows of `run` from `rows` on go to `out` when finish() is called.
  void add(const Run& run, const std::byte* rows, uint64_t count, std::byte* out);
  void add_encoded(const Run& run, const std::byte* rows, uint64_t count, const RowFormat& held,
                   const RowFormat& wanted, std::byte* out);
  Status finish(ReadPath& path);

 private:
  struct Encoded {
    RowFormat held, wanted;
    std::vector<std::byte> rows;
    MutableBytes out;
  };
  std::vector<PagePiece> pieces_;
  std::vector<Encoded> encoded_;
};

// `count` rows side by side in `run`, from `rows` on, which lie as `held`: copied or decoded when
// they are warm, else added to `cold`. Corruption when a page does not match its checksum.
struct RowFetch {
  const RowFormat& declared;
  const RowFormat& wanted;
  ReadPath& path;
  ColdRows& cold;

  Status operator()(const Run& run, const std::byte* rows, uint64_t count, std::byte* out) const;
};

}  // namespace mc
