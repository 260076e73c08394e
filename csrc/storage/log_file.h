// LogFile: one file of the write-ahead log. One thread may make it durable while another appends:
// turns, taken under the owner's lock, say in which order the writes reach the file.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "io/aligned_buffer.h"
#include "io/env.h"

namespace mc {

class LogFile {
 public:
  explicit LogFile(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}

  // Not thread safe: the owner's lock guards it. Each turn must be used, once.
  uint64_t take_turn() { return turns_taken_++; }

  // Waits for the turn, then writes `bytes` (none: nothing) and, if `durably`, makes everything
  // durable that was written so far. After a failure every later turn fails: the system reports
  // lost pages once only.
  Status write(uint64_t turn, uint64_t offset, Bytes bytes, bool durably);

 private:
  Status write_in_turn(uint64_t offset, Bytes bytes, bool durably);

  std::unique_ptr<WritableFile> file_;
  uint64_t turns_taken_ = 0;
  std::mutex mutex_;
  std::condition_variable turn_ended_;
  uint64_t turn_ = 0;      // whose it is
  bool unsynced_ = false;  // something was written and not made durable
  Status status_;          // of the writes so far
};

}  // namespace mc
