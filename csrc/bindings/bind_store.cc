// The store for Python. Each entry converts, calls one function without the GIL, and raises.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/str_cat.h"
#include "bindings/bind.h"
#include "bindings/bind_reads.h"
#include "storage/store.h"

namespace py = pybind11;
using namespace py::literals;

namespace mc::bindings {
namespace {

using TokenArray = py::array_t<uint32_t, py::array::c_style>;
using IndexArray = py::array_t<uint64_t, py::array::c_style>;
using Release = py::gil_scoped_release;

template <class T, int kFlags>
std::span<const T> view(const py::array_t<T, kFlags>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

template <class T>
std::span<T> writable(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<size_t>(array.size())};
}

py::dtype numpy_dtype(RowType type) {
  switch (type) {
    case RowType::kU8: return py::dtype("u1");
    case RowType::kI8: return py::dtype("i1");
    case RowType::kF16: return py::dtype("f2");
    case RowType::kBf16: return py::dtype("u2");  // numpy has no bf16: its bits
    case RowType::kF32: return py::dtype("f4");
    case RowType::kU32: return py::dtype("u4");
    case RowType::kU64: return py::dtype("u8");
    case RowType::kQ8:
    case RowType::kE4m3:
    case RowType::kQ4: return py::dtype("u1");  // whole rows, scales and codes
  }
  return py::dtype("u1");
}

// Columns of an array of whole rows.
uint64_t column_count(const RowFormat& format) {
  return is_scaled(format.type) ? format.row_bytes() : format.width;
}

RowType parse_row_type(std::string_view op, const std::string& dtype) {
  const auto type = row_type_from_name(dtype);
  if (type && *type != RowType::kU64) return *type;
  raise(Status::invalid_argument(str_cat(
      "[", op, "] dtype must be f32, bf16, f16, u32, i8, u8, q8, e4m3 or q4, got '", dtype, "'")));
}

Bytes bytes_of_rows(const py::array& rows) {
  return {static_cast<const std::byte*>(rows.data()), static_cast<size_t>(rows.nbytes())};
}

// False when it is none of these.
bool parse_read_option(const std::string& name, uint64_t value, ReadOptions& reads) {
  if (name == "read_mode") {
    reads.mode = static_cast<ReadMode>(value);
  } else if (name == "read_engine") {
    reads.engine = static_cast<BatchEngine>(value);
  } else if (name == "read_depth") {
    if (value < 1 || value > 4096) {
      raise(Status::invalid_argument(str_cat("[open] read_depth must be 1 to 4096, got ", value)));
    }
    reads.depth = static_cast<uint32_t>(value);
  } else if (name == "page_cache_bytes") {
    reads.page_cache_bytes = value;
  } else if (name == "prefetch_bytes") {
    reads.prefetch_bytes = value;
  } else {
    return false;
  }
  return true;
}

StoreOptions parse_options(const std::map<std::string, uint64_t>& given) {
  StoreOptions options;
  for (const auto& [name, value] : given) {
    if (name == "unsealed_bytes") {
      options.unsealed_bytes = value;
    } else if (name == "close_wal_bytes") {
      options.close_wal_bytes = value;
    } else if (name == "wal_first_file_bytes") {
      options.wal_first_file_bytes = value;
    } else if (name == "wal_most_file_bytes") {
      options.wal_most_file_bytes = value;
    } else if (name == "most_segments_per_family") {
      options.most_segments_per_family = value;
    } else if (name == "merges") {
      options.merges = static_cast<MergeMode>(value);
    } else if (!parse_read_option(name, value, options.reads)) {
      raise(Status::invalid_argument(str_cat("[open] option must be known, got '", name, "'")));
    }
  }
  return options;
}

std::shared_ptr<Store> create_store(const std::string& path, const Identity& identity,
                                    const std::map<std::string, uint64_t>& options) {
  const StoreOptions parsed = parse_options(options);
  Release release;
  return value_or_raise(Store::create(posix_env(), path, identity, parsed));
}

std::shared_ptr<Store> open_store(const std::string& path, bool read_only, const Identity& identity,
                                  const std::map<std::string, uint64_t>& options) {
  const OpenRequest request{read_only, identity, parse_options(options)};
  Release release;
  return value_or_raise(Store::open(posix_env(), path, request));
}

py::tuple summary_tuple(const PartitionSummary& partition) {
  return py::make_tuple(partition.id, partition.source, partition.metadata_json,
                        partition.token_count, partition.created_ms, partition.hidden);
}

py::list partition_list(const RowReader& reader) {
  py::list list;
  for (const PartitionSummary& partition : reader.partitions()) {
    list.append(summary_tuple(partition));
  }
  return list;
}

py::list family_list(const RowReader& reader) {
  py::list list;
  for (const DefineFamily& family : reader.row_families()) {
    list.append(py::make_tuple(family.name, family.lod, row_type_name(family.type), family.width,
                               family.group_size, family.format().row_bytes()));
  }
  return list;
}

py::array_t<uint32_t> read_tokens(const RowReader& reader, uint32_t partition, uint64_t start,
                                  uint64_t end) {
  // Bounded before allocating, so that a wrong range is an error and not a lack of memory.
  const uint64_t limit = value_or_raise(reader.token_count(partition));
  const bool inside = start <= end && end <= limit;
  py::array_t<uint32_t> out(static_cast<py::ssize_t>(inside ? end - start : 0));
  const std::span<uint32_t> tokens = writable(out);
  Release release;
  raise_if_error(reader.read_tokens(partition, {start, end}, tokens));
  return out;
}

py::array_t<uint64_t> block_char_starts(const RowReader& reader, uint32_t partition, uint64_t start,
                                        uint64_t end) {
  const uint64_t limit = value_or_raise(reader.token_count(partition)) / kFanOut + 1;
  const bool inside = start <= end && end <= limit;
  py::array_t<uint64_t> out(static_cast<py::ssize_t>(inside ? end - start : 0));
  const std::span<uint64_t> starts = writable(out);
  Release release;
  raise_if_error(reader.block_char_starts(partition, start, end, starts));
  return out;
}

// As declared, or as floats of type `dtype`.
py::array read_rows(const RowReader& reader, const std::string& name, uint32_t partition,
                    uint64_t start, uint64_t end, const std::optional<std::string>& dtype) {
  const DefineFamily family = value_or_raise(reader.row_family(name));
  std::optional<RowType> as;
  if (dtype) as = parse_row_type("read_rows", *dtype);
  const RowFormat format = value_or_raise(caller_format("read_rows", family, as));
  const uint64_t limit = value_or_raise(reader.row_count(name, partition));
  const bool inside = start <= end && end <= limit;
  const uint64_t count = inside ? end - start : 0;
  py::array out(numpy_dtype(format.type),
                std::vector<py::ssize_t>{static_cast<py::ssize_t>(count),
                                         static_cast<py::ssize_t>(column_count(format))});
  const MutableBytes rows{static_cast<std::byte*>(out.mutable_data()),
                          static_cast<size_t>(out.nbytes())};
  Release release;
  raise_if_error(reader.read_rows(name, partition, {start, end}, rows, as));
  return out;
}

void gather_rows(const RowReader& reader, const std::string& name, const TokenArray& partitions,
                 const IndexArray& indices, py::array out) {
  const DefineFamily family = value_or_raise(reader.row_family(name));
  const auto as = require_rows("gather_rows", out, family);
  const MutableBytes rows{static_cast<std::byte*>(out.mutable_data()),
                          static_cast<size_t>(out.nbytes())};
  const GatherRequest request{name, view(partitions), view(indices)};
  Release release;
  raise_if_error(reader.gather_rows(request, rows, as));
}

py::tuple search(const RowReader& reader, const std::string& query, size_t k,
                 std::optional<uint32_t> partition) {
  std::vector<SearchHit> hits;
  {
    Release release;
    hits = value_or_raise(reader.search(query, k, partition));
  }
  const auto count = static_cast<py::ssize_t>(hits.size());
  py::array_t<uint32_t> partitions(count);
  py::array_t<uint64_t> blocks(count);
  py::array_t<float> scores(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const SearchHit& hit = hits[static_cast<size_t>(i)];
    partitions.mutable_at(i) = hit.partition;
    blocks.mutable_at(i) = hit.block;
    scores.mutable_at(i) = hit.score;
  }
  return py::make_tuple(partitions, blocks, scores);
}

py::tuple append_tokens(Store& store, uint32_t partition, const TokenArray& tokens,
                        const std::optional<IndexArray>& char_starts) {
  const std::span<const uint32_t> token_view = view(tokens);
  const std::span<const uint64_t> start_view =
      char_starts ? view(*char_starts) : std::span<const uint64_t>{};
  if (char_starts && start_view.size() != token_view.size()) {
    raise(Status::invalid_argument(str_cat("[append_tokens] char_starts must have ",
                                           token_view.size(), " values, got ", start_view.size())));
  }
  Span ready;
  {
    Release release;
    ready = value_or_raise(store.append_tokens(partition, token_view, start_view));
  }
  return py::make_tuple(ready.start, ready.end);
}

py::tuple replace_tail(Store& store, uint32_t partition, uint64_t kept_tokens,
                       const TokenArray& tokens, const std::optional<IndexArray>& char_starts,
                       const std::optional<std::string>& metadata_json) {
  NewTail tail{kept_tokens, view(tokens), {}, metadata_json};
  if (char_starts) tail.char_starts = view(*char_starts);
  if (char_starts && tail.char_starts.size() != tail.tokens.size()) {
    raise(Status::invalid_argument(str_cat("[replace_tail] char_starts must have ",
                                           tail.tokens.size(), " values, got ",
                                           tail.char_starts.size())));
  }
  Span ready;
  {
    Release release;
    ready = value_or_raise(store.replace_tail(partition, tail));
  }
  return py::make_tuple(ready.start, ready.end);
}

void define_rows(Store& store, const std::string& name, uint8_t lod, const std::string& dtype,
                 uint32_t width, uint32_t group_size) {
  const RowType type = parse_row_type("define_rows", dtype);
  Release release;
  raise_if_error(store.define_rows(name, lod, type, width, group_size));
}

py::dict reencode(Store& store, const std::string& name, const std::string& dtype,
                  uint32_t group_size) {
  const RowType type = parse_row_type("reencode", dtype);
  ReencodeReport report;
  {
    Release release;
    report = value_or_raise(store.reencode(name, type, group_size));
  }
  return py::dict("rows"_a = report.error.row_count, "bytes_before"_a = report.bytes_before,
                  "bytes_after"_a = report.bytes_after,
                  "relative_error"_a = report.error.relative(),
                  "largest_error"_a = report.error.largest_error);
}

void put_rows(Store& store, const std::string& name, uint32_t partition, uint64_t first,
              const py::array& rows) {
  const auto as = require_rows("put_rows", rows, value_or_raise(store.row_family(name)));
  const Bytes bytes = bytes_of_rows(rows);
  Release release;
  raise_if_error(store.put_rows(name, partition, first, bytes, as));
}

void index_text(Store& store, uint32_t partition, uint64_t first_block,
                const std::vector<std::string>& texts) {
  Release release;
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  raise_if_error(store.index_text(partition, first_block, views));
}

py::dict stats(const Store& store) {
  StoreStats stats;
  {
    Release release;
    stats = store.stats();
  }
  return py::dict("generation"_a = stats.generation, "partitions"_a = stats.partition_count,
                  "tokens"_a = stats.token_count, "segments"_a = stats.segment_count,
                  "postings_segments"_a = stats.postings_segment_count,
                  "segment_bytes"_a = stats.segment_bytes,
                  "unsealed_bytes"_a = stats.unsealed_bytes, "wal_files"_a = stats.wal_file_count,
                  "wal_bytes_written"_a = stats.wal_bytes_written, "syncs"_a = stats.sync_count,
                  "checkpoints"_a = stats.checkpoint_count, "merges"_a = stats.merge_count,
                  "reclaimed_bytes"_a = stats.reclaimed_bytes);
}

template <Status (Store::*kMethod)()>
void call(Store& store) {
  Release release;
  raise_if_error((store.*kMethod)());
}

template <auto kMethod, class... Arguments>
void call_with(Store& store, Arguments... arguments) {
  Release release;
  raise_if_error((store.*kMethod)(arguments...));
}

void register_reader(py::module_& module) {
  py::class_<RowReader, std::shared_ptr<RowReader>> reader(module, "RowReader");
  reader.def("partitions", &partition_list)
      .def("partition",
           [](const RowReader& reader, uint32_t id) {
             return summary_tuple(value_or_raise(reader.partition(id)));
           })
      .def("token_count",
           [](const RowReader& reader, uint32_t partition) {
             return value_or_raise(reader.token_count(partition));
           })
      .def("read_tokens", &read_tokens)
      .def("block_char_starts", &block_char_starts)
      .def("row_families", &family_list)
      .def("row_count",
           [](const RowReader& reader, const std::string& name, uint32_t partition) {
             return value_or_raise(reader.row_count(name, partition));
           })
      .def("read_rows", &read_rows)
      .def("gather_rows", &gather_rows, "name"_a, "partitions"_a.noconvert(),
           "indices"_a.noconvert(), "out"_a.noconvert())
      .def("indexed_blocks",
           [](const RowReader& reader, uint32_t partition) {
             return value_or_raise(reader.indexed_blocks(partition));
           })
      .def("search", &search);
  register_reads(module, reader);
  py::class_<Snapshot, RowReader, std::shared_ptr<Snapshot>>(module, "Snapshot");
}

}  // namespace

std::optional<RowType> require_rows(std::string_view op, const py::array& rows,
                                    const DefineFamily& family) {
  const RowFormat declared = family.format();
  const bool contiguous = (rows.flags() & py::array::c_style) != 0;
  const auto shaped = [&](const RowFormat& format) {
    return rows.ndim() == 2 && static_cast<uint64_t>(rows.shape(1)) == column_count(format) &&
           rows.dtype().is(numpy_dtype(format.type));
  };
  if (contiguous && shaped(declared)) return std::nullopt;
  for (const RowType type : {RowType::kF32, RowType::kF16, RowType::kBf16}) {
    const RowFormat floats{type, family.width, 0};
    if (contiguous && declared.holds_floats() && shaped(floats)) return type;
  }
  std::string shape;
  for (py::ssize_t axis = 0; axis < rows.ndim(); ++axis) {
    shape += str_cat(axis == 0 ? "" : ", ", rows.shape(axis));
  }
  const std::string wanted = declared.holds_floats()
                                 ? "float32, float16 or (bfloat16) uint16"
                                 : py::str(numpy_dtype(declared.type)).cast<std::string>();
  raise(Status::invalid_argument(
      str_cat("[", op, "] rows of '", family.name, "' must be a contiguous [n, ", family.width,
              "] ", wanted, " array, got [", shape, "] ", py::str(rows.dtype()).cast<std::string>(),
              contiguous ? "" : ", not contiguous")));
}

void register_store(py::module_& module) {
  register_reader(module);
  py::class_<Store, RowReader, std::shared_ptr<Store>>(module, "Store")
      .def_static("create", &create_store)
      .def_static("open", &open_store)
      .def_property_readonly("path", &Store::path)
      .def_property_readonly("read_only", &Store::read_only)
      .def_property_readonly("identity", &Store::identity)
      .def("add_partition",
           [](Store& store, const std::string& source, const std::string& metadata_json) {
             Release release;
             return value_or_raise(store.add_partition(source, metadata_json));
           })
      .def("find_partition", &Store::find_partition)
      .def("set_metadata",
           [](Store& store, uint32_t partition, const std::string& metadata_json) {
             Release release;
             raise_if_error(store.set_metadata(partition, metadata_json));
           })
      .def("append_tokens", &append_tokens, "partition"_a, "tokens"_a.noconvert(),
           "char_starts"_a.noconvert())
      .def("replace_tail", &replace_tail, "partition"_a, "kept_tokens"_a, "tokens"_a.noconvert(),
           "char_starts"_a.noconvert(), "metadata_json"_a)
      .def("erase_partition", &call_with<&Store::erase_partition, uint32_t>)
      .def("set_hidden", &call_with<&Store::set_hidden, uint32_t, bool>)
      .def("drop_rows", &call_with<&Store::drop_rows, std::string_view>)
      .def("clear_rows", &call_with<&Store::clear_rows, std::string_view, uint32_t>)
      .def("purge", &call<&Store::purge>)
      .def("define_rows", &define_rows)
      .def("reencode", &reencode)
      .def("put_rows", &put_rows, "name"_a, "partition"_a, "first"_a, "rows"_a.noconvert())
      .def("index_text", &index_text)
      .def("commit", &call<&Store::commit>)
      .def("checkpoint", &call<&Store::checkpoint>)
      .def("close", &call<&Store::close>)
      .def("snapshot",
           [](const Store& store) { return std::const_pointer_cast<Snapshot>(store.snapshot()); })
      .def("backup",
           [](const Store& store, const std::string& path) {
             Release release;
             raise_if_error(store.backup(path));
           })
      .def("stats", &stats)
      .def("metrics",
           [](const Store& store) {
             std::vector<Metric> metrics;
             {
               Release release;
               metrics = store.metrics();
             }
             return metric_list(metrics);
           })
      .def("check", [](const Store& store) {
        Release release;
        raise_if_error(store.check());
      });
}

}  // namespace mc::bindings
