// Rows from anywhere in one call: what is in memory is copied at once, the rest is read in one
// batch over all partitions and families.
#include <unordered_map>

#include "base/str_cat.h"
#include "storage/prefetcher.h"
#include "storage/row_reader.h"

namespace mc {
namespace {

constexpr size_t kPrefetchRows = 4;

}  // namespace

// The columns that one request needs, by partition.
class RowReader::GatherColumns {
 public:
  // Checks every index.
  static Result<GatherColumns> find(const RowReader& reader, const GatherRequest& request) {
    GatherColumns found;
    MC_ASSIGN_OR_RETURN(found.family_, reader.row_family(request.family));
    if (request.partitions.size() != request.indices.size()) {
      return Status::invalid_argument(
          str_cat("[gather_rows] partitions and indices must have the same length, got ",
                  request.partitions.size(), " and ", request.indices.size()));
    }
    const Column* last = nullptr;
    for (size_t i = 0; i < request.indices.size(); ++i) {
      const uint32_t partition = request.partitions[i];
      if (last == nullptr || partition != request.partitions[i - 1]) {
        auto at = found.columns_.find(partition);
        if (at == found.columns_.end()) {
          MC_ASSIGN_OR_RETURN(Column column, reader.column(found.family_.id, partition));
          at = found.columns_.emplace(partition, std::move(column)).first;
        }
        last = &at->second;
      }
      if (request.indices[i] >= last->row_count()) {
        return Status::invalid_argument(str_cat("[gather_rows] indices[", i, "] must be < ",
                                                last->row_count(), ", got ", request.indices[i]));
      }
    }
    return found;
  }

  const DefineFamily& family() const { return family_; }

  // Calls visit(i, run, row) for each row of the request, in order, until one fails.
  template <class Visit>
  Status for_each(const GatherRequest& request, Visit visit) const {
    std::unordered_map<uint32_t, Column::Cursor> cursors;
    Column::Cursor* cursor = nullptr;
    for (size_t i = 0; i < request.indices.size(); ++i) {
      const uint32_t partition = request.partitions[i];
      if (cursor == nullptr || partition != request.partitions[i - 1]) {
        cursor = &cursors.try_emplace(partition, columns_.at(partition)).first->second;
      }
      const std::byte* row = nullptr;
      const Run& run = cursor->locate(request.indices[i], row);
      MC_RETURN_IF_ERROR(visit(i, run, row));
    }
    return Status::ok();
  }

 private:
  DefineFamily family_;
  std::unordered_map<uint32_t, Column> columns_;
};

// Copies warm rows; the next ones are on their way to the CPU's cache meanwhile.
Status RowReader::gather_warm(const GatherColumns& columns, const GatherPart& part,
                              const RowFetch& fetch) {
  struct Ahead {
    std::byte* out = nullptr;
    const std::byte* row = nullptr;
  };
  Ahead ahead[kPrefetchRows] = {};
  const uint64_t row_bytes = fetch.wanted.row_bytes();
  const Run* last = nullptr;
  bool lies_as_wanted = true;  // the rows of `last`
  uint64_t cold_rows = 0;
  const auto copy = [&](Ahead& next) {
    if (next.row != nullptr) std::memcpy(next.out, next.row, row_bytes);
    next = {};
  };
  MC_RETURN_IF_ERROR(
      columns.for_each(part.request, [&](size_t i, const Run& run, const std::byte* row) -> Status {
        std::byte* const out = part.out.data() + i * row_bytes;
        Ahead& place = ahead[i % kPrefetchRows];
        copy(place);
        if (&run != last) {
          last = &run;
          lies_as_wanted = format_of(run, fetch.declared) == fetch.wanted;
        }
        const bool is_cold =
            run.segment != nullptr && !fetch.path.is_warm(*run.segment, row, run.row_bytes);
        cold_rows += is_cold;
        if (is_cold || !lies_as_wanted) return fetch(run, row, 1, out);
        if (run.segment != nullptr) {
          MC_RETURN_IF_ERROR(run.segment->verify(row, row_bytes));
        }
        __builtin_prefetch(row);
        place = {out, row};
        return Status::ok();
      }));
  for (Ahead& next : ahead) copy(next);
  StoreMetrics& metrics = fetch.path.metrics();
  metrics.mapped_rows.add(part.request.indices.size() - cold_rows);
  metrics.cold_rows.add(cold_rows);
  metrics.family_bytes(columns.family().id).add(part.out.size());
  return Status::ok();
}

Status RowReader::gather(std::span<const GatherPart> parts) const {
  const std::shared_ptr<ReadPath> path = read_path();
  const LatencyTimer timer(path->metrics().read_latency_us);
  path->metrics().read_count.add();
  std::vector<GatherColumns> columns;  // hold the segments that the cold rows point to
  std::vector<RowFormat> wanted;
  columns.reserve(parts.size());
  for (const GatherPart& part : parts) {
    MC_ASSIGN_OR_RETURN(auto found, GatherColumns::find(*this, part.request));
    MC_ASSIGN_OR_RETURN(const RowFormat format,
                        caller_format("gather_rows", found.family(), part.as));
    if (part.out.size() != part.request.indices.size() * format.row_bytes()) {
      return Status::invalid_argument(
          str_cat("[gather_rows] out must have ", part.request.indices.size(), " rows of ",
                  format.row_bytes(), " bytes, got ", part.out.size(), " bytes"));
    }
    columns.push_back(std::move(found));
    wanted.push_back(format);
  }
  ColdRows cold;
  for (size_t i = 0; i < parts.size(); ++i) {
    const RowFormat declared = columns[i].family().format();
    MC_RETURN_IF_ERROR(gather_warm(columns[i], parts[i], {declared, wanted[i], *path, cold}));
  }
  return cold.finish(*path);
}

Status RowReader::gather_rows(const GatherRequest& request, MutableBytes out,
                              std::optional<RowType> as) const {
  const GatherPart part{request, out, as};
  return gather({&part, 1});
}

Result<std::shared_ptr<Prefetch>> RowReader::prefetch(
    std::span<const GatherRequest> requests) const {
  const std::shared_ptr<ReadPath> path = read_path();
  std::vector<PagePiece> pages;
  std::unordered_map<const Segment*, std::shared_ptr<const Segment>> segments;
  for (const GatherRequest& request : requests) {
    MC_ASSIGN_OR_RETURN(const auto columns, GatherColumns::find(*this, request));
    MC_RETURN_IF_ERROR(
        columns.for_each(request, [&](size_t, const Run& run, const std::byte* row) -> Status {
          if (run.segment == nullptr || path->is_warm(*run.segment, row, run.row_bytes)) {
            return Status::ok();
          }
          segments.emplace(run.segment.get(), run.segment);
          add_pieces(*run.segment, row, run.row_bytes, nullptr, pages);
          return Status::ok();
        }));
  }
  std::vector<std::shared_ptr<const Segment>> held;
  for (auto& [key, segment] : segments) held.push_back(std::move(segment));
  return path->prefetcher().submit(std::move(pages), std::move(held));
}

}  // namespace mc
