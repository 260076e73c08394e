#include "storage/store.h"

#include <algorithm>

#include "base/checks.h"
#include "base/str_cat.h"
#include "storage/prefetcher.h"

namespace mc {
namespace {

constexpr uint64_t kRecordBytes = 4 << 20;  // larger appends are several records
constexpr size_t kMostNameBytes = 256;

// One value for each block that starts within [first, first + char_starts.size()).
std::vector<uint64_t> starts_of_blocks(uint64_t first, uint64_t token_count,
                                       std::span<const uint64_t> char_starts) {
  std::vector<uint64_t> starts;
  const uint64_t first_block = started_node_count(first, 1);
  for (uint64_t token = first_block * kFanOut; token < first + token_count; token += kFanOut) {
    starts.push_back(char_starts.empty() ? kNoCharStart : char_starts[token - first]);
  }
  return starts;
}

// `rows` of `from` as the store keeps them; `memory` holds what had to be made.
Result<Bytes> rounded_rows(const RowFormat& from, Bytes rows, const RowFormat& to,
                           std::vector<std::byte>& memory) {
  const uint64_t row_bytes = from.row_bytes();
  if (rows.size() % row_bytes != 0) {
    return Status::invalid_argument(
        str_cat("[put_rows] rows must be a multiple of ", row_bytes, " bytes, got ", rows.size()));
  }
  Status status;
  if (from == to) {
    status = check_rows(to, rows);
  } else {
    memory.resize(rows.size() / row_bytes * to.row_bytes());
    status = convert_rows(from, rows, to, memory);
    rows = memory;
  }
  if (!status.is_ok()) return Status::invalid_argument(str_cat("[put_rows] ", status.message()));
  return rows;
}

}  // namespace

Store::Store(Env* env, std::string path, const OpenRequest& request)
    : env_(env), path_(std::move(path)), read_only_(request.read_only), options_(request.options) {
  state_.read_path = std::make_shared<ReadPath>(env, options_.reads, options_.page_bytes, metrics_);
}

Store::~Store() {
  // Best effort: whoever needs to know whether it worked calls close().
  if (!close().is_ok()) lock_ = nullptr;
}

Status Store::require_writable(std::string_view op) const {
  if (closed_) return Status::invalid_argument(str_cat("[", op, "] store must be open"));
  if (read_only_) {
    return Status::invalid_argument(str_cat("[", op, "] store must be writable, got read_only"));
  }
  if (failure_.is_ok()) return Status::ok();
  return Status::store_failed(
      str_cat("[", op, "] an earlier write failed; open the store again: ", failure_.message()));
}

Status Store::failed(Status status) {
  if (!status.is_ok() && failure_.is_ok()) failure_ = status;
  return status;
}

Status Store::write(const std::vector<Change>& changes) {
  MC_RETURN_IF_ERROR(failed(wal_->append(RecordParts(changes))));
  MC_RETURN_IF_ERROR(failed(apply(changes)));
  if (unsealed_bytes_ < options_.unsealed_bytes) return Status::ok();
  return checkpoint_locked();
}

Result<uint32_t> Store::add_partition(const std::string& source, const std::string& metadata_json) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("add_partition"));
  if (find_partition(source)) {
    return Status::invalid_argument(
        str_cat("[add_partition] source must be new, got '", source, "' again"));
  }
  const auto id = static_cast<uint32_t>(state_.partitions.size());
  MC_RETURN_IF_ERROR(write({AddPartition{id, env_->now_ms(), source, metadata_json}}));
  return id;
}

std::optional<uint32_t> Store::find_partition(const std::string& source) const {
  std::shared_lock lock(state_mutex_);
  const auto found = sources_.find(source);
  if (found == sources_.end()) return std::nullopt;
  return found->second;
}

Status Store::set_metadata(uint32_t partition, const std::string& metadata_json) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("set_metadata"));
  MC_RETURN_IF_ERROR(require_partition("set_metadata", state_, partition));
  return write({SetMetadata{partition, metadata_json}});
}

Result<Span> Store::append_tokens(uint32_t partition, std::span<const uint32_t> tokens,
                                  std::span<const uint64_t> char_starts) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("append_tokens"));
  MC_RETURN_IF_ERROR(require_partition("append_tokens", state_, partition));
  if (!char_starts.empty() && char_starts.size() != tokens.size()) {
    return Status::invalid_argument(str_cat("[append_tokens] char_starts must have ", tokens.size(),
                                            " values, got ", char_starts.size()));
  }
  const uint64_t before = state_.partitions[partition]->column(kTokensFamily).row_count();
  uint64_t first = before;
  while (!tokens.empty()) {
    const uint64_t count = std::min<uint64_t>(tokens.size(), kRecordBytes / sizeof(uint32_t));
    const auto starts = starts_of_blocks(
        first, count, char_starts.empty() ? char_starts : char_starts.first(count));
    std::vector<Change> changes = {
        PutRows{kTokensFamily, partition, first, count, std::as_bytes(tokens.first(count))}};
    if (!starts.empty()) {
      changes.push_back(PutRows{kCharStartsFamily, partition, started_node_count(first, 1),
                                starts.size(), std::as_bytes(std::span(starts))});
    }
    MC_RETURN_IF_ERROR(write(changes));
    first += count;
    tokens = tokens.subspan(count);
    if (!char_starts.empty()) char_starts = char_starts.subspan(count);
  }
  return Span{full_node_count(before, 1), full_node_count(first, 1)};
}

Result<Span> Store::replace_tail(uint32_t partition, const NewTail& tail) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("replace_tail"));
  MC_RETURN_IF_ERROR(require_partition("replace_tail", state_, partition));
  const uint64_t before = state_.partitions[partition]->column(kTokensFamily).row_count();
  if (tail.kept_tokens > before) {
    return Status::invalid_argument(
        str_cat("[replace_tail] kept_tokens must be <= ", before, ", got ", tail.kept_tokens));
  }
  if (!tail.char_starts.empty() && tail.char_starts.size() != tail.tokens.size()) {
    return Status::invalid_argument(str_cat("[replace_tail] char_starts must have ",
                                            tail.tokens.size(), " values, got ",
                                            tail.char_starts.size()));
  }
  std::vector<Change> changes;
  const uint64_t first = tail.kept_tokens;
  if (first < before) changes.push_back(CutPartition{partition, 0, first});
  const auto starts = starts_of_blocks(first, tail.tokens.size(), tail.char_starts);
  if (!tail.tokens.empty()) {
    changes.push_back(
        PutRows{kTokensFamily, partition, first, tail.tokens.size(), std::as_bytes(tail.tokens)});
  }
  if (!starts.empty()) {
    changes.push_back(PutRows{kCharStartsFamily, partition, started_node_count(first, 1),
                              starts.size(), std::as_bytes(std::span(starts))});
  }
  if (tail.metadata_json) changes.push_back(SetMetadata{partition, *tail.metadata_json});
  if (!changes.empty()) MC_RETURN_IF_ERROR(write(changes));
  return Span{full_node_count(first, 1), full_node_count(first + tail.tokens.size(), 1)};
}

Status Store::define_rows(const std::string& name, uint8_t lod, RowType type, uint32_t width,
                          uint32_t group_size) {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("define_rows"));
  if (name.empty() || name.size() > kMostNameBytes) {
    return Status::invalid_argument(
        str_cat("[define_rows] name must have 1 to ", kMostNameBytes, " bytes, got ", name.size()));
  }
  if (group_size == 0) group_size = default_group_size(type, width);
  const RowFormat format{type, width, group_size};
  if (const DefineFamily* old = find_family(state_, name)) {
    if (old->lod == lod && old->format() == format) return Status::ok();
    return Status::invalid_argument(str_cat("[define_rows] '", name, "' must stay lod ",
                                            int{old->lod}, " ", describe(old->format()),
                                            ", got lod ", int{lod}, " ", describe(format)));
  }
  if (lod > kMaxLod || !format.is_valid()) {
    return Status::invalid_argument(str_cat("[define_rows] lod must be <= ", kMaxLod,
                                            ", a row 1 byte to 64 MiB and a group within it, ",
                                            "got lod ", int{lod}, ", ", describe(format)));
  }
  if (is_scaled(type)) MC_RETURN_IF_ERROR(failed(require_encoded_rows()));
  const auto id = static_cast<uint32_t>(state_.families.size() + 1);
  return write({DefineFamily{id, lod, type, width, name, 0, group_size}});
}

Status Store::put_rows(std::string_view family_name, uint32_t partition, uint64_t first, Bytes rows,
                       std::optional<RowType> as) {
  // Before the lock: rounding is the slow part, and many threads may do it at once.
  MC_ASSIGN_OR_RETURN(const DefineFamily given, row_family(family_name));
  MC_ASSIGN_OR_RETURN(const RowFormat from, caller_format("put_rows", given, as));
  std::vector<std::byte> rounded;
  MC_ASSIGN_OR_RETURN(rows, rounded_rows(from, rows, given.format(), rounded));

  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("put_rows"));
  const DefineFamily* family = find_family(state_, family_name);
  if (family == nullptr || family->id != given.id) {
    return Status::not_found(str_cat("[put_rows] row family '", family_name, "' was dropped"));
  }
  MC_RETURN_IF_ERROR(require_partition("put_rows", state_, partition));
  const uint64_t row_bytes = family->format().row_bytes();
  const Partition& target = *state_.partitions[partition];
  const uint64_t row_count = target.column(family->id).row_count();
  const uint64_t limit = started_node_count(target.column(kTokensFamily).row_count(), family->lod);
  uint64_t left = rows.size() / row_bytes;
  if (first > row_count || (first < row_count && first + left > row_count)) {
    return Status::invalid_argument(str_cat("[put_rows] rows must append at ", row_count,
                                            " or lie before it, got [", first, ", ", first + left,
                                            ")"));
  }
  if (first + left > limit) {
    return Status::invalid_argument(
        str_cat("[put_rows] rows must be of nodes with tokens, that is < ", limit, " at lod ",
                int{family->lod}, ", got ", first + left));
  }
  while (left > 0) {
    const uint64_t count = std::min(left, std::max<uint64_t>(kRecordBytes / row_bytes, 1));
    MC_RETURN_IF_ERROR(
        write({PutRows{family->id, partition, first, count, rows.first(count * row_bytes)}}));
    rows = rows.subspan(count * row_bytes);
    first += count;
    left -= count;
  }
  return Status::ok();
}

Status Store::index_text(uint32_t partition, uint64_t first_block,
                         std::span<const std::string_view> texts) {
  // Before the lock: this is the slow part, and many threads may do it at once.
  std::vector<std::vector<Term>> terms;
  for (std::string_view text : texts) terms.push_back(analyze(text));

  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("index_text"));
  MC_RETURN_IF_ERROR(require_partition("index_text", state_, partition));
  const Partition& target = *state_.partitions[partition];
  if (first_block != target.indexed_blocks) {
    return Status::invalid_argument(
        str_cat("[index_text] first_block must be ", target.indexed_blocks, ", got ", first_block));
  }
  const uint64_t limit = started_node_count(target.column(kTokensFamily).row_count(), 1);
  if (first_block + texts.size() > limit) {
    return Status::invalid_argument(
        str_cat("[index_text] blocks must be < ", limit, ", got ", first_block + texts.size()));
  }
  ByteWriter encoded;
  for (size_t at = 0; at < terms.size();) {
    encoded.clear();
    const size_t start = at;
    while (at < terms.size() && encoded.byte_count() < kRecordBytes) {
      encode_terms(encoded, terms[at++]);
    }
    MC_RETURN_IF_ERROR(
        write({IndexBlocks{partition, first_block + start, static_cast<uint32_t>(at - start),
                           kAnalyzerVersion, encoded.bytes()}}));
  }
  return Status::ok();
}

Status Store::commit() {
  const LatencyTimer timer(metrics_->commit_latency_us);
  std::unique_lock writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("commit"));
  metrics_->commit_count.add();
  const uint64_t wanted = wal_->next_sequence();
  while (wal_->durable_sequence() < wanted) {
    MC_RETURN_IF_ERROR(require_writable("commit"));
    if (sync_running_) {
      sync_done_.wait(writer);
    } else {
      MC_RETURN_IF_ERROR(failed(sync_for_all(writer)));
    }
  }
  return Status::ok();
}

// The first of the threads that meet in commit() syncs for all of them; whoever comes while the
// disk works waits for the next sync.
Status Store::sync_for_all(std::unique_lock<std::mutex>& writer) {
  WalWriter::PendingSync pending = wal_->begin_sync();
  if (pending.file == nullptr) return Status::ok();
  sync_running_ = true;
  writer.unlock();
  Status status;
  {
    const LatencyTimer timer(metrics_->sync_latency_us);
    status = pending.run();
  }
  writer.lock();
  sync_running_ = false;
  if (status.is_ok()) wal_->end_sync(std::move(pending));
  if (!status.is_ok() && failure_.is_ok()) failure_ = status;  // before the others wake
  sync_done_.notify_all();
  return status;
}

Status Store::checkpoint() {
  std::lock_guard writer(writer_mutex_);
  MC_RETURN_IF_ERROR(require_writable("checkpoint"));
  return checkpoint_locked(Merges::kWaited);
}

Status Store::close() {
  std::lock_guard writer(writer_mutex_);
  if (closed_) return Status::ok();
  Status status = failure_;
  if (!read_only_ && wal_ != nullptr && status.is_ok()) {
    const bool changed = wal_->next_sequence() != manifest_.wal_sequence;
    if (wal_->replay_bytes() >= options_.close_wal_bytes || merging_.valid()) {
      status = checkpoint_locked(Merges::kWaited);
    } else if (changed && wal_->byte_count() > 0) {
      // Tells recovery that everything before was acknowledged, so a lost frame is noticed.
      status = failed(wal_->sync());
      if (status.is_ok()) status = failed(wal_->append(RecordParts({CloseStore{}})));
      if (status.is_ok()) status = failed(wal_->sync());
    }
    if (status.is_ok()) status = wal_->remove_spares(0);
  }
  if (merging_.valid()) merging_.wait();  // of a store that failed; the next writer clears up
  closed_ = true;
  lock_ = nullptr;
  state_.read_path->prefetcher().stop();
  return status;
}

std::shared_ptr<const Snapshot> Store::snapshot() const {
  std::unique_lock lock(state_mutex_);
  ++epoch_;  // from now on the writer copies a partition before it changes it
  return std::make_shared<const Snapshot>(state_);
}

// ---- changes ----

Partition& Store::own_partition(uint32_t id) {
  std::shared_ptr<Partition>& partition = state_.partitions[id];
  if (partition->epoch != epoch_) {
    partition = std::make_shared<Partition>(*partition);
    partition->epoch = epoch_;
  }
  return *partition;
}

Status Store::apply(std::span<const Change> changes) {
  LexicalIndex grown = state_.lexical;  // the slow part; reads and searches go on meanwhile
  for (const Change& change : changes) MC_RETURN_IF_ERROR(change_index(grown, change));
  std::unique_lock lock(state_mutex_);
  state_.lexical = std::move(grown);
  for (const Change& change : changes) {
    MC_RETURN_IF_ERROR(std::visit([this](const auto& one) { return apply_one(one); }, change));
  }
  return Status::ok();
}

Status Store::apply_one(const DefineFamily& change) {
  if (change.id != state_.families.size() + 1 || !change.format().is_valid()) {
    return Status::corruption(str_cat("expected family ", state_.families.size() + 1, ", got ",
                                      change.id, ", ", describe(change.format())));
  }
  state_.families.push_back(std::make_shared<const DefineFamily>(change));
  return Status::ok();
}

Status Store::apply_one(const AddPartition& change) {
  if (change.id != state_.partitions.size()) {
    return Status::corruption(
        str_cat("expected partition ", state_.partitions.size(), ", got ", change.id));
  }
  auto partition = std::make_shared<Partition>();
  partition->about = std::make_shared<const AddPartition>(change);
  partition->epoch = epoch_;
  if (change.flags & kHidden) state_.hidden.push_back(change.id);
  if (!partition->erased()) sources_.emplace(change.source, change.id);
  state_.partitions.push_back(std::move(partition));
  return Status::ok();
}

Status Store::apply_one(const SetMetadata& change) {
  if (change.partition >= state_.partitions.size()) {
    return Status::corruption(str_cat("partition ", change.partition, " is not there"));
  }
  Partition& partition = own_partition(change.partition);
  AddPartition about = *partition.about;
  about.metadata_json = change.metadata_json;
  partition.about = std::make_shared<const AddPartition>(std::move(about));
  return Status::ok();
}

Status Store::apply_one(const PutRows& change) {
  if (change.partition >= state_.partitions.size() || change.family == 0 ||
      change.family > state_.families.size()) {
    return Status::corruption(
        str_cat("partition ", change.partition, " or family ", change.family, " is not there"));
  }
  const uint64_t row_bytes = state_.families[change.family - 1]->format().row_bytes();
  Partition& partition = own_partition(change.partition);
  if (partition.columns.size() < change.family) partition.columns.resize(change.family);
  Column& column = partition.columns[change.family - 1];
  const bool appends = change.first == column.row_count();
  const bool fits = appends || (change.first < column.row_count() &&
                                change.count <= column.row_count() - change.first);
  if (!fits || change.rows.size() / row_bytes != change.count ||
      change.rows.size() % row_bytes != 0) {
    return Status::corruption(str_cat("rows [", change.first, ", +", change.count, ") do not fit ",
                                      column.row_count(), " rows"));
  }
  if (appends) {
    column.append(change.rows.data(), change.count, row_bytes);
  } else {
    column.overwrite(change.first, change.rows.data(), change.count, row_bytes);
  }
  unsealed_bytes_ += change.rows.size();
  return Status::ok();
}

Status Store::apply_one(const IndexBlocks& change) {
  if (change.partition >= state_.partitions.size() ||
      state_.partitions[change.partition]->indexed_blocks != change.first_block) {
    return Status::corruption(str_cat("blocks from ", change.first_block, " of partition ",
                                      change.partition, " do not continue its index"));
  }
  own_partition(change.partition).indexed_blocks += change.block_count;
  unsealed_bytes_ += change.terms.size();
  return Status::ok();
}

Status Store::grow(LexicalIndex& index, const IndexBlocks& change) {
  if (change.analyzer != kAnalyzerVersion) {
    return Status::unsupported(str_cat("the WAL has terms of analyzer ", change.analyzer,
                                       ", this is analyzer ", kAnalyzerVersion,
                                       "; checkpoint the store with the version that wrote it"));
  }
  return index.add(change.partition, change.first_block, change.block_count, change.terms);
}

Status Store::apply_one(const CloseStore&) {
  return Status::ok();
}

}  // namespace mc
