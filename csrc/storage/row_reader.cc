#include "storage/row_reader.h"

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

uint32_t row_bytes_of(const DefineFamily& family) {
  return element_bytes(family.type) * family.width;
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

Status RowReader::read_column(const Column& column, uint32_t family_id, Span rows,
                              uint32_t row_bytes, std::byte* out) const {
  const std::shared_ptr<ReadPath> path = read_path();
  StoreMetrics& metrics = path->metrics();
  const LatencyTimer timer(metrics.read_latency_us);
  metrics.read_count.add();
  metrics.family_bytes(family_id).add((rows.end - rows.start) * row_bytes);
  std::vector<PagePiece> cold;
  MC_RETURN_IF_ERROR(column.read_warm(rows.start, rows.end, row_bytes, out, path.get(), cold));
  (cold.empty() ? metrics.mapped_rows : metrics.cold_rows).add(rows.end - rows.start);
  return cold.empty() ? Status::ok() : path->read(cold, false);
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
  return read_column(tokens, kTokensFamily, positions, sizeof(uint32_t),
                     std::as_writable_bytes(out).data());
}

Status RowReader::block_char_starts(uint32_t partition, uint64_t start, uint64_t end,
                                    std::span<uint64_t> out) const {
  MC_ASSIGN_OR_RETURN(const Column starts, column(kCharStartsFamily, partition));
  if (start > end || end > starts.row_count()) {
    return bad_range("block_char_starts", {start, end}, starts.row_count());
  }
  MC_ASSERT(out.size() == end - start);
  return read_column(starts, kCharStartsFamily, {start, end}, sizeof(uint64_t),
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
                            MutableBytes out) const {
  MC_ASSIGN_OR_RETURN(const DefineFamily family, row_family(family_name));
  MC_ASSIGN_OR_RETURN(const Column found, column(family.id, partition));
  if (rows.start > rows.end || rows.end > found.row_count()) {
    return bad_range("read_rows", rows, found.row_count());
  }
  MC_ASSERT(out.size() == (rows.end - rows.start) * row_bytes_of(family));
  return read_column(found, family.id, rows, row_bytes_of(family), out.data());
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
