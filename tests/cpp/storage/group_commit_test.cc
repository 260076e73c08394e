// Many writers, one disk: how many syncs they cost, what a failed one does to all of them, and how
// much memory a fast writer can take.
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

std::unique_ptr<Store> make(FaultEnv& env, const StoreOptions& options) {
  auto store = Store::create(&env, kPath, {{"model", "m"}}, options);
  EXPECT_TRUE(store.is_ok()) << store.status().to_string();
  return std::move(store).value();
}

const Metric& find(const std::vector<Metric>& metrics, const std::string& name) {
  for (const Metric& metric : metrics) {
    if (metric.name == name) return metric;
  }
  ADD_FAILURE() << name << " is not a metric";
  return metrics.front();
}

// Holds syncs until it is opened.
class SyncGate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    --waiting_;
  }
  void wait_for_one() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

constexpr int kThreads = 8;

// The first commit of `threads` is held in its sync until the others have come to theirs.
std::vector<Status> commit_together(Store& store, FaultEnv& env) {
  std::vector<Status> results(kThreads);
  SyncGate gate;
  env.set_sync_hook([&gate] {
    gate.pass();
    return Status::ok();
  });
  const uint64_t commits_before = find(store.metrics(), "commit_count").value;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const uint32_t token = static_cast<uint32_t>(i);
      results[i] = store.append_tokens(0, {&token, 1}).status();
      if (results[i].is_ok()) results[i] = store.commit();
    });
    if (i == 0) gate.wait_for_one();
  }
  // Appends go on while the first one's sync is held, so all of them get to their commit.
  while (find(store.metrics(), "commit_count").value < commits_before + kThreads) {
    std::this_thread::yield();
  }
  gate.open();
  for (std::thread& thread : threads) thread.join();
  env.set_sync_hook({});
  return results;
}

TEST(GroupCommit, threads_that_meet_share_one_sync) {
  FaultEnv env;
  auto store = make(env, {});
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->commit().is_ok());
  const uint64_t before = store->stats().sync_count;
  for (const Status& status : commit_together(*store, env)) EXPECT_TRUE(status.is_ok());
  EXPECT_EQ(store->stats().sync_count - before, 2u);  // the held one, and one for the other seven
  auto image = env.crash_image(CrashKind::kLost, 1);
  auto reopened = Store::open(image.get(), kPath);
  ASSERT_TRUE(reopened.is_ok());
  EXPECT_EQ(reopened.value()->token_count(0).value(), uint64_t{kThreads});
}

TEST(GroupCommit, a_failed_sync_fails_every_commit_that_waited_for_it_and_all_later_ones) {
  FaultEnv env;
  auto store = make(env, {});
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->commit().is_ok());
  env.stop_after_sync(env.sync_count());
  for (const Status& status : commit_together(*store, env)) EXPECT_FALSE(status.is_ok());
  EXPECT_EQ(store->commit().code(), StatusCode::kStoreFailed);
  EXPECT_EQ(store->add_partition("b", "{}").status().code(), StatusCode::kStoreFailed);
  EXPECT_EQ(store->token_count(0).value(), uint64_t{kThreads});  // reads go on
}

// The system reports lost pages to one caller only: whoever syncs the file next must not be told
// that all is well.
TEST(GroupCommit, a_sync_that_failed_once_is_not_retried_by_the_next_file) {
  FaultEnv env;
  StoreOptions options;
  options.wal_first_file_bytes = options.wal_most_file_bytes = 4096;
  auto store = make(env, options);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->commit().is_ok());
  SyncGate gate;
  std::atomic<bool> first = true;
  env.set_sync_hook([&] {
    gate.pass();
    return first.exchange(false) ? Status::io_error("lost pages", EIO) : Status::ok();
  });
  std::thread committer([&] {
    const std::vector<uint32_t> few(10);
    EXPECT_TRUE(store->append_tokens(0, few).is_ok());
    EXPECT_FALSE(store->commit().is_ok());
  });
  gate.wait_for_one();
  std::atomic<bool> started = false;
  std::thread writer([&] {
    started = true;
    const std::vector<uint32_t> many(4096);  // needs a new file, which needs the old one synced
    EXPECT_FALSE(store->append_tokens(0, many).is_ok());
  });
  // Usually the writer now waits for its turn at the old file; the result is the same if not.
  while (!started) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  gate.open();
  committer.join();
  writer.join();
  EXPECT_EQ(store->commit().code(), StatusCode::kStoreFailed);
}

TEST(GroupCommit, many_fast_writers_keep_memory_and_log_bounded) {
  FaultEnv env;
  StoreOptions options = small_options();
  options.unsealed_bytes = 16 << 10;
  auto store = make(env, options);
  std::atomic<uint64_t> most = 0;
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(store->add_partition(std::to_string(i), "{}").is_ok());
  }
  for (uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (uint32_t round = 0; round < 200; ++round) {
        ASSERT_TRUE(store->append_tokens(i, std::vector<uint32_t>(64, round)).is_ok());
        if (round % 16 == 0) {
          ASSERT_TRUE(store->commit().is_ok());
        }
        uint64_t seen = store->stats().unsealed_bytes, before = most;
        while (seen > before && !most.compare_exchange_weak(before, seen)) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most.load(), options.unsealed_bytes);
  ASSERT_TRUE(store->commit().is_ok());
  auto image = env.crash_image(CrashKind::kLost, 2);
  auto reopened = Store::open(image.get(), kPath);
  ASSERT_TRUE(reopened.is_ok()) << reopened.status().to_string();
  for (uint32_t i = 0; i < 4; ++i) {
    std::vector<uint32_t> tokens(200 * 64);
    ASSERT_TRUE(reopened.value()->read_tokens(i, {0, tokens.size()}, tokens).is_ok());
    for (size_t at = 0; at < tokens.size(); ++at) ASSERT_EQ(tokens[at], at / 64);
  }
}

TEST(GroupCommit, metrics_have_unique_names_and_count) {
  FaultEnv env;
  auto store = make(env, small_options());
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  for (int round = 0; round < 50; ++round) {
    ASSERT_TRUE(store->append_tokens(0, std::vector<uint32_t>(100)).is_ok());
    ASSERT_TRUE(store->commit().is_ok());
  }
  const auto metrics = store->metrics();
  std::set<std::string> names;
  for (const Metric& metric : metrics) {
    std::string key = metric.name;
    for (const auto& [label, value] : metric.labels) key += "," + label + "=" + value;
    EXPECT_TRUE(names.insert(key).second) << key;
    EXPECT_FALSE(metric.unit.empty() || metric.help.empty()) << key;
  }
  EXPECT_EQ(find(metrics, "commit_count").value, 50u);
  EXPECT_GT(find(metrics, "sync_count").value, 0u);
  EXPECT_GT(find(metrics, "reclaimed_bytes").value, 0u);
  const Metric& latency = find(metrics, "commit_latency_us");
  ASSERT_EQ(latency.bucket_counts.size(), latency.bucket_bounds.size() + 1);
  uint64_t total = 0;
  for (uint64_t count : latency.bucket_counts) total += count;
  EXPECT_EQ(total, 50u);
}

TEST(Histogram, buckets_are_powers_of_two_and_nothing_is_lost) {
  Histogram histogram;
  for (uint64_t value : {0, 1, 2, 3, 4, 5, 8, 9}) histogram.record(value);
  histogram.record(~uint64_t{0} >> 1);
  const auto counts = histogram.counts();
  EXPECT_EQ(counts[0], 2u);  // 0 and 1
  EXPECT_EQ(counts[1], 1u);  // 2
  EXPECT_EQ(counts[2], 2u);  // 3 and 4
  EXPECT_EQ(counts[3], 2u);  // 5 and 8
  EXPECT_EQ(counts[4], 1u);  // 9
  EXPECT_EQ(counts.back(), 1u);
}

}  // namespace
}  // namespace mc
