// WalWriter: appends records to the write-ahead log. Files are pre-written and recycled, and blocks
// go around the page cache, so a commit is one durable write of bytes that already have their place
// on the disk, and no journal commit of the file system. The last block of a commit is written
// again with what comes behind it; its first bytes stay the same, so a torn write loses nothing.
// Not thread safe: Store guards it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "format/wal_frame.h"
#include "format/wal_record.h"
#include "storage/log_file.h"

namespace mc {

struct WalOptions {
  std::string directory;
  StoreId store_id{};
  uint64_t first_file_bytes = 256 << 10;  // the first file; each new one doubles ...
  uint64_t most_file_bytes = 32 << 20;    // ... up to this
  size_t most_spare_files = 3;            // kept to be recycled
};

// Where the next frame goes: a manifest that names it has everything before it.
struct WalPosition {
  uint64_t number = 1;    // of the file
  uint64_t sequence = 1;  // of the frame
};

class WalWriter {
 public:
  // A write outside the owner's lock: run() it, then end_sync(). `file` is null when there is
  // nothing to do.
  struct PendingSync {
    std::shared_ptr<LogFile> file;
    uint64_t turn = 0;
    uint64_t offset = 0;
    AlignedBuffer bytes;
    bool durably = true;
    uint64_t sequence = 0;  // durable afterwards

    Status run() const { return file->write(turn, offset, bytes.bytes(), durably); }
  };

  // Everything before `next` is durable. No file is touched before the first append.
  WalWriter(Env* env, WalOptions options, WalPosition next)
      : env_(env), options_(std::move(options)), next_(next), durable_(next.sequence) {}

  // Buffered, or written when large; not durable on return.
  Status append(const RecordParts& record);
  Status flush();  // the buffer reaches the operating system
  Status sync();   // and the disk
  // The same in two steps, so that appends go on while the disk works: run() in between.
  PendingSync begin_sync();
  void end_sync(PendingSync synced);

  // Makes everything durable and lets the next append begin a new file.
  Result<WalPosition> finish_file();

  uint64_t next_sequence() const { return next_.sequence; }
  uint64_t durable_sequence() const { return durable_; }
  uint64_t byte_count() const { return byte_count_; }      // of frames, by this writer
  uint64_t replay_bytes() const { return replay_bytes_; }  // the same since retire_before
  uint64_t sync_count() const { return sync_count_; }
  uint64_t file_count() const { return inherited_.size() + live_.size(); }

  // Files of earlier writers that still hold something live. They are removed when retired, never
  // recycled: behind a torn end they may hold frames with numbers that are yet to come.
  void inherit(std::vector<uint64_t> numbers, uint64_t byte_count) {
    inherited_ = std::move(numbers);
    replay_bytes_ = byte_count;
  }
  // Files before `number` hold nothing live any more; called when a manifest says so.
  Status retire_before(uint64_t number);
  Status remove_spares(size_t kept);

 private:
  Status start_file(uint64_t record_bytes);
  Status create_file(const std::string& path, uint64_t record_bytes);
  Status recycle_file(const std::string& path);
  Status open_file(const std::string& path);
  Status write_header();
  Status append_frame(uint8_t flags, std::vector<Bytes> pieces, uint64_t payload_bytes);
  Status put(Bytes piece);
  PendingSync hand_over(bool durably);
  std::string path_of(uint64_t number) const;

  Env* env_;
  WalOptions options_;
  WalPosition next_;  // next_.number: the file that will be started next
  uint64_t durable_;
  std::shared_ptr<LogFile> file_;
  WalFileHeader header_;
  uint64_t end_ = 0;  // of the frames in the file, buffered ones included
  uint64_t buffer_offset_ =
      0;                  // of the buffer's first byte in the file, a multiple of kDirectAlign
  AlignedBuffer buffer_;  // the block that is not full yet, then what was not written
  AlignedBuffer spare_buffer_;
  bool unwritten_ = false;                           // the buffer has something new
  std::vector<uint64_t> inherited_, live_, spares_;  // numbers, ascending
  uint64_t byte_count_ = 0;
  uint64_t replay_bytes_ = 0;
  uint64_t sync_count_ = 0;
};

}  // namespace mc
