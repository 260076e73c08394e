// Rows that are not in memory: every mode and engine gives the same bytes, nothing damaged passes,
// neighbours are one read, and prefetching ends in good order.
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <random>
#include <thread>

#include "storage/prefetcher.h"
#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

constexpr uint32_t kRowWidth = 1024;  // f32: a page a row
constexpr uint64_t kRows = 640;

std::vector<float> row_values(uint64_t first, uint64_t count, uint32_t width, float scale) {
  std::vector<float> values(count * width);
  for (uint64_t i = 0; i < values.size(); ++i) {
    values[i] = scale * static_cast<float>(first * width + i);
  }
  return values;
}

StoreOptions options_for(ReadMode mode, BatchEngine engine = BatchEngine::kAuto) {
  StoreOptions options;
  options.reads.mode = mode;
  options.reads.engine = engine;
  options.reads.page_cache_bytes = 200 * 4096;
  return options;
}

// Two families over two partitions, sealed in several segments, the end not sealed.
void fill(Store& store) {
  ASSERT_TRUE(store.define_rows("wide", 1, RowType::kF32, kRowWidth).is_ok());
  ASSERT_TRUE(store.define_rows("odd", 1, RowType::kF32, 7).is_ok());
  for (uint32_t p = 0; p < 2; ++p) {
    ASSERT_TRUE(store.add_partition(std::to_string(p), "{}").is_ok());
    std::vector<uint32_t> tokens(kRows * 32);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i * (p + 1));
    ASSERT_TRUE(store.append_tokens(p, tokens).is_ok());
  }
  const auto put = [&](const char* name, uint32_t p, uint64_t first, uint64_t count,
                       uint32_t width) {
    const auto values = row_values(first, count, width, p == 0 ? 1.0f : -1.0f);
    ASSERT_TRUE(store.put_rows(name, p, first, std::as_bytes(std::span(values))).is_ok());
  };
  for (uint64_t first = 0; first < kRows; first += 160) {
    for (uint32_t p = 0; p < 2; ++p) {
      put("wide", p, first, 160, kRowWidth);
      put("odd", p, first, 160, 7);
    }
    if (first + 160 < kRows) {
      ASSERT_TRUE(store.checkpoint().is_ok());
    }
  }
}

// One call over both families and partitions, compared with what was put.
void gather_randomly(const RowReader& reader, uint32_t seed, size_t count) {
  std::mt19937 random(seed);
  std::vector<uint32_t> partitions;
  std::vector<uint64_t> indices;
  for (size_t i = 0; i < count; ++i) {
    partitions.push_back(random() % 2);
    indices.push_back(random() % kRows);
  }
  std::vector<float> wide(count * kRowWidth, -1), odd(count * 7, -1);
  const std::vector<GatherPart> parts = {
      {{"wide", partitions, indices}, std::as_writable_bytes(std::span(wide))},
      {{"odd", partitions, indices}, std::as_writable_bytes(std::span(odd))}};
  const Status status = reader.gather(parts);
  ASSERT_TRUE(status.is_ok()) << status.to_string();
  for (size_t i = 0; i < count; ++i) {
    const float scale = partitions[i] == 0 ? 1.0f : -1.0f;
    const auto wanted = row_values(indices[i], 1, kRowWidth, scale);
    ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), wide.begin() + i * kRowWidth)) << i;
    const auto small = row_values(indices[i], 1, 7, scale);
    ASSERT_TRUE(std::equal(small.begin(), small.end(), odd.begin() + i * 7)) << i;
  }
}

uint64_t metric(const Store& store, const std::string& name) {
  for (const Metric& one : store.metrics()) {
    if (one.name == name) return one.value;
  }
  ADD_FAILURE() << name;
  return 0;
}

class ColdRead : public ::testing::TestWithParam<std::tuple<ReadMode, BatchEngine>> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mc_cold_XXXXXX";
    directory_ = ::mkdtemp(name);
    const auto [mode, engine] = GetParam();
    if (!posix_env()->batch_reader({.engine = engine}).is_ok()) GTEST_SKIP() << "no io_uring here";
    auto made = Store::create(posix_env(), directory_ + "/store", {}, options_for(mode, engine));
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    store_ = std::move(made).value();
    fill(*store_);
  }
  void TearDown() override {
    store_ = nullptr;
    std::filesystem::remove_all(directory_);
  }
  std::string directory_;
  std::unique_ptr<Store> store_;
};

TEST_P(ColdRead, gathers_over_families_and_partitions_equal_what_was_put) {
  for (size_t count : {0, 1, 33, 1000}) gather_randomly(*store_, 1, count);
  const auto snapshot = store_->snapshot();
  ASSERT_TRUE(store_->close().is_ok());
  store_ = nullptr;
  gather_randomly(*snapshot, 2, 100);  // a snapshot outlives its store
}

TEST_P(ColdRead, ranges_equal_what_was_put) {
  std::vector<uint32_t> tokens(kRows * 32 - 11);
  ASSERT_TRUE(store_->read_tokens(1, {5, 5 + tokens.size()}, tokens).is_ok());
  for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(tokens[i], 2 * (i + 5));
  std::vector<float> rows(600 * kRowWidth);
  ASSERT_TRUE(
      store_->read_rows("wide", 0, {20, 620}, std::as_writable_bytes(std::span(rows))).is_ok());
  EXPECT_EQ(rows, row_values(20, 600, kRowWidth, 1.0f));
}

TEST_P(ColdRead, readers_beside_a_writer_that_seals_and_merges) {
  std::atomic<bool> done = false;
  std::vector<std::thread> readers;
  for (uint32_t i = 0; i < 3; ++i) {
    readers.emplace_back([&, i] {
      for (uint32_t round = 0; !done || round < 3; ++round) {
        gather_randomly(*store_, 100 * i + round, 40);
        const std::vector<uint32_t> partitions(8);
        const std::vector<uint64_t> indices = {1, 2, 3, 50, 51, 52, 300, round % kRows};
        const GatherRequest request{"wide", partitions, indices};
        auto prefetch = store_->prefetch({&request, 1});
        ASSERT_TRUE(prefetch.is_ok()) << prefetch.status().to_string();
        if (round % 2 == 0) prefetch.value()->cancel();
        ASSERT_NE(prefetch.value()->wait(), Prefetch::State::kFailed);
      }
    });
  }
  for (uint32_t round = 0; round < 20; ++round) {
    ASSERT_TRUE(store_->append_tokens(0, std::vector<uint32_t>(64, round)).is_ok());
    ASSERT_TRUE(store_->checkpoint().is_ok());
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_TRUE(store_->check().is_ok());
}

INSTANTIATE_TEST_SUITE_P(Modes, ColdRead,
                         ::testing::Values(std::tuple(ReadMode::kAuto, BatchEngine::kAuto),
                                           std::tuple(ReadMode::kMapped, BatchEngine::kAuto),
                                           std::tuple(ReadMode::kDirect, BatchEngine::kUring),
                                           std::tuple(ReadMode::kDirect, BatchEngine::kThreads)));

std::unique_ptr<Store> direct_store(FaultEnv& env, StoreOptions options) {
  auto store = std::move(Store::create(&env, kPath, {}, options)).value();
  fill(*store);
  EXPECT_TRUE(store->checkpoint().is_ok());
  return store;
}

TEST(ColdReadFaults, expanding_blocks_is_one_read_each) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  for (uint64_t block : {0, 7, 11}) {
    const uint64_t before = metric(*store, "disk_read_count");
    std::vector<uint64_t> children(32);
    for (uint64_t i = 0; i < 32; ++i) children[i] = 31 - i + 32 * block;  // in any order
    std::vector<float> out(32 * kRowWidth);
    const std::vector<uint32_t> partitions(32, 1);
    ASSERT_TRUE(
        store->gather_rows({"wide", partitions, children}, std::as_writable_bytes(std::span(out)))
            .is_ok());
    EXPECT_EQ(metric(*store, "disk_read_count") - before, 1u);
  }
}

TEST(ColdReadFaults, a_second_gather_is_served_by_the_page_cache) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  gather_randomly(*store, 5, 60);
  const uint64_t pages = metric(*store, "disk_pages");
  EXPECT_GT(pages, 50u);
  gather_randomly(*store, 5, 60);
  EXPECT_EQ(metric(*store, "disk_pages"), pages);
  EXPECT_GT(metric(*store, "cache_hit_pages"), 50u);
}

TEST(ColdReadFaults, a_read_error_is_an_error_and_the_next_read_works) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  env.fail_reads_after(10 * 4096, EIO);
  const std::vector<uint32_t> partitions(64);
  std::vector<uint64_t> indices(64);
  for (uint64_t i = 0; i < 64; ++i) indices[i] = 9 * i;
  std::vector<float> out(64 * kRowWidth);
  const Status failed =
      store->gather_rows({"wide", partitions, indices}, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(failed.error_number(), EIO);
  EXPECT_NE(failed.message().find(".mcs"), std::string::npos) << failed.message();
  env.fail_reads_after(~uint64_t{0}, EIO);
  gather_randomly(*store, 6, 50);
  EXPECT_TRUE(store->commit().is_ok());  // a failed read does not fail the store
}

TEST(ColdReadFaults, a_flipped_bit_is_never_returned) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  ASSERT_TRUE(store->close().is_ok());
  store = nullptr;
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    auto damaged = env.copy();
    auto files = damaged->files();
    std::erase_if(files, [](const auto& file) { return !file.first.ends_with(".mcs"); });
    auto victim = std::next(files.begin(), random() % files.size());
    auto bytes = victim->second;
    bytes[4096 + random() % (bytes.size() - 4096)] ^= static_cast<std::byte>(1 << random() % 8);
    damaged->set_file(victim->first, bytes);
    auto opened =
        Store::open(damaged.get(), kPath,
                    {.read_only = true, .identity = {}, .options = options_for(ReadMode::kDirect)});
    if (!opened.is_ok()) continue;  // the header was hit
    std::vector<uint32_t> tokens(kRows * 32);
    std::vector<float> wide(kRows * kRowWidth), odd(kRows * 7);
    Status status;
    for (uint32_t p = 0; p < 2; ++p) {
      const Status parts[] = {
          opened.value()->read_tokens(p, {0, tokens.size()}, tokens),
          opened.value()->read_rows("wide", p, {0, kRows}, std::as_writable_bytes(std::span(wide))),
          opened.value()->read_rows("odd", p, {0, kRows}, std::as_writable_bytes(std::span(odd)))};
      if (parts[1].is_ok()) {
        ASSERT_EQ(wide, row_values(0, kRows, kRowWidth, p ? -1.0f : 1.0f));
      }
      if (parts[2].is_ok()) {
        ASSERT_EQ(odd, row_values(0, kRows, 7, p ? -1.0f : 1.0f));
      }
      for (const Status& part : parts) {
        if (!part.is_ok()) status = part;
      }
    }
    if (!status.is_ok()) {
      EXPECT_EQ(status.code(), StatusCode::kCorruption);
    }
  }
}

TEST(Prefetch, brings_rows_into_the_cache_and_is_bounded) {
  FaultEnv env;
  StoreOptions options = options_for(ReadMode::kDirect);
  options.reads.prefetch_bytes = 100 * 4096;
  auto store = direct_store(env, options);
  const std::vector<uint32_t> partitions(90);
  std::vector<uint64_t> indices(90);
  for (uint64_t i = 0; i < 90; ++i) indices[i] = 3 * i;
  const GatherRequest request{"wide", partitions, indices};
  auto prefetch = store->prefetch({&request, 1});
  ASSERT_TRUE(prefetch.is_ok());
  EXPECT_EQ(prefetch.value()->wait(), Prefetch::State::kLoaded);
  const uint64_t pages = metric(*store, "disk_pages");
  std::vector<float> out(90 * kRowWidth);
  ASSERT_TRUE(store->gather_rows(request, std::as_writable_bytes(std::span(out))).is_ok());
  EXPECT_EQ(metric(*store, "disk_pages"), pages);

  std::vector<uint64_t> many(200);
  for (uint64_t i = 0; i < 200; ++i) many[i] = i + 300;
  const std::vector<uint32_t> of(200);
  const GatherRequest large{"wide", of, many};
  EXPECT_EQ(store->prefetch({&large, 1}).status().code(), StatusCode::kOverBudget);
}

TEST(Prefetch, closing_the_store_ends_what_waits_and_refuses_more) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  const std::vector<uint32_t> partitions(32);
  std::vector<std::shared_ptr<Prefetch>> waiting;
  for (uint64_t round = 0; round < 20; ++round) {
    std::vector<uint64_t> indices(32);
    for (uint64_t i = 0; i < 32; ++i) indices[i] = 32 * round + i;
    const GatherRequest request{"wide", partitions, indices};
    waiting.push_back(std::move(store->prefetch({&request, 1})).value());
  }
  waiting[10]->cancel();
  const auto snapshot = store->snapshot();
  ASSERT_TRUE(store->close().is_ok());
  for (const auto& one : waiting) EXPECT_NE(one->wait(), Prefetch::State::kWaiting);
  const std::vector<uint64_t> index = {1};
  const std::vector<uint32_t> partition = {0};
  const GatherRequest request{"wide", partition, index};
  EXPECT_EQ(snapshot->prefetch({&request, 1}).status().code(), StatusCode::kInvalidArgument);
  store = nullptr;
  gather_randomly(*snapshot, 3, 30);
}

TEST(Prefetch, an_error_of_the_disk_is_told) {
  FaultEnv env;
  auto store = direct_store(env, options_for(ReadMode::kDirect));
  env.fail_reads_after(0, EIO);
  const std::vector<uint32_t> partition = {0};
  const std::vector<uint64_t> index = {1};
  const GatherRequest request{"wide", partition, index};
  auto prefetch = std::move(store->prefetch({&request, 1})).value();
  EXPECT_EQ(prefetch->wait(), Prefetch::State::kFailed);
  EXPECT_EQ(prefetch->status().error_number(), EIO);
}

}  // namespace
}  // namespace mc
