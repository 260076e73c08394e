// What a WAL record says: a list of changes that are applied together or not at all.
//
// record   = change*
// change   = kind u8, then by kind (text = length u32 + bytes):
//   1 define family   id u32, lod u8, type u8, width u32, name text
//   2 add partition   id u32, created_ms u64, source text, metadata text
//   3 set metadata    partition u32, metadata text
//   4 put rows        family u32, partition u32, first u64, count u64, byte_count u64, rows
//   5 index blocks    partition u32, first_block u64, block_count u32, analyzer version u32,
//                     block_count x (term_count u32, term_count x (hash u64, count u32))
//   6 close           nothing: the writer left in good order
//   7 cut             partition u32, family u32 (0: all), token_count u64
//   8 erase           partition u32
//   9 drop family     family u32
//  10 hide            partition u32, hidden u8
//  11 define scaled   as 1, but group_size u32 before the name
// Kinds from 7 on need WAL version 2; kind 11 needs kEncodedRows in the manifest before it.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/coding.h"
#include "base/result.h"
#include "format/row_format.h"

namespace mc {

struct DefineFamily {
  uint32_t id = 0;
  uint8_t lod = 0;
  RowType type = RowType::kF32;
  uint32_t width = 0;  // elements a row
  std::string name;
  uint8_t flags = 0;        // kDropped; in the manifest only
  uint32_t group_size = 0;  // of scaled types, see row_format.h

  RowFormat format() const { return {type, width, group_size}; }
};
inline constexpr uint8_t kDropped = 1;

struct AddPartition {
  uint32_t id = 0;
  uint64_t created_ms = 0;
  std::string source, metadata_json;
  uint8_t flags = 0;  // kErased, kHidden; in the manifest only
};
inline constexpr uint8_t kErased = 1;
inline constexpr uint8_t kHidden = 2;

struct SetMetadata {
  uint32_t partition = 0;
  std::string metadata_json;
};
// `rows` is the caller's memory, or the record's; it is not owned.
struct PutRows {
  uint32_t family = 0;
  uint32_t partition = 0;
  uint64_t first = 0;
  uint64_t count = 0;
  Bytes rows;
};
struct IndexBlocks {
  uint32_t partition = 0;
  uint64_t first_block = 0;
  uint32_t block_count = 0;
  uint32_t analyzer = 0;  // version of what made the terms (search/analyzer.h)
  Bytes terms;            // block_count x (term_count, terms), as above
};
struct CloseStore {};
// Rows of nodes that reach beyond the first `token_count` tokens are gone; of family 0 also the
// tokens and the index there.
struct CutPartition {
  uint32_t partition = 0;
  uint32_t family = 0;
  uint64_t token_count = 0;
};
// Everything of a partition is gone, its name included. Its id is not used again.
struct ErasePartition {
  uint32_t partition = 0;
};
struct DropFamily {
  uint32_t family = 0;
};
// A hidden partition can be read but is not searched.
struct HidePartition {
  uint32_t partition = 0;
  bool hidden = false;
};

using Change = std::variant<DefineFamily, AddPartition, SetMetadata, PutRows, IndexBlocks,
                            CloseStore, CutPartition, ErasePartition, DropFamily, HidePartition>;

// A record as parts to be written one after the other; large rows are not copied.
class RecordParts {
 public:
  explicit RecordParts(const std::vector<Change>& changes);
  const std::vector<Bytes>& parts() const { return parts_; }
  uint64_t byte_count() const { return byte_count_; }

 private:
  ByteWriter heads_;
  std::vector<Bytes> parts_;
  uint64_t byte_count_ = 0;
};

// The views in the changes point into `bytes`.
Result<std::vector<Change>> decode_record(Bytes bytes);
// Whether this is the record of a writer that left in good order.
bool is_close_record(Bytes bytes);

}  // namespace mc
