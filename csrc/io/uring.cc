#include "io/uring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/str_cat.h"
#include "io/env.h"

namespace mc {
namespace {

template <class T>
T* at(void* base, uint32_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(base) + offset);
}

Status unsupported(const char* call) {
  const int error = errno;
  return Status::unsupported(str_cat("[batch_reader] ", call, ": ", std::strerror(error)));
}

}  // namespace

Result<std::unique_ptr<Ring>> Ring::create(uint32_t depth) {
  std::unique_ptr<Ring> ring(new Ring);
  io_uring_params params{};
  params.flags = IORING_SETUP_CLAMP;
  ring->fd_ = static_cast<int>(::syscall(__NR_io_uring_setup, depth, &params));
  if (ring->fd_ < 0) return unsupported("io_uring_setup");
  if (!(params.features & IORING_FEAT_SINGLE_MMAP) || !ring->can_read()) {
    return Status::unsupported("[batch_reader] the kernel's io_uring is older than 5.6");
  }
  MC_RETURN_IF_ERROR(ring->map(params));
  ring->depth_ = std::min(depth, params.sq_entries);
  return ring;
}

Ring::~Ring() {
  if (entries_ != nullptr) ::munmap(entries_, entries_bytes_);
  if (queues_ != nullptr) ::munmap(queues_, queues_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

bool Ring::can_read() const {
  constexpr size_t kOps = IORING_OP_READ + 1;
  alignas(io_uring_probe)
      std::byte memory[sizeof(io_uring_probe) + kOps * sizeof(io_uring_probe_op)]{};
  const long got = ::syscall(__NR_io_uring_register, fd_, IORING_REGISTER_PROBE, memory, kOps);
  const auto* probe = reinterpret_cast<const io_uring_probe*>(memory);
  return got >= 0 && probe->ops_len >= kOps &&
         (probe->ops[IORING_OP_READ].flags & IO_URING_OP_SUPPORTED);
}

Status Ring::map(const io_uring_params& params) {
  const size_t submit_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  const size_t done_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  const int access = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  queues_bytes_ = std::max(submit_bytes, done_bytes);
  void* queues = ::mmap(nullptr, queues_bytes_, access, flags, fd_, IORING_OFF_SQ_RING);
  if (queues == MAP_FAILED) return unsupported("mmap");
  queues_ = queues;
  entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  void* entries = ::mmap(nullptr, entries_bytes_, access, flags, fd_, IORING_OFF_SQES);
  if (entries == MAP_FAILED) return unsupported("mmap");
  entries_ = static_cast<io_uring_sqe*>(entries);
  submit_tail_ = at<uint32_t>(queues, params.sq_off.tail);
  submit_array_ = at<uint32_t>(queues, params.sq_off.array);
  submit_mask_ = *at<uint32_t>(queues, params.sq_off.ring_mask);
  done_head_ = at<uint32_t>(queues, params.cq_off.head);
  done_tail_ = at<uint32_t>(queues, params.cq_off.tail);
  done_mask_ = *at<uint32_t>(queues, params.cq_off.ring_mask);
  completions_ = at<io_uring_cqe>(queues, params.cq_off.cqes);
  return Status::ok();
}

// The kernel reads an entry when it is submitted, so the place is free again after enter().
void Ring::push(const BatchRead& read, int descriptor, size_t index) {
  const uint32_t tail = *submit_tail_;
  io_uring_sqe& entry = entries_[tail & submit_mask_];
  std::memset(&entry, 0, sizeof(entry));
  entry.opcode = IORING_OP_READ;
  entry.fd = descriptor;
  entry.addr = reinterpret_cast<uint64_t>(read.out.data() + read.byte_count);
  entry.len = static_cast<uint32_t>(std::min<size_t>(read.out.size() - read.byte_count, 1 << 30));
  entry.off = read.offset + read.byte_count;
  entry.user_data = index;
  submit_array_[tail & submit_mask_] = tail & submit_mask_;
  std::atomic_ref(*submit_tail_).store(tail + 1, std::memory_order_release);
}

uint32_t Ring::submit(uint32_t count, uint32_t wanted) {
  const long got = ::syscall(__NR_io_uring_enter, fd_, count, wanted, IORING_ENTER_GETEVENTS,
                             nullptr, size_t{0});
  if (got >= 0) return static_cast<uint32_t>(got);
  const bool passing = errno == EINTR || errno == EAGAIN || errno == EBUSY;
  // Buffers are in the kernel's hands: there is no way back, and no such error is known.
  if (!passing) assertion_failed(std::strerror(errno), __FILE__, __LINE__);
  return 0;
}

uint32_t Ring::reap(std::span<BatchRead> reads, std::vector<size_t>& again,
                    std::vector<size_t>& landed) {
  uint32_t reaped = 0;
  uint32_t head = *done_head_;
  while (head != std::atomic_ref(*done_tail_).load(std::memory_order_acquire)) {
    const io_uring_cqe completion = completions_[head & done_mask_];
    std::atomic_ref(*done_head_).store(++head, std::memory_order_release);
    ++reaped;
    const auto index = static_cast<size_t>(completion.user_data);
    BatchRead& read = reads[index];
    if (completion.res == -EINTR || completion.res == -EAGAIN) {
      again.push_back(index);
      continue;
    }
    if (completion.res > 0) read.byte_count += static_cast<size_t>(completion.res);
    if (completion.res > 0 && read.byte_count < read.out.size()) {
      again.push_back(index);  // a short read: the rest, or the end of the file
      continue;
    }
    if (completion.res < 0) {
      read.status = Status::io_error(
          str_cat("read at ", read.offset, ": ", std::strerror(-completion.res)), -completion.res);
    }
    landed.push_back(index);
  }
  return reaped;
}

void Ring::run(std::span<BatchRead> reads, std::span<const int> descriptors,
               const std::function<void(size_t)>& done) {
  std::vector<size_t> again, landed;
  size_t next = 0, ended = 0;
  uint32_t unsubmitted = 0, in_flight = 0;  // in_flight counts the unsubmitted ones
  while (ended < reads.size()) {
    while (in_flight < depth_ && (!again.empty() || next < reads.size())) {
      const size_t index = again.empty() ? next++ : again.back();
      if (!again.empty()) again.pop_back();
      push(reads[index], descriptors[index], index);
      ++unsubmitted, ++in_flight;
    }
    // The queue is filled before what landed is handed on, so that the disk is busy meanwhile.
    // Waiting for several at a time saves system calls; most of the queue stays full.
    const uint32_t wanted = landed.empty() ? std::max(1u, in_flight / 8) : 0;
    if (unsubmitted > 0 || wanted > 0) unsubmitted -= submit(unsubmitted, wanted);
    for (const size_t index : landed) done(index);
    ended += landed.size();
    landed.clear();
    in_flight -= reap(reads, again, landed);
  }
}

namespace {

// Rings for as many threads as read at once; each thread borrows one.
class UringReader final : public BatchReader {
 public:
  UringReader(const BatchOptions& options, std::unique_ptr<Ring> first) : options_(options) {
    idle_.push_back(std::move(first));
  }

  void read(std::span<BatchRead> reads, const std::function<void(size_t)>& done) override {
    std::vector<int> descriptors;
    descriptors.reserve(reads.size());
    for (const BatchRead& read : reads) {
      descriptors.push_back(read.file->descriptor(options_.direct));
    }
    std::unique_ptr<Ring> ring = borrow();
    if (ring == nullptr) return fallback_->read(reads, done);
    ring->run(reads, descriptors, done);
    std::lock_guard guard(mutex_);
    idle_.push_back(std::move(ring));
  }

  std::string_view name() const override { return "io_uring"; }

 private:
  // Null when the system gives no further ring (its memory is limited); threads serve then.
  std::unique_ptr<Ring> borrow() {
    std::lock_guard guard(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Ring> ring = std::move(idle_.back());
      idle_.pop_back();
      return ring;
    }
    auto made = Ring::create(options_.depth);
    if (made.is_ok()) return std::move(made).value();
    if (fallback_ == nullptr) fallback_ = make_thread_reader(options_);
    return nullptr;
  }

  const BatchOptions options_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Ring>> idle_;
  std::unique_ptr<BatchReader> fallback_;
};

}  // namespace

Result<std::unique_ptr<BatchReader>> make_uring_reader(const BatchOptions& options) {
  MC_ASSIGN_OR_RETURN(auto ring, Ring::create(options.depth));
  return std::unique_ptr<BatchReader>(new UringReader(options, std::move(ring)));
}

}  // namespace mc
