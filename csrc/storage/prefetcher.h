// Prefetcher: one thread that brings pages into the PageCache before they are asked for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/result.h"
#include "storage/read_path.h"

namespace mc {

// One request: a future that can be cancelled. Thread safe.
class Prefetch {
 public:
  enum class State : uint8_t { kWaiting, kLoaded, kCancelled, kFailed };

  ~Prefetch();
  State state() const;
  // Blocks until it is no longer waiting.
  State wait();
  Status status() const;  // why it failed
  // Pages that are under way still arrive; the rest is left out.
  void cancel();
  uint64_t page_count() const { return pages_.size(); }
  // A file descriptor that becomes readable when the state is no longer kWaiting; -1 when the
  // system has none left. Owned by this object.
  int descriptor();

 private:
  friend class Prefetcher;
  void finish(State state, Status status);

  std::vector<PagePiece> pages_;                          // without destination
  std::vector<std::shared_ptr<const Segment>> segments_;  // that the pages are of
  uint64_t byte_count_ = 0;
  std::atomic<bool> cancelled_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kWaiting;
  Status status_;
  int event_ = -1;
};

class Prefetcher {
 public:
  explicit Prefetcher(ReadPath& path) : path_(path) {}
  ~Prefetcher() { stop(); }

  // OverBudget when more bytes wait already than ReadOptions::prefetch_bytes allows;
  // InvalidArgument after stop().
  Result<std::shared_ptr<Prefetch>> submit(std::vector<PagePiece> pages,
                                           std::vector<std::shared_ptr<const Segment>> segments);
  // Cancels what waits and joins the thread; whoever waits is woken.
  void stop();
  uint64_t waiting_bytes() const;

 private:
  void work();
  Result<bool> load(Prefetch& prefetch);  // false: cancelled before the end

  ReadPath& path_;
  mutable std::mutex mutex_;
  std::condition_variable has_work_;
  std::deque<std::shared_ptr<Prefetch>> queue_;
  uint64_t waiting_bytes_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace mc
