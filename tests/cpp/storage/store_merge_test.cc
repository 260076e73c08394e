// Merges beside the writer: who waits for whom, and that nothing done meanwhile is undone.
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "format/file_names.h"
#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

// Holds every thread but the one that made it, once it was closed.
class MergeGate {
 public:
  Status pass() {
    if (std::this_thread::get_id() == writer_) return Status::ok();
    std::unique_lock lock(mutex_);
    ++held_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return failure_;
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return held_ > 0; });
  }
  void open(Status failure = Status::ok()) {
    std::lock_guard lock(mutex_);
    failure_ = failure;
    open_ = true;
    changed_.notify_all();
  }

 private:
  const std::thread::id writer_ = std::this_thread::get_id();
  std::mutex mutex_;
  std::condition_variable changed_;
  int held_ = 0;
  bool open_ = false;
  Status failure_;
};

class StoreMerge : public ::testing::Test {
 protected:
  StoreMerge() {
    StoreOptions options = small_options();
    options.merges = MergeMode::kBeside;
    store_ = std::move(Store::create(&env_, kPath, {{"model", "m"}}, options)).value();
    EXPECT_TRUE(store_->add_partition("a", "{}").is_ok());
    EXPECT_TRUE(store_->define_rows("gist", 1, RowType::kF32, kWidth).is_ok());
    env_.set_sync_hook([this] { return gate_.pass(); });
  }
  ~StoreMerge() override {
    gate_.open();
    store_ = nullptr;
  }

  // Blocks with their gist rows; each call is more than one checkpoint's worth.
  void append(uint64_t blocks) {
    std::vector<uint32_t> tokens(blocks * 32);
    for (uint32_t& token : tokens) token = next_++;
    ASSERT_TRUE(store_->append_tokens(0, tokens).is_ok());
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    std::vector<float> rows(blocks * kWidth);
    for (float& value : rows) value = static_cast<float>(next_++);
    put(gists_.size() / kWidth, rows);
  }
  void put(uint64_t first, const std::vector<float>& rows) {
    ASSERT_TRUE(store_->put_rows("gist", 0, first, std::as_bytes(std::span(rows))).is_ok());
    gists_.resize(std::max(gists_.size(), first * kWidth + rows.size()));
    std::copy(rows.begin(), rows.end(),
              gists_.begin() + static_cast<std::ptrdiff_t>(first * kWidth));
  }
  void append_until_a_merge_is_held() {
    while (store_->stats().segment_count < 7) append(40);
    gate_.wait_until_held();
  }

  uint64_t segment_files() const {
    const auto files = env_.files();
    return static_cast<uint64_t>(std::count_if(files.begin(), files.end(), [](const auto& file) {
      const std::string name = file.first.substr(file.first.rfind('/') + 1);
      return parse_file_name(name).kind == FileKind::kSegment;
    }));
  }

  static void expect_shows(const Store& store, const std::vector<uint32_t>& tokens,
                           const std::vector<float>& gists) {
    const Reading reading = read_all(store).value();
    EXPECT_EQ(reading.model.partitions[0].tokens, tokens);
    EXPECT_EQ(reading.model.partitions[0].gists, gists);
    EXPECT_TRUE(store.check().is_ok());
  }
  void expect_all_there() {
    expect_shows(*store_, tokens_, gists_);
    const auto image = env_.crash_image(CrashKind::kLost, 1);
    auto reopened = open_small(image.get());
    ASSERT_TRUE(reopened.is_ok()) << reopened.status().to_string();
    expect_shows(*reopened.value(), tokens_, gists_);
  }

  FaultEnv env_;
  MergeGate gate_;
  std::unique_ptr<Store> store_;
  uint32_t next_ = 0;
  std::vector<uint32_t> tokens_;
  std::vector<float> gists_;
};

TEST_F(StoreMerge, a_commit_does_not_wait_for_a_merge) {
  append_until_a_merge_is_held();
  const uint64_t before = store_->stats().merge_count;
  append(10);
  ASSERT_TRUE(store_->commit().is_ok());  // would never return if it waited
  EXPECT_EQ(store_->stats().merge_count, before);
  expect_all_there();
  gate_.open();
  ASSERT_TRUE(store_->checkpoint().is_ok());
  EXPECT_GT(store_->stats().merge_count, before);
  expect_all_there();
}

TEST_F(StoreMerge, what_is_written_over_merged_rows_meanwhile_stays_over_them) {
  append_until_a_merge_is_held();
  put(3, {-1, -2, -3, -4, -5, -6});  // stays in memory
  put(20, {-7, -8, -9});
  append(45);  // seals both, in a segment above the one being merged
  put(20, {-10, -11, -12});
  ASSERT_TRUE(store_->commit().is_ok());
  gate_.open();
  ASSERT_TRUE(store_->checkpoint().is_ok());
  expect_all_there();
}

TEST_F(StoreMerge, what_is_cut_meanwhile_does_not_come_back) {
  append_until_a_merge_is_held();
  const std::vector<uint32_t> ending = {5, 6, 7};
  ASSERT_TRUE(store_->replace_tail(0, {.kept_tokens = 320, .tokens = ending}).is_ok());
  tokens_.resize(320);
  tokens_.insert(tokens_.end(), ending.begin(), ending.end());
  gists_.resize(10 * kWidth);
  ASSERT_TRUE(store_->commit().is_ok());
  expect_all_there();
  gate_.open();
  ASSERT_TRUE(store_->checkpoint().is_ok());
  expect_all_there();
  append(30);
  ASSERT_TRUE(store_->checkpoint().is_ok());
}

TEST_F(StoreMerge, a_family_dropped_meanwhile_stays_dropped) {
  append_until_a_merge_is_held();
  ASSERT_TRUE(store_->drop_rows("gist").is_ok());
  ASSERT_TRUE(store_->define_rows("gist", 1, RowType::kF32, kWidth).is_ok());
  gists_.clear();
  gate_.open();
  ASSERT_TRUE(store_->checkpoint().is_ok());
  put(0, {1, 2, 3});
  ASSERT_TRUE(store_->checkpoint().is_ok());
  expect_all_there();
  EXPECT_EQ(segment_files(), store_->stats().segment_count);
}

TEST_F(StoreMerge, one_that_fails_fails_the_store_and_loses_nothing) {
  append_until_a_merge_is_held();
  append(10);
  ASSERT_TRUE(store_->commit().is_ok());
  gate_.open(Status::io_error("no space", ENOSPC));
  EXPECT_FALSE(store_->checkpoint().is_ok());
  EXPECT_EQ(store_->commit().code(), StatusCode::kStoreFailed);
  EXPECT_EQ(store_->append_tokens(0, tokens_).status().code(), StatusCode::kStoreFailed);
  expect_all_there();
}

TEST_F(StoreMerge, a_crash_during_it_leaves_what_was_there) {
  append_until_a_merge_is_held();
  append(10);
  ASSERT_TRUE(store_->commit().is_ok());
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const auto image = env_.crash_image(CrashKind::kTorn, seed);
    auto reopened = open_small(image.get());
    ASSERT_TRUE(reopened.is_ok()) << reopened.status().to_string();
    expect_shows(*reopened.value(), tokens_, gists_);
  }
}

TEST_F(StoreMerge, a_writer_far_ahead_waits) {
  append_until_a_merge_is_held();
  const uint64_t families = 2;  // that get rows here
  const uint64_t bound = families * (2 * small_options().most_segments_per_family + 1);
  // The files say it: the store itself does not answer while its writer waits.
  std::thread opener([&] {
    while (segment_files() < bound) std::this_thread::yield();
    gate_.open();
  });
  uint64_t most = 0;
  for (int i = 0; i < 60; ++i) {
    append(40);
    most = std::max(most, store_->stats().segment_count);
  }
  opener.join();
  EXPECT_LE(most, bound + families);  // a seal adds one of each before the writer waits
  ASSERT_TRUE(store_->checkpoint().is_ok());
  expect_all_there();
}

TEST_F(StoreMerge, readers_see_the_same_before_and_behind_it) {
  gate_.open();
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    while (!stop) {
      const auto snapshot = store_->snapshot();
      const uint64_t count = snapshot->row_count("gist", 0).value();
      std::vector<float> rows(count * kWidth);
      ASSERT_TRUE(
          snapshot->read_rows("gist", 0, {0, count}, std::as_writable_bytes(std::span(rows)))
              .is_ok());
      for (uint64_t row = 0; row < count; ++row) ASSERT_GE(rows[row * kWidth], 0);
    }
  });
  for (int i = 0; i < 100; ++i) append(20);
  stop = true;
  reader.join();
  EXPECT_GT(store_->stats().merge_count, 0u);
  ASSERT_TRUE(store_->checkpoint().is_ok());
  expect_all_there();
}

}  // namespace
}  // namespace mc
