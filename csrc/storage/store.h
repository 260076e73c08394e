// Store: a directory with one context, that is a set of partitions with their tokens, rows and
// lexical index. Start reading here.
//
// Durability. A change is in the WAL buffer and visible to readers when its call returns; it is
// durable when commit() (or checkpoint(), close()) returns. After a crash exactly the changes up
// to some point at or after the last commit are there, each wholly or not at all.
//
// Threads. Any number of threads may read. Writers are serialised by a mutex; commits of several
// threads share one fdatasync when they meet. One process may write (flock), others may open
// read_only and see the store as of their opening.
//
// Failure. A failed write or sync makes the store failed: every later write answers StoreFailed
// until it is opened again. Reads go on.
//
// Order of locks: writer_mutex_, then state_mutex_, then the one inside LexicalIndex.
#pragma once

#include <condition_variable>
#include <future>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "storage/cuts.h"
#include "storage/row_copy.h"
#include "storage/row_reader.h"
#include "storage/store_metrics.h"
#include "storage/wal_writer.h"

namespace mc {

// When segments that have become many are made one.
enum class MergeMode : uint8_t {
  kBeside = 0,   // by a thread beside the writer, who waits only when it falls far behind
  kInline = 1,   // by the writer, at the checkpoint that made them too many
  kDeferred = 2  // like kBeside, but worked on when it is waited for: the same order in every run
};

struct StoreOptions {
  uint64_t unsealed_bytes = 64 << 20;  // in memory and in the WAL before a checkpoint seals them
  uint64_t close_wal_bytes =
      1 << 20;                 // close() seals when the WAL is longer: the next open is quick
  uint32_t page_bytes = 4096;  // unit of checksums in segments
  uint64_t wal_first_file_bytes = 256 << 10;
  uint64_t wal_most_file_bytes = 32 << 20;
  size_t most_segments_per_family = 8;  // more are merged after a checkpoint
  MergeMode merges = MergeMode::kBeside;
  ReadOptions reads = {};
};

struct OpenRequest {
  bool read_only = false;
  Identity identity;  // every key given here must be in the store with the same value
  StoreOptions options;
};

// What replace_tail puts in place of the end of a partition.
struct NewTail {
  uint64_t kept_tokens = 0;                       // the first ones stay
  std::span<const uint32_t> tokens;               // after those
  std::span<const uint64_t> char_starts = {};     // none, or one a new token
  std::optional<std::string> metadata_json = {};  // of the partition, when it changes too
};

// What reencode() did.
struct ReencodeReport {
  uint64_t bytes_before = 0, bytes_after = 0;  // of their segment files
  RoundingError error;
};

struct StoreStats {
  uint64_t generation = 0, partition_count = 0, token_count = 0;
  uint64_t segment_count = 0, segment_bytes = 0, postings_segment_count = 0;
  uint64_t unsealed_bytes = 0, wal_file_count = 0, wal_bytes_written = 0, sync_count = 0;
  uint64_t checkpoint_count = 0, merge_count = 0;  // since opening
  uint64_t reclaimed_bytes = 0;                    // of segment files, by merges and purges
};

class Store final : public RowReader {
 public:
  // InvalidArgument when there is a store already or foreign files.
  static Result<std::unique_ptr<Store>> create(Env* env, const std::string& path,
                                               const Identity& identity,
                                               const StoreOptions& options = {});
  // NotFound: no such directory, or an empty one. Corruption: a directory of something else, or a
  // damaged store. Unsupported: a newer format. Locked: another writer.
  static Result<std::unique_ptr<Store>> open(Env* env, const std::string& path,
                                             const OpenRequest& request = {});
  ~Store() override;

  const std::string& path() const { return path_; }
  bool read_only() const { return read_only_; }
  const Identity& identity() const { return manifest_.identity; }

  Result<uint32_t> add_partition(const std::string& source, const std::string& metadata_json);
  std::optional<uint32_t> find_partition(const std::string& source) const;
  Status set_metadata(uint32_t partition, const std::string& metadata_json);

  // Returns the half-open range of blocks that became full. `char_starts` is empty or has one
  // value a token. Cost: one copy to the WAL, one to memory.
  Result<Span> append_tokens(uint32_t partition, std::span<const uint32_t> tokens,
                             std::span<const uint64_t> char_starts = {});

  // Edits a partition, as one change: after a crash it is the old one or the new one. Rows of nodes
  // that lie wholly within the kept tokens stay, all others of every family go, and so does the
  // index from the first block that is not wholly kept. Returns the blocks that are now to be
  // indexed. Cost: as append_tokens, and one look at each block indexed since the last checkpoint.
  Result<Span> replace_tail(uint32_t partition, const NewTail& tail);
  // The partition and its source are gone for every later reader; its id is not used again. The
  // bytes go with purge().
  Status erase_partition(uint32_t partition);
  // A hidden partition is read as ever but not found by search().
  Status set_hidden(uint32_t partition, bool hidden);

  // Rows for each node of `lod` that has at least one token. `group_size` is of scaled types;
  // 0 takes default_group_size.
  Status define_rows(const std::string& name, uint8_t lod, RowType type, uint32_t width,
                     uint32_t group_size = 0);
  // first == row_count: appends; first + count <= row_count: overwrites; else InvalidArgument.
  // Rows are in caller_format; they are rounded where the family is of fewer bits, and refused
  // when a scaled family gets one that is not finite.
  Status put_rows(std::string_view family, uint32_t partition, uint64_t first, Bytes rows,
                  std::optional<RowType> as = {});
  // Seals everything and rewrites the rows of a family of floats as `type`, those that are not so
  // already. What is read keeps the family's declared format; rows put later lie as declared until
  // this is called again. As crash-safe as a merge: all of them are rewritten or none.
  // InvalidArgument, and no row changed, when one cannot be rounded to `type`.
  // Cost: one read and one write of the rows; writers wait.
  Result<ReencodeReport> reencode(std::string_view family, RowType type, uint32_t group_size = 0);
  // The family is gone; its name may be defined anew. Segments go at the next checkpoint.
  Status drop_rows(std::string_view family);
  // Its rows of one partition are gone.
  Status clear_rows(std::string_view family, uint32_t partition);

  // first_block == indexed_blocks(partition). The last block may be the partial one; its later
  // tokens are then never indexed.
  Status index_text(uint32_t partition, uint64_t first_block,
                    std::span<const std::string_view> texts);

  // Everything written before is durable on return. Threads that meet here share one sync, and
  // others write meanwhile.
  Status commit();
  // Seals everything into segments, so that the WAL can be cut, and merges what has become too
  // many.
  Status checkpoint();
  // A checkpoint that also rewrites each segment with rows or terms that nobody can read any more
  // (erased, cut, overwritten, dropped), and removes every file of the log: afterwards no file of
  // the store holds a byte of them. Snapshots and other processes keep removed files until they
  // let go of them; what the disk does with freed blocks is not the store's.
  Status purge();
  // Commits and releases the lock. Any later call but reads of snapshots is an error.
  Status close();

  std::shared_ptr<const Snapshot> snapshot() const;
  // Writes what is there now to a new store at `path`, as few segments as there are families, and
  // checks the copy. Writers and readers go on meanwhile. InvalidArgument when the directory has a
  // store or other files; a copy that was interrupted is no store. Cost: one read and one write of
  // every row; memory for the postings.
  Status backup(const std::string& path) const;
  StoreStats stats() const;
  // Everything that is counted since opening; storage/README.md lists the names.
  std::vector<Metric> metrics() const;
  // Reads everything: checksums, counts, order. Ok, or the first fault found.
  Status check() const;

 protected:
  std::shared_lock<std::shared_mutex> lock_state() const override {
    return std::shared_lock(state_mutex_);
  }
  const StoreState& state() const override { return state_; }

 private:
  Store(Env* env, std::string path, const OpenRequest& request);

  // store_open.cc
  static Result<Manifest> read_manifest(Env* env, const std::string& path);
  static Status write_manifest(Env* env, const std::string& path, const Manifest& manifest);
  static Status require_new_directory(Env* env, const std::string& path, std::string_view op);
  static Status require_identity(const Manifest& manifest, const Identity& wanted);
  Status load(Manifest manifest);
  Status load_segments();
  Status require_known_rows(const Segment& segment) const;
  Status load_log();
  Status remove_leftovers();
  Status require_no_gaps() const;
  uint64_t attach_run(const std::shared_ptr<const Segment>& segment, const RunEntry& run,
                      const std::byte* rows);

  // store.cc: writer_mutex_ is held by the callers of all below
  Status require_writable(std::string_view op) const;
  Status write(const std::vector<Change>& changes);
  Status failed(Status status);
  Status sync_for_all(std::unique_lock<std::mutex>& writer);
  Partition& own_partition(uint32_t id);
  // Readers see all of `changes` or none.
  Status apply(std::span<const Change> changes);
  Status apply_one(const DefineFamily& change);
  Status apply_one(const AddPartition& change);
  Status apply_one(const SetMetadata& change);
  Status apply_one(const PutRows& change);
  Status apply_one(const IndexBlocks& change);
  static Status grow(LexicalIndex& index, const IndexBlocks& change);
  Status apply_one(const CloseStore& change);

  // store_life.cc
  Status change_index(LexicalIndex& index, const Change& change);
  Status apply_one(const CutPartition& change);
  Status apply_one(const ErasePartition& change);
  Status apply_one(const DropFamily& change);
  Status apply_one(const HidePartition& change);

  // store_reencode.cc
  Status require_encoded_rows();
  Result<ReencodeReport> reencode_segments(const DefineFamily& family, const RowFormat& format);

  // store_checkpoint.cc
  using Segments = std::vector<std::shared_ptr<const Segment>>;
  // Segments that may become one: of one family (0: postings) and one format.
  using SegmentGroups = std::map<std::tuple<uint32_t, RowType, uint32_t>, Segments>;
  struct Sealing {
    std::vector<SegmentEntry> fresh;  // written but not yet named by a manifest
    Segments obsolete;
    bool replaces_memory = false;  // else the obsolete segments
    bool clears_lexical_memory = false;
    RoundingError rounding;
  };
  using NewSegment = std::function<SegmentHeader(uint64_t data_bytes)>;
  enum class Merges : uint8_t { kGoOn, kWaited };
  Status checkpoint_locked(Merges merges = Merges::kGoOn);
  Status seal_everything();
  Status rewrite_segments();
  static SegmentGroups grouped(const Segments& segments);
  Status seal_rows(const StoreState& state, const DefineFamily& family, const Segments* merged,
                   const RowFormat& format, const NewSegment& header, Sealing& sealing) const;
  Status seal_merged(const StoreState& state, const Segments& segments, const NewSegment& header,
                     Sealing& sealing) const;
  Status seal_postings(std::string bytes, const NewSegment& header, Sealing& sealing) const;
  Status seal_merged_postings(const StoreState& state, const Segments& merged,
                              const NewSegment& header, Sealing& sealing) const;
  SegmentHeader new_segment(uint64_t data_bytes);
  Status publish(const Manifest& manifest);
  Status install(Sealing& sealing);
  void show_rows(const std::shared_ptr<const Segment>& segment, const Sealing& sealing);
  Manifest next_manifest() const;
  void tell_read_path();

  // store_merge.cc
  std::vector<Segments> crowded_groups() const;
  bool merges_fall_behind() const;
  Status begin_merge();
  Status collect_merge(Merges merges);

  Env* const env_;
  const std::string path_;
  const bool read_only_;
  const StoreOptions options_;
  std::unique_ptr<FileLock> lock_;

  mutable std::mutex writer_mutex_;
  Manifest manifest_;  // families and partitions are in state_
  Segments segments_;  // by id
  CutList cuts_;
  std::unique_ptr<WalWriter> wal_;
  Status failure_;
  bool closed_ = false;
  bool sync_running_ = false;  // a thread syncs the log without writer_mutex_
  std::condition_variable sync_done_;
  uint64_t unsealed_bytes_ = 0;
  std::future<Result<std::vector<Sealing>>> merging_;  // one a group
  const std::shared_ptr<StoreMetrics> metrics_ = std::make_shared<StoreMetrics>();

  mutable std::shared_mutex state_mutex_;
  StoreState state_;
  std::unordered_map<std::string, uint32_t> sources_;
  mutable uint64_t epoch_ = 1;  // grows with each snapshot
};

}  // namespace mc
