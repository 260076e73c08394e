// Opening a store: the manifest, the segments it names, the log after them.
#include <algorithm>

#include "base/checks.h"
#include "base/str_cat.h"
#include "format/file_names.h"
#include "storage/store.h"
#include "storage/wal_reader.h"

namespace mc {
namespace {

constexpr int kReaderAttempts = 1000;  // a writer replaced files while a reader was opening them

Result<std::vector<std::byte>> read_file(Env* env, const std::string& path) {
  MC_ASSIGN_OR_RETURN(auto file, env->open_readable(path));
  std::vector<std::byte> bytes(file->byte_count());
  MC_ASSIGN_OR_RETURN(const size_t got, file->read_at(0, bytes));
  bytes.resize(got);
  return bytes;
}

std::string parent_directory(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Whether the directory has only files that a store makes, so that one may be made there.
Result<bool> only_own_files(Env* env, const std::string& path) {
  MC_ASSIGN_OR_RETURN(const auto names, env->list(path));
  return std::none_of(names.begin(), names.end(), [](const std::string& name) {
    return parse_file_name(name).kind == FileKind::kForeign;
  });
}

}  // namespace

Status Store::write_manifest(Env* env, const std::string& path, const Manifest& manifest) {
  const std::string fresh = join_path(path, kNewManifestName);
  {
    MC_ASSIGN_OR_RETURN(auto file, env->open_writable(fresh, WriteMode::kTruncate));
    MC_RETURN_IF_ERROR(file->write_at(0, encode_manifest(manifest)));
    MC_RETURN_IF_ERROR(file->sync());
  }
  // New files must have their names before a manifest that names them has its own.
  MC_RETURN_IF_ERROR(env->sync_directory(path));
  MC_RETURN_IF_ERROR(env->rename(fresh, join_path(path, kManifestName)));
  return env->sync_directory(path);
}

// Makes the directory when it is not there; refuses one with a store or with other files.
Status Store::require_new_directory(Env* env, const std::string& path, std::string_view op) {
  MC_RETURN_IF_ERROR(env->create_directory(path));
  MC_RETURN_IF_ERROR(env->sync_directory(parent_directory(path)));
  MC_ASSIGN_OR_RETURN(const bool own, only_own_files(env, path));
  if (!own) {
    return Status::invalid_argument(
        str_cat("[", op, "] directory must be empty, got other files in ", path));
  }
  if (!env->open_readable(join_path(path, kManifestName)).is_ok()) return Status::ok();
  return Status::invalid_argument(str_cat("[", op, "] ", path, " must not be a store already"));
}

Result<Manifest> Store::read_manifest(Env* env, const std::string& path) {
  const std::string manifest_path = join_path(path, kManifestName);
  auto bytes = read_file(env, manifest_path);
  if (!bytes.is_ok()) {
    if (bytes.status().code() != StatusCode::kNotFound) return bytes.status();
    MC_ASSIGN_OR_RETURN(const bool own, only_own_files(env, path));
    if (own) return Status::not_found(str_cat(path, ": the directory has no store"));
    return Status::corruption(
        str_cat(manifest_path, ":0: expected a manifest in a directory with other files"));
  }
  auto manifest = decode_manifest(bytes.value());
  if (manifest.is_ok()) return manifest;
  std::string message = str_cat(manifest_path, ":", manifest.status().message());
  if (manifest.status().code() == StatusCode::kUnsupported) {
    return Status::unsupported(std::move(message));
  }
  return Status::corruption(std::move(message));
}

Status Store::require_identity(const Manifest& manifest, const Identity& wanted) {
  for (const auto& [key, value] : wanted) {
    const auto found = manifest.identity.find(key);
    const std::string stored = found == manifest.identity.end() ? "nothing" : found->second;
    if (found == manifest.identity.end() || stored != value) {
      return Status::invalid_argument(str_cat("[open] identity '", key, "' must be '", stored,
                                              "' as the store was made with, got '", value, "'"));
    }
  }
  return Status::ok();
}

Result<std::unique_ptr<Store>> Store::create(Env* env, const std::string& path,
                                             const Identity& identity,
                                             const StoreOptions& options) {
  MC_RETURN_IF_ERROR(require_new_directory(env, path, "create"));
  {
    MC_ASSIGN_OR_RETURN(auto lock, env->lock(join_path(path, kLockName)));
    MC_RETURN_IF_ERROR(require_new_directory(env, path, "create"));  // nobody was faster
    Manifest manifest;
    for (size_t at = 0; at < manifest.store_id.size(); ++at) {
      manifest.store_id[at] = static_cast<uint8_t>(env->random_u64());
    }
    manifest.generation = 1;
    manifest.created_ms = env->now_ms();
    manifest.identity = identity;
    manifest.families = {{kTokensFamily, 0, RowType::kU32, 1, "tokens"},
                         {kCharStartsFamily, 1, RowType::kU64, 1, "char_starts"}};
    MC_RETURN_IF_ERROR(write_manifest(env, path, manifest));
  }
  return open(env, path, {.identity = identity, .options = options});
}

Result<std::unique_ptr<Store>> Store::open(Env* env, const std::string& path,
                                           const OpenRequest& request) {
  MC_ASSIGN_OR_RETURN(Manifest manifest, read_manifest(env, path));
  MC_RETURN_IF_ERROR(require_identity(manifest, request.identity));
  if (!request.read_only) {
    std::unique_ptr<Store> store(new Store(env, path, request));
    MC_ASSIGN_OR_RETURN(store->lock_, env->lock(join_path(path, kLockName)));
    MC_ASSIGN_OR_RETURN(manifest, read_manifest(env, path));  // nobody changes it any more
    Status loaded = store->load(std::move(manifest));
    if (!loaded.is_ok()) {
      store->failure_ = loaded;
      return loaded;
    }
    return store;
  }
  Status before;
  for (int attempt = 1;; ++attempt) {
    std::unique_ptr<Store> store(new Store(env, path, request));
    Status loaded = store->load(manifest);
    MC_ASSIGN_OR_RETURN(Manifest now, read_manifest(env, path));
    // A log file that was read before the writer ended it, and the next one after, look as if
    // frames between were lost; another look has them. What is damaged looks the same twice.
    const bool is_settled = loaded.is_ok() || loaded.message() == before.message();
    const bool is_latest = now.generation == manifest.generation;
    if ((is_latest && is_settled) || attempt == kReaderAttempts) {
      if (!loaded.is_ok()) return loaded;
      return store;
    }
    before = std::move(loaded);
    manifest = std::move(now);
  }
}

Status Store::load(Manifest manifest) {
  manifest_ = std::move(manifest);
  std::vector<Change> changes(manifest_.families.begin(), manifest_.families.end());
  changes.insert(changes.end(), manifest_.partitions.begin(), manifest_.partitions.end());
  MC_RETURN_IF_ERROR(apply(changes));
  if (state_.families.size() < kBuiltinFamilies) {
    return Status::corruption(str_cat(path_, "/MANIFEST:32: expected the built-in families"));
  }
  manifest_.families.clear();
  manifest_.partitions.clear();
  for (const Cut& cut : manifest_.cuts) cuts_.add(cut);
  manifest_.cuts.clear();
  MC_RETURN_IF_ERROR(load_segments());
  MC_RETURN_IF_ERROR(load_log());
  if (read_only_) return Status::ok();
  MC_RETURN_IF_ERROR(remove_leftovers());
  return unsealed_bytes_ < options_.unsealed_bytes ? Status::ok() : checkpoint_locked();
}

// Whether the manifest has the family, and its rows may lie as they do here.
Status Store::require_known_rows(const Segment& segment) const {
  const SegmentHeader& header = segment.header();
  if (header.kind == SegmentKind::kPostings) return Status::ok();
  if (header.family < 1 || header.family > state_.families.size()) {
    return Status::corruption(
        str_cat(segment.path(), ":40: expected a family of the manifest, got ", header.family));
  }
  const RowFormat declared = state_.families[header.family - 1]->format();
  const RowFormat held = header.row_format(declared.width);
  const bool fits = held == declared || (held.holds_floats() && declared.holds_floats());
  if (fits && held.is_valid() && header.row_bytes == held.row_bytes()) return Status::ok();
  return Status::corruption(str_cat(segment.path(), ":45: expected rows of ", describe(declared),
                                    ", got ", describe(held), " of ", header.row_bytes, " bytes"));
}

Status Store::load_segments() {
  Segments postings;
  for (const SegmentEntry& entry : manifest_.segments) {
    MC_ASSIGN_OR_RETURN(auto segment, Segment::open(env_, path_, manifest_.store_id, entry));
    segments_.push_back(segment);
    const SegmentHeader& header = segment->header();
    const std::byte* rows = segment->rows();
    const bool is_rows = header.kind == SegmentKind::kRows;
    MC_RETURN_IF_ERROR(require_known_rows(*segment));
    for (const RunEntry& run : segment->runs()) {
      if (run.partition >= state_.partitions.size()) {
        return Status::corruption(
            str_cat(segment->path(), ":128: expected partitions of the manifest"));
      }
      if (is_rows) {
        rows += attach_run(segment, run, rows);
      } else {
        own_partition(run.partition).indexed_blocks += cuts_.kept_rows(*segment, nullptr, run);
      }
    }
    if (!is_rows) postings.push_back(segment);
  }
  state_.lexical.replace_segments(std::move(postings), cuts_, true);
  tell_read_path();
  return require_no_gaps();
}

// Shows what no cut took away of a run; returns the bytes of its rows.
uint64_t Store::attach_run(const std::shared_ptr<const Segment>& segment, const RunEntry& run,
                           const std::byte* rows) {
  const DefineFamily& family = *state_.families[segment->header().family - 1];
  RunEntry kept = run;
  kept.count = cuts_.kept_rows(*segment, &family, run);
  if (kept.count > 0 && (family.flags & kDropped) == 0) {
    Partition& partition = own_partition(run.partition);
    if (partition.columns.size() < family.id) partition.columns.resize(family.id);
    partition.columns[family.id - 1].attach(segment, kept, rows);
  }
  return run.count * segment->header().row_bytes;
}

Status Store::require_no_gaps() const {
  for (const auto& partition : state_.partitions) {
    for (const Column& column : partition->columns) {
      if (column.first_gap() == column.row_count()) continue;
      return Status::corruption(str_cat(path_, ": partition ", partition->about->id,
                                        " lacks rows from ", column.first_gap(), " of ",
                                        column.row_count()));
    }
  }
  return Status::ok();
}

Status Store::load_log() {
  const auto apply_record = [this](Bytes record) -> Status {
    MC_ASSIGN_OR_RETURN(const auto changes, decode_record(record));
    return apply(changes);
  };
  MC_ASSIGN_OR_RETURN(WalReplay replay,
                      replay_wal(env_, path_, manifest_.store_id,
                                 {manifest_.wal_number, manifest_.wal_sequence}, apply_record));
  if (read_only_) return Status::ok();
  for (uint64_t number : replay.numbers) {
    // What was read may be in the page cache only; what is shown now must stay.
    MC_ASSIGN_OR_RETURN(auto file, env_->open_writable(join_path(path_, wal_file_name(number)),
                                                       WriteMode::kOverwrite));
    MC_RETURN_IF_ERROR(file->sync());
  }
  wal_ = std::make_unique<WalWriter>(env_,
                                     WalOptions{.directory = path_,
                                                .store_id = manifest_.store_id,
                                                .first_file_bytes = options_.wal_first_file_bytes,
                                                .most_file_bytes = options_.wal_most_file_bytes},
                                     replay.next);
  wal_->inherit(std::move(replay.numbers), replay.byte_count);
  return Status::ok();
}

// Files that a crash left behind, or spare WAL files of the last writer.
Status Store::remove_leftovers() {
  MC_ASSIGN_OR_RETURN(const auto names, env_->list(path_));
  for (const std::string& name : names) {
    const FileName file = parse_file_name(name);
    const bool live_wal = file.kind == FileKind::kWal && file.number >= manifest_.wal_number &&
                          file.number < manifest_.wal_number + wal_->file_count();
    const bool live_segment =
        file.kind == FileKind::kSegment &&
        std::any_of(segments_.begin(), segments_.end(), [&](const auto& segment) {
          return segment->header().segment_id == file.number;
        });
    const bool leftover = (file.kind == FileKind::kWal && !live_wal) ||
                          (file.kind == FileKind::kSegment && !live_segment) ||
                          file.kind == FileKind::kUnfinished;
    if (leftover) MC_RETURN_IF_ERROR(env_->remove(join_path(path_, name)));
  }
  return Status::ok();
}

Status Store::publish(const Manifest& manifest) {
  return write_manifest(env_, path_, manifest);
}

}  // namespace mc
