#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "io/batch_reader.h"
#include "io/env.h"

namespace mc {
namespace {

void read_one(BatchRead& read, bool direct) {
  auto got = read.file->read_scattered_at(read.offset, read.out, direct);
  read.status = got.status();
  read.byte_count = got.is_ok() ? got.value() : 0;
}

class SerialReader final : public BatchReader {
 public:
  void read(std::span<BatchRead> reads, const std::function<void(size_t)>& done) override {
    for (size_t i = 0; i < reads.size(); ++i) {
      read_one(reads[i], false);
      done(i);
    }
  }
  std::string_view name() const override { return "serial"; }
};

class ThreadReader final : public BatchReader {
 public:
  explicit ThreadReader(const BatchOptions& options) : options_(options) {}
  ~ThreadReader() override {
    {
      std::lock_guard guard(mutex_);
      stopping_ = true;
    }
    has_work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void read(std::span<BatchRead> reads, const std::function<void(size_t)>& done) override {
    Batch batch{reads};
    size_t reported = 0;
    std::unique_lock lock(mutex_);
    const size_t wanted = std::min<size_t>(options_.depth, reads.size());
    while (threads_.size() < wanted) threads_.emplace_back([this] { work(); });
    for (size_t i = 0; i < reads.size(); ++i) queue_.push_back({&batch, i});
    has_work_.notify_all();
    while (reported < reads.size()) {
      batch.has_finished.wait(lock, [&] { return batch.finished.size() > reported; });
      for (; reported < batch.finished.size(); ++reported) {
        const size_t index = batch.finished[reported];
        lock.unlock();
        done(index);
        lock.lock();
      }
    }
  }

  std::string_view name() const override { return "threads"; }

 private:
  struct Batch {
    std::span<BatchRead> reads;
    std::vector<size_t> finished = {};
    std::condition_variable has_finished = {};
  };
  struct Work {
    Batch* batch;
    size_t index;
  };

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      has_work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Work next = queue_.front();
      queue_.pop_front();
      lock.unlock();
      read_one(next.batch->reads[next.index], options_.direct);
      lock.lock();
      next.batch->finished.push_back(next.index);
      next.batch->has_finished.notify_one();
    }
  }

  const BatchOptions options_;
  std::mutex mutex_;
  std::condition_variable has_work_;
  std::deque<Work> queue_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<BatchReader> make_serial_reader() {
  return std::make_unique<SerialReader>();
}

std::unique_ptr<BatchReader> make_thread_reader(const BatchOptions& options) {
  return std::make_unique<ThreadReader>(options);
}

}  // namespace mc
