// Env: everything the store asks of the operating system, behind one seam, so that tests can
// lose, tear and reorder unsynced writes (fault_env.h). What is assumed of a disk is written
// down in io/README.md. All paths are plain strings; errors carry errno and the path.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "io/batch_reader.h"

namespace mc {

// An existing file, opened for reading. Safe to use from many threads.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual uint64_t byte_count() const = 0;  // at the time of opening
  // Reads up to out.size() bytes; returns how many there were before the end of the file.
  virtual Result<size_t> read_at(uint64_t offset, MutableBytes out) const = 0;
  // The same for one of many reads all over the file: the system reads nothing ahead. `direct` goes
  // around its page cache where the file system can; offset, size and address must then be
  // multiples of kDirectAlign.
  virtual Result<size_t> read_scattered_at(uint64_t offset, MutableBytes out, bool direct) const {
    return read_at(offset, out);
  }
  // For a BatchReader of the system: what to read from, or -1.
  virtual int descriptor(bool direct) const { return -1; }
  // Whether these bytes of the mapping can be touched without waiting for a disk.
  virtual bool is_resident(uint64_t offset, uint64_t count) const { return true; }
  // Begins to bring these bytes of the mapping into memory; does not wait, and may do nothing.
  virtual void will_need(uint64_t offset, uint64_t count) const {}
  // The whole file as memory, valid as long as this object. Only for files that no longer change.
  virtual Result<Bytes> map() = 0;
};

// A file opened for writing at explicit offsets. One thread writes at a time; another may sync
// meanwhile, which makes durable what was written before the sync began.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  // The parts one after the other, as one operation where the system can.
  virtual Status write_parts_at(uint64_t offset, std::span<const Bytes> parts) = 0;
  Status write_at(uint64_t offset, Bytes bytes) { return write_parts_at(offset, {&bytes, 1}); }
  virtual Status sync() = 0;  // fdatasync: content is durable on return; the name may not be
  // These bytes are durable on return; what was written before may not be.
  virtual Status write_durably_at(uint64_t offset, Bytes bytes) {
    MC_RETURN_IF_ERROR(write_at(offset, bytes));
    return sync();
  }
};

// Holds the exclusive lock of a store until destroyed.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

enum class WriteMode : uint8_t {
  kTruncate,   // create, or empty what is there
  kOverwrite,  // the file exists and keeps its bytes
  // The same around the system's page cache where the file system can: offsets, sizes and addresses
  // must be multiples of kDirectAlign.
  kDirect,
};

class Env {
 public:
  virtual ~Env() = default;
  virtual Result<std::unique_ptr<ReadableFile>> open_readable(const std::string& path) = 0;
  virtual Result<std::unique_ptr<WritableFile>> open_writable(const std::string& path,
                                                              WriteMode mode) = 0;
  // The best way to read much at once, found by trying; Unsupported when the engine that the
  // options name is not there.
  virtual Result<std::unique_ptr<BatchReader>> batch_reader(const BatchOptions& options) {
    return make_serial_reader();
  }
  // kLocked when another process, or another lock of this process, holds it.
  virtual Result<std::unique_ptr<FileLock>> lock(const std::string& path) = 0;

  virtual Status create_directory(const std::string& path) = 0;  // fine if it exists
  virtual Status sync_directory(const std::string& path) = 0;    // names are durable on return
  virtual Result<std::vector<std::string>> list(const std::string& directory) = 0;  // sorted names
  virtual Status rename(const std::string& from, const std::string& to) = 0;  // atomic, replaces
  virtual Status remove(const std::string& path) = 0;

  virtual uint64_t now_ms() = 0;      // since 1970-01-01 UTC
  virtual uint64_t random_u64() = 0;  // for identities and salts, not for secrets
};

// The operating system of this machine. Never destroyed.
Env* posix_env();

}  // namespace mc
