// FaultEnv: a file system in memory that keeps apart what was written and what was synced, so a
// test can ask what a crash could have left. Deterministic; safe from many threads.
//
//   FaultEnv env;
//   env.stop_after(17);            // operation 18 and all later ones fail, as if the power went
//   run_workload(&env);
//   auto image = env.crash_image(CrashKind::kTorn, /*seed=*/3);   // reopen this one
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "io/env.h"

namespace mc {

// What becomes of bytes and names that were not synced.
enum class CrashKind : uint8_t {
  kLost,  // none of it reached the disk
  kKept,  // all of it did (a kill -9: the page cache survives)
  kTorn,  // each 512-byte sector on its own; names: a prefix of the operations, in order
};

class FaultEnv final : public Env {
 public:
  FaultEnv() = default;

  Result<std::unique_ptr<ReadableFile>> open_readable(const std::string& path) override;
  Result<std::unique_ptr<WritableFile>> open_writable(const std::string& path,
                                                      WriteMode mode) override;
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override;
  Status create_directory(const std::string& path) override;
  Status sync_directory(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& directory) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status remove(const std::string& path) override;
  uint64_t now_ms() override { return 1'700'000'000'000; }
  uint64_t random_u64() override;

  // Operations are writes, syncs and changes of names, counted from 1.
  uint64_t operation_count() const;
  uint64_t sync_count() const;
  void stop_after(uint64_t operation);                        // that one is the last that works
  void stop_after_sync(uint64_t sync);                        // 0: the first sync already fails
  void fail_operation(uint64_t operation, int error_number);  // only that one
  void set_capacity(uint64_t byte_count);                     // ENOSPC beyond it
  // Called at the start of each sync of a file, without any lock; its error is the sync's.
  void set_sync_hook(std::function<Status()> hook);
  // Reads of files (not of mappings) of this many bytes in all work, then all fail. EIO, say.
  void fail_reads_after(uint64_t byte_count, int error_number);

  // The process dies and the machine goes on: its locks are free, what it wrote is there but not
  // synced. Objects it had open must not be used any more; not destroyed either.
  void kill();
  // A new file system as a crash now would leave it.
  std::unique_ptr<FaultEnv> crash_image(CrashKind kind, uint64_t seed) const;

  // Direct access for corruption tests: files with their paths, all bytes, all durable.
  std::map<std::string, std::vector<std::byte>> files() const;
  void set_file(const std::string& path, std::vector<std::byte> bytes);
  std::unique_ptr<FaultEnv> copy() const { return crash_image(CrashKind::kKept, 0); }

 private:
  friend class FaultReadableFile;
  friend class FaultWritableFile;
  friend class FaultLock;

  struct UnsyncedWrite {
    uint64_t offset;
    std::vector<std::byte> bytes;
  };
  struct Inode {
    std::vector<std::byte> live;
    std::vector<std::byte> durable;
    std::vector<UnsyncedWrite> unsynced;
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  Status begin_operation(const std::string& path, bool is_sync);
  Status begin_read(uint64_t byte_count) const;
  uint64_t used_bytes() const;
  void change_names(std::function<void(Names&)> change);
  static std::vector<std::byte> crashed_bytes(const Inode& inode, CrashKind kind, uint64_t& state);

  mutable std::mutex mutex_;
  Names live_names_, durable_names_;
  std::vector<std::function<void(Names&)>> unsynced_name_changes_;
  std::set<std::string> directories_, locked_;
  uint64_t operations_ = 0, syncs_ = 0, random_state_ = 0x9E3779B97F4A7C15;
  std::optional<uint64_t> stop_after_, stop_after_sync_, capacity_;
  std::map<uint64_t, int> failures_;
  std::function<Status()> sync_hook_;
  mutable std::optional<std::pair<uint64_t, int>> read_failure_;  // bytes left, errno
};

}  // namespace mc
