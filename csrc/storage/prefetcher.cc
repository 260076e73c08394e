#include "storage/prefetcher.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/str_cat.h"

namespace mc {
namespace {

constexpr size_t kPagesAtOnce = 256;  // between two looks at whether it was cancelled

bool same_page(const PagePiece& a, const PagePiece& b) {
  return a.segment == b.segment && a.page == b.page;
}

}  // namespace

Prefetch::~Prefetch() {
  if (event_ >= 0) ::close(event_);
}

Prefetch::State Prefetch::state() const {
  std::lock_guard guard(mutex_);
  return state_;
}

Status Prefetch::status() const {
  std::lock_guard guard(mutex_);
  return status_;
}

Prefetch::State Prefetch::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return state_ != State::kWaiting; });
  return state_;
}

void Prefetch::cancel() {
  cancelled_ = true;
}

int Prefetch::descriptor() {
  std::lock_guard guard(mutex_);
  if (event_ < 0) {
    event_ = ::eventfd(state_ == State::kWaiting ? 0 : 1, EFD_CLOEXEC | EFD_NONBLOCK);
  }
  return event_;
}

void Prefetch::finish(State state, Status status) {
  std::lock_guard guard(mutex_);
  if (state_ != State::kWaiting) return;
  state_ = state;
  status_ = std::move(status);
  if (event_ >= 0) ::eventfd_write(event_, 1);
  changed_.notify_all();
}

Result<std::shared_ptr<Prefetch>> Prefetcher::submit(
    std::vector<PagePiece> pages, std::vector<std::shared_ptr<const Segment>> segments) {
  const auto less = [](const PagePiece& a, const PagePiece& b) {
    return std::pair(a.segment, a.page) < std::pair(b.segment, b.page);
  };
  std::sort(pages.begin(), pages.end(), less);
  pages.erase(std::unique(pages.begin(), pages.end(), same_page), pages.end());
  auto prefetch = std::make_shared<Prefetch>();
  for (PagePiece& page : pages) {
    page.out = nullptr;
    prefetch->byte_count_ += page.segment->header().page_bytes;
  }
  prefetch->pages_ = std::move(pages);
  prefetch->segments_ = std::move(segments);
  path_.metrics().prefetch_count.add();
  path_.metrics().prefetch_pages.add(prefetch->page_count());

  std::lock_guard guard(mutex_);
  if (stopping_) return Status::invalid_argument("[prefetch] store must be open");
  if (prefetch->pages_.empty()) {
    prefetch->finish(Prefetch::State::kLoaded, {});
    return prefetch;
  }
  const uint64_t limit = path_.options().prefetch_bytes;
  if (waiting_bytes_ + prefetch->byte_count_ > limit) {
    return Status::over_budget(str_cat("[prefetch] pages that wait must be <= ", limit,
                                       " bytes, got ", prefetch->byte_count_, " more than the ",
                                       waiting_bytes_, " that wait"));
  }
  waiting_bytes_ += prefetch->byte_count_;
  queue_.push_back(prefetch);
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  has_work_.notify_one();
  return prefetch;
}

void Prefetcher::stop() {
  std::thread thread;
  {
    std::lock_guard guard(mutex_);
    stopping_ = true;
    thread = std::move(thread_);
  }
  has_work_.notify_all();
  if (thread.joinable()) thread.join();
}

uint64_t Prefetcher::waiting_bytes() const {
  std::lock_guard guard(mutex_);
  return waiting_bytes_;
}

void Prefetcher::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    has_work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::shared_ptr<Prefetch> next = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    const auto loaded = load(*next);
    if (!loaded.is_ok()) {
      next->finish(Prefetch::State::kFailed, loaded.status());
    } else if (loaded.value()) {
      next->finish(Prefetch::State::kLoaded, {});
    } else {
      path_.metrics().prefetch_cancelled_count.add();
      next->finish(Prefetch::State::kCancelled, {});
    }
    lock.lock();
    waiting_bytes_ -= next->byte_count_;
  }
}

Result<bool> Prefetcher::load(Prefetch& prefetch) {
  const std::vector<PagePiece>& pages = prefetch.pages_;
  for (size_t at = 0; at < pages.size(); at += kPagesAtOnce) {
    if (prefetch.cancelled_ || stopping_) return false;
    const size_t count = std::min(kPagesAtOnce, pages.size() - at);
    std::vector<PagePiece> part(pages.begin() + static_cast<ptrdiff_t>(at),
                                pages.begin() + static_cast<ptrdiff_t>(at + count));
    MC_RETURN_IF_ERROR(path_.read(part, true));
  }
  return true;
}

}  // namespace mc
