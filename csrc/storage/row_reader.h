// RowReader: every read of a store. Store reads what is there now, Snapshot what was there when it
// was taken. Safe from many threads; a read copies the columns it needs under a short lock and
// touches rows without any.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/manifest.h"
#include "storage/column.h"
#include "storage/lexical_index.h"
#include "storage/read_path.h"
#include "storage/row_fetch.h"
#include "tree/span.h"

namespace mc {

class Prefetch;

// A source with a timeline of its own.
struct Partition {
  std::shared_ptr<const AddPartition> about;
  std::vector<Column> columns;  // [family id - 1]; shorter when the last ones are empty
  uint64_t indexed_blocks = 0;
  uint64_t epoch = 0;  // of the store when this object was made; see Store::own_partition

  const Column& column(uint32_t family_id) const;
  bool erased() const { return (about->flags & kErased) != 0; }
};

struct StoreState {
  std::shared_ptr<ReadPath> read_path;
  std::vector<std::shared_ptr<const DefineFamily>> families;  // [id - 1]
  std::vector<std::shared_ptr<Partition>> partitions;         // [id]
  LexicalIndex lexical;
  std::vector<uint32_t> hidden;  // partitions that are not searched, ascending
};

// What partitions() tells of one.
struct PartitionSummary {
  uint32_t id = 0;
  std::string source;
  std::string metadata_json;
  uint64_t token_count = 0;
  uint64_t created_ms = 0;
  bool hidden = false;
};

// Where the columns of all partitions of one family are gathered from.
struct GatherRequest {
  std::string_view family;
  std::span<const uint32_t> partitions;  // [N]
  std::span<const uint64_t> indices;     // [N]
};

struct GatherPart {
  GatherRequest request;
  MutableBytes out;  // row i is row indices[i] of partitions[i]
  // How rows come: floats of this type, or as the family declares them.
  std::optional<RowType> as = {};
};

inline constexpr uint32_t kTokensFamily = 1;      // u32, LOD 0, one a token
inline constexpr uint32_t kCharStartsFamily = 2;  // u64, LOD 1, one a block, from its first token
inline constexpr uint32_t kBuiltinFamilies = 2;
inline constexpr uint64_t kNoCharStart = ~uint64_t{0};  // tokens were appended without

// How rows of a family come to a caller, and from one: as declared, or as floats of type `as`.
// InvalidArgument when the family holds no floats, or `as` is none.
Result<RowFormat> caller_format(std::string_view op, const DefineFamily& family,
                                std::optional<RowType> as);

class RowReader {
 public:
  virtual ~RowReader() = default;

  std::vector<PartitionSummary> partitions() const;  // without erased ones
  Result<PartitionSummary> partition(uint32_t id) const;

  Result<uint64_t> token_count(uint32_t partition) const;
  // out.size() == end - start.
  Status read_tokens(uint32_t partition, Span positions, std::span<uint32_t> out) const;
  // Blocks [start, end), the last one may be partial. kNoCharStart where none was given.
  Status block_char_starts(uint32_t partition, uint64_t start, uint64_t end,
                           std::span<uint64_t> out) const;

  // Families that callers defined, in the order of their definition.
  std::vector<DefineFamily> row_families() const;
  Result<DefineFamily> row_family(std::string_view name) const;
  Result<uint64_t> row_count(std::string_view family, uint32_t partition) const;
  // out.size() == (end - start) * row bytes of caller_format.
  Status read_rows(std::string_view family, uint32_t partition, Span rows, MutableBytes out,
                   std::optional<RowType> as = {}) const;
  // Row i of `out` is row indices[i] of partitions[i].
  Status gather_rows(const GatherRequest& request, MutableBytes out,
                     std::optional<RowType> as = {}) const;
  // Several families at once: one batch of reads for everything that is not in memory.
  Status gather(std::span<const GatherPart> parts) const;
  // Brings rows into memory in the background. Errors: see Prefetcher::submit.
  Result<std::shared_ptr<Prefetch>> prefetch(std::span<const GatherRequest> requests) const;

  Result<uint64_t> indexed_blocks(uint32_t partition) const;
  // Best first by BM25 over all partitions; `partition` keeps only its blocks.
  Result<std::vector<SearchHit>> search(std::string_view query, size_t k,
                                        std::optional<uint32_t> partition) const;

 protected:
  // The state may be read while the returned lock is held.
  virtual std::shared_lock<std::shared_mutex> lock_state() const = 0;
  virtual const StoreState& state() const = 0;

 private:
  class GatherColumns;

  Result<Column> column(uint32_t family_id, uint32_t partition) const;
  std::shared_ptr<ReadPath> read_path() const;
  struct ColumnRead;
  Status read_column(const ColumnRead& read, std::byte* out) const;
  static Status gather_warm(const GatherColumns& columns, const GatherPart& part,
                            const RowFetch& fetch);
};

// A stable view. Keeps the files it needs alive; needs no store.
class Snapshot final : public RowReader {
 public:
  explicit Snapshot(StoreState state) : state_(std::move(state)) {}

 protected:
  std::shared_lock<std::shared_mutex> lock_state() const override { return {}; }
  const StoreState& state() const override { return state_; }

 private:
  const StoreState state_;
};

// Shared by reads and writes; the message names the operation.
// NotFound when the partition was never there, or was erased.
Status require_partition(std::string_view op, const StoreState& state, uint32_t partition);
const DefineFamily* find_family(const StoreState& state, std::string_view name);

}  // namespace mc
