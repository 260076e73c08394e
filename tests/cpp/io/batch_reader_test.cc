#include "io/batch_reader.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <random>
#include <thread>

#include "io/env.h"
#include "io/fault_env.h"

namespace mc {
namespace {

struct Aligned {
  explicit Aligned(size_t bytes)
      : data(static_cast<std::byte*>(std::aligned_alloc(kDirectAlign, bytes))) {}
  ~Aligned() { std::free(data); }
  std::byte* data;
};

class BatchReaderTest : public ::testing::TestWithParam<std::tuple<BatchEngine, bool>> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mc_batch_XXXXXX";
    directory_ = ::mkdtemp(name);
    std::mt19937 random(1);
    for (int file = 0; file < 2; ++file) {
      contents_.emplace_back(100 * kDirectAlign + 1000);
      for (std::byte& byte : contents_[file]) byte = static_cast<std::byte>(random());
      const std::string path = directory_ + "/" + std::to_string(file);
      auto writable = posix_env()->open_writable(path, WriteMode::kTruncate);
      ASSERT_TRUE(writable.value()->write_at(0, contents_[file]).is_ok());
      ASSERT_TRUE(writable.value()->sync().is_ok());
      files_.push_back(posix_env()->open_readable(path).value());
    }
    auto made = posix_env()->batch_reader(
        {.engine = std::get<0>(GetParam()), .depth = 8, .direct = std::get<1>(GetParam())});
    if (!made.is_ok() && made.status().code() == StatusCode::kUnsupported) {
      GTEST_SKIP() << "no io_uring here: " << made.status().message();
    }
    reader_ = std::move(made).value();
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void read_randomly(uint32_t seed, size_t count) {
    std::mt19937 random(seed);
    Aligned memory(count * 4 * kDirectAlign);
    std::vector<BatchRead> reads;
    std::vector<size_t> of;
    for (size_t i = 0; i < count; ++i) {
      of.push_back(random() % 2);
      reads.push_back({files_[of.back()].get(),
                       random() % 101 * kDirectAlign,
                       {memory.data + i * 4 * kDirectAlign, (1 + random() % 4) * kDirectAlign},
                       {},
                       0});
    }
    std::vector<int> done(count);
    reader_->read(reads, [&](size_t i) { ++done[i]; });
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(done[i], 1);
      ASSERT_TRUE(reads[i].status.is_ok()) << reads[i].status.to_string();
      const auto& content = contents_[of[i]];
      const size_t wanted = std::min(reads[i].out.size(), content.size() - reads[i].offset);
      ASSERT_EQ(reads[i].byte_count, wanted);
      ASSERT_TRUE(std::equal(content.begin() + reads[i].offset,
                             content.begin() + reads[i].offset + wanted, reads[i].out.begin()));
    }
  }

  std::string directory_;
  std::vector<std::vector<std::byte>> contents_;
  std::vector<std::unique_ptr<ReadableFile>> files_;
  std::unique_ptr<BatchReader> reader_;
};

TEST_P(BatchReaderTest, reads_what_is_there_more_than_fit_at_once_and_short_at_the_end) {
  for (size_t count : {0, 1, 7, 8, 9, 300}) read_randomly(static_cast<uint32_t>(count), count);
}

TEST_P(BatchReaderTest, serves_many_threads) {
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([this, i] {
      for (uint32_t round = 0; round < 10; ++round) read_randomly(10 * i + round, 50);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(BatchReaderTest, reports_an_error_for_the_read_that_has_it_and_reads_the_others) {
  auto directory = posix_env()->open_readable(directory_);  // opens, but cannot be read
  ASSERT_TRUE(directory.is_ok());
  Aligned memory(2 * kDirectAlign);
  std::vector<BatchRead> reads = {
      {directory.value().get(), 0, {memory.data, kDirectAlign}, {}, 0},
      {files_[0].get(), 0, {memory.data + kDirectAlign, kDirectAlign}, {}, 0}};
  int done = 0;
  reader_->read(reads, [&](size_t) { ++done; });
  EXPECT_EQ(done, 2);
  EXPECT_EQ(reads[0].status.error_number(), EISDIR);
  EXPECT_TRUE(reads[1].status.is_ok());
  EXPECT_EQ(reads[1].byte_count, kDirectAlign);
}

TEST_P(BatchReaderTest, reads_a_file_that_was_removed_meanwhile) {
  std::filesystem::remove_all(directory_);
  read_randomly(3, 20);
}

INSTANTIATE_TEST_SUITE_P(Engines, BatchReaderTest,
                         ::testing::Combine(::testing::Values(BatchEngine::kUring,
                                                              BatchEngine::kThreads),
                                            ::testing::Bool()));

TEST(BatchReader, the_fault_env_reads_one_by_one_and_can_fail) {
  FaultEnv env;
  env.set_file("/a", std::vector<std::byte>(3 * kDirectAlign));
  auto file = std::move(env.open_readable("/a")).value();
  auto reader = std::move(env.batch_reader({})).value();
  env.fail_reads_after(kDirectAlign, EIO);
  std::vector<std::byte> memory(2 * kDirectAlign);
  std::vector<BatchRead> reads = {
      {file.get(), 0, {memory.data(), kDirectAlign}, {}, 0},
      {file.get(), kDirectAlign, {memory.data() + kDirectAlign, kDirectAlign}, {}, 0}};
  reader->read(reads, [](size_t) {});
  EXPECT_TRUE(reads[0].status.is_ok());
  EXPECT_EQ(reads[1].status.error_number(), EIO);
}

TEST(Residency, a_mapping_that_was_just_touched_is_resident) {
  char name[] = "/tmp/mc_resident_XXXXXX";
  const std::string directory = ::mkdtemp(name);
  {
    auto writable = posix_env()->open_writable(directory + "/a", WriteMode::kTruncate);
    ASSERT_TRUE(writable.value()->write_at(0, std::vector<std::byte>(10'000'000)).is_ok());
  }
  auto file = posix_env()->open_readable(directory + "/a").value();
  const Bytes bytes = file->map().value();
  volatile uint8_t sum = 0;
  for (size_t at = 0; at < bytes.size(); at += 4096) sum = sum + static_cast<uint8_t>(bytes[at]);
  EXPECT_TRUE(file->is_resident(5000, 9'000'000));
  EXPECT_TRUE(file->is_resident(9'999'999, 1));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace mc
