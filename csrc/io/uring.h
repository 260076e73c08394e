// Ring: one io_uring of the kernel, by raw system calls, for reads only. One thread at a time.
#pragma once

#include <linux/io_uring.h>

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "io/batch_reader.h"

namespace mc {

class Ring {
 public:
  // Unsupported when the kernel has no io_uring, forbids it, or lacks its plain read.
  static Result<std::unique_ptr<Ring>> create(uint32_t depth);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // As BatchReader::read. `descriptors[i]` is the open file of reads[i].
  void run(std::span<BatchRead> reads, std::span<const int> descriptors,
           const std::function<void(size_t)>& done);

 private:
  Ring() = default;
  Status map(const io_uring_params& params);
  bool can_read() const;
  void push(const BatchRead& read, int descriptor, size_t index);
  // Hands `count` pushed entries to the kernel and waits until `wanted` are finished; returns how
  // many it took.
  uint32_t submit(uint32_t count, uint32_t wanted);
  // Takes what the kernel has finished, and returns how much that is: reads that ended go to
  // `landed`, those that are to be submitted once more to `again`.
  uint32_t reap(std::span<BatchRead> reads, std::vector<size_t>& again,
                std::vector<size_t>& landed);

  int fd_ = -1;
  uint32_t depth_ = 0;
  void* queues_ = nullptr;  // both rings
  size_t queues_bytes_ = 0;
  io_uring_sqe* entries_ = nullptr;
  size_t entries_bytes_ = 0;
  uint32_t *submit_tail_ = nullptr, *submit_array_ = nullptr;
  uint32_t *done_head_ = nullptr, *done_tail_ = nullptr;
  uint32_t submit_mask_ = 0, done_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
};

}  // namespace mc
