#include "storage/row_reader.h"

#include <algorithm>

#include "base/checks.h"
#include "base/str_cat.h"

namespace mc {
namespace {

Status bad_range(std::string_view op, Span range, uint64_t limit) {
  return Status::invalid_argument(str_cat("[", op, "] range must lie within [0, ", limit,
                                          "), got [", range.start, ", ", range.end, ")"));
}

Status no_such_family(std::string_view op, std::string_view name) {
  return Status::not_found(str_cat("[", op, "] no row family is named '", name, "'"));
}

PartitionSummary summary_of(const Partition& partition) {
  const AddPartition& about = *partition.about;
  return {about.id,
          about.source,
          about.metadata_json,
          partition.column(kTokensFamily).row_count(),
          about.created_ms,
          (about.flags & kHidden) != 0};
}

}  // namespace

const Column& Partition::column(uint32_t family_id) const {
  static const Column kEmpty;
  return family_id <= columns.size() ? columns[family_id - 1] : kEmpty;
}

Result<RowFormat> caller_format(std::string_view op, const DefineFamily& family,
                                std::optional<RowType> as) {
  const RowFormat declared = family.format();
  if (!as || *as == declared.type) return declared;
  if (is_float(*as) && declared.holds_floats()) return RowFormat{*as, declared.width, 0};
  return Status::invalid_argument(str_cat("[", op, "] rows of '", family.name, "' are ",
                                          row_type_name(family.type), ", got ",
                                          row_type_name(*as)));
}

Status require_partition(std::string_view op, const StoreState& state, uint32_t partition) {
  const size_t count = state.partitions.size();
  if (partition >= count) {
    return Status::not_found(
        str_cat("[", op, "] partition must be < ", count, ", got ", partition));
  }
  if (!state.partitions[partition]->erased()) return Status::ok();
  return Status::not_found(str_cat("[", op, "] partition ", partition, " was erased"));
}

const DefineFamily* find_family(const StoreState& state, std::string_view name) {
  for (size_t i = kBuiltinFamilies; i < state.families.size(); ++i) {
    const bool dropped = (state.families[i]->flags & kDropped) != 0;
    if (!dropped && state.families[i]->name == name) return state.families[i].get();
  }
  return nullptr;
}

Result<Column> RowReader::column(uint32_t family_id, uint32_t partition) const {
  const auto lock = lock_state();
  MC_RETURN_IF_ERROR(require_partition("read", state(), partition));
  return state().partitions[partition]->column(family_id);
}

std::shared_ptr<ReadPath> RowReader::read_path() const {
  const auto lock = lock_state();
  return state().read_path;
}

// Rows [start, end) of a column, and how they are to come.
struct RowReader::ColumnRead {
  const Column& column;
  uint32_t family;
  RowFormat declared, wanted;
  Span rows;
};

Status RowReader::read_column(const ColumnRead& read, std::byte* out) const {
  const std::shared_ptr<ReadPath> path = read_path();
  StoreMetrics& metrics = path->metrics();
  const LatencyTimer timer(metrics.read_latency_us);
  const uint64_t count = read.rows.end - read.rows.start, row_bytes = read.wanted.row_bytes();
  metrics.read_count.add();
  metrics.family_bytes(read.family).add(count * row_bytes);
  ColdRows cold;
  const RowFetch fetch{read.declared, read.wanted, *path, cold};
  Column::Cursor cursor(read.column);
  for (uint64_t at = read.rows.start; at < read.rows.end;) {
    const std::byte* rows = nullptr;
    const Run& run = cursor.locate(at, rows);
    const uint64_t stop = std::min(read.rows.end, run.end);
    MC_RETURN_IF_ERROR(fetch(run, rows, stop - at, out));
    out += (stop - at) * row_bytes;
    at = stop;
  }
  (cold.empty() ? metrics.mapped_rows : metrics.cold_rows).add(count);
  return cold.finish(*path);
}

std::vector<PartitionSummary> RowReader::partitions() const {
  const auto lock = lock_state();
  std::vector<PartitionSummary> summaries;
  for (const auto& partition : state().partitions) {
    if (!partition->erased()) summaries.push_back(summary_of(*partition));
  }
  return summaries;
}

Result<PartitionSummary> RowReader::partition(uint32_t id) const {
  const auto lock = lock_state();
  MC_RETURN_IF_ERROR(require_partition("partition", state(), id));
  return summary_of(*state().partitions[id]);
}

Result<uint64_t> RowReader::token_count(uint32_t partition) const {
  MC_ASSIGN_OR_RETURN(const Column tokens, column(kTokensFamily, partition));
  return tokens.row_count();
}

Status RowReader::read_tokens(uint32_t partition, Span positions, std::span<uint32_t> out) const {
  MC_ASSIGN_OR_RETURN(const Column tokens, column(kTokensFamily, partition));
  if (positions.start > positions.end || positions.end > tokens.row_count()) {
    return bad_range("read_tokens", positions, tokens.row_count());
  }
  MC_ASSERT(out.size() == positions.token_count());
  const RowFormat format{RowType::kU32, 1, 0};
  return read_column({tokens, kTokensFamily, format, format, positions},
                     std::as_writable_bytes(out).data());
}

Status RowReader::block_char_starts(uint32_t partition, uint64_t start, uint64_t end,
                                    std::span<uint64_t> out) const {
  MC_ASSIGN_OR_RETURN(const Column starts, column(kCharStartsFamily, partition));
  if (start > end || end > starts.row_count()) {
    return bad_range("block_char_starts", {start, end}, starts.row_count());
  }
  MC_ASSERT(out.size() == end - start);
  const RowFormat format{RowType::kU64, 1, 0};
  return read_column({starts, kCharStartsFamily, format, format, {start, end}},
                     std::as_writable_bytes(out).data());
}

std::vector<DefineFamily> RowReader::row_families() const {
  const auto lock = lock_state();
  std::vector<DefineFamily> families;
  for (size_t i = kBuiltinFamilies; i < state().families.size(); ++i) {
    const DefineFamily& family = *state().families[i];
    if ((family.flags & kDropped) == 0) families.push_back(family);
  }
  return families;
}

Result<DefineFamily> RowReader::row_family(std::string_view name) const {
  const auto lock = lock_state();
  const DefineFamily* family = find_family(state(), name);
  if (family == nullptr) return no_such_family("row_family", name);
  return *family;
}

Result<uint64_t> RowReader::row_count(std::string_view family_name, uint32_t partition) const {
  MC_ASSIGN_OR_RETURN(const DefineFamily family, row_family(family_name));
  MC_ASSIGN_OR_RETURN(const Column rows, column(family.id, partition));
  return rows.row_count();
}

Status RowReader::read_rows(std::string_view family_name, uint32_t partition, Span rows,
                            MutableBytes out, std::optional<RowType> as) const {
  MC_ASSIGN_OR_RETURN(const DefineFamily family, row_family(family_name));
  MC_ASSIGN_OR_RETURN(const Column found, column(family.id, partition));
  if (rows.start > rows.end || rows.end > found.row_count()) {
    return bad_range("read_rows", rows, found.row_count());
  }
  MC_ASSIGN_OR_RETURN(const RowFormat wanted, caller_format("read_rows", family, as));
  MC_ASSERT(out.size() == (rows.end - rows.start) * wanted.row_bytes());
  return read_column({found, family.id, family.format(), wanted, rows}, out.data());
}

Result<uint64_t> RowReader::indexed_blocks(uint32_t partition) const {
  const auto lock = lock_state();
  MC_RETURN_IF_ERROR(require_partition("indexed_blocks", state(), partition));
  return state().partitions[partition]->indexed_blocks;
}

Result<std::vector<SearchHit>> RowReader::search(std::string_view query, size_t k,
                                                 std::optional<uint32_t> partition) const {
  LexicalIndex lexical;
  std::vector<uint32_t> hidden;
  {
    const auto lock = lock_state();
    if (partition) MC_RETURN_IF_ERROR(require_partition("search", state(), *partition));
    lexical = state().lexical;
    hidden = state().hidden;
  }
  return lexical.search(query, k, partition, hidden);
}

}  // namespace mc
