// BatchReader: many reads at places all over several files, as many at once as the disk likes.
// io_uring where the system has it, else a pool of threads with pread; Env chooses by trying.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace mc {

class ReadableFile;

// A read around the page cache of the system needs address, offset and size in multiples of this.
inline constexpr uint64_t kDirectAlign = 4096;

struct BatchRead {
  const ReadableFile* file = nullptr;
  uint64_t offset = 0;
  MutableBytes out;
  // Filled by the reader:
  Status status;
  size_t byte_count = 0;  // less than out.size() only at the end of the file
};

enum class BatchEngine : uint8_t { kAuto = 0, kUring = 1, kThreads = 2 };

struct BatchOptions {
  BatchEngine engine = BatchEngine::kAuto;
  uint32_t depth = 64;  // reads at once
  // Around the system's page cache where the file system can; every read must then be aligned.
  bool direct = false;
};

class BatchReader {
 public:
  virtual ~BatchReader() = default;
  // Does all of `reads`. Calls done(i), on the calling thread and in any order, when reads[i] is
  // complete, while others are still under way. Safe from many threads.
  virtual void read(std::span<BatchRead> reads, const std::function<void(size_t)>& done) = 0;
  virtual std::string_view name() const = 0;
};

// One read after the other, on the calling thread.
std::unique_ptr<BatchReader> make_serial_reader();
// At most `depth` threads, started when first needed.
std::unique_ptr<BatchReader> make_thread_reader(const BatchOptions& options);
// Unsupported where the kernel has no io_uring or forbids it.
Result<std::unique_ptr<BatchReader>> make_uring_reader(const BatchOptions& options);

}  // namespace mc
