#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>

#include "io/aligned_buffer.h"
#include "io/env.h"

namespace mc {
namespace {

class PosixEnv : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mc_posix_env_XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  void TearDown() override {
    const auto names = env_->list(directory_);
    for (const std::string& name : names.value()) {
      EXPECT_TRUE(env_->remove(directory_ + "/" + name).is_ok());
    }
    EXPECT_EQ(::system(("rmdir " + directory_).c_str()), 0);
  }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }

  Env* env_ = posix_env();
  std::string directory_;
};

TEST_F(PosixEnv, what_is_written_is_read_and_mapped) {
  auto file = env_->open_writable(path("a"), WriteMode::kTruncate);
  ASSERT_TRUE(file.is_ok());
  ASSERT_TRUE(file.value()->write_at(3, bytes_of("world")).is_ok());
  ASSERT_TRUE(file.value()->write_at(0, bytes_of("my ")).is_ok());
  ASSERT_TRUE(file.value()->sync().is_ok());
  auto reader = env_->open_readable(path("a"));
  ASSERT_TRUE(reader.is_ok());
  EXPECT_EQ(reader.value()->byte_count(), 8u);
  EXPECT_EQ(text_of(reader.value()->map().value()), "my world");
  std::byte buffer[16];
  EXPECT_EQ(reader.value()->read_at(5, buffer).value(), 3u);
  EXPECT_EQ(text_of(Bytes(buffer).first(3)), "rld");
}

TEST_F(PosixEnv, parts_are_written_one_after_the_other_also_more_than_one_call_takes) {
  std::vector<Bytes> parts;
  std::string expected = "..";
  for (int i = 0; i < 3000; ++i) {
    parts.push_back(bytes_of(std::string_view("abcdefg").substr(0, static_cast<size_t>(i % 8))));
    expected += text_of(parts.back());
  }
  auto file = env_->open_writable(path("a"), WriteMode::kTruncate);
  ASSERT_TRUE(file.value()->write_at(0, bytes_of("..")).is_ok());
  ASSERT_TRUE(file.value()->write_parts_at(2, parts).is_ok());
  EXPECT_EQ(text_of(env_->open_readable(path("a")).value()->map().value()), expected);
}

TEST_F(PosixEnv, modes_truncate_or_keep) {
  ASSERT_TRUE(env_->open_writable(path("a"), WriteMode::kTruncate)
                  .value()
                  ->write_at(0, bytes_of("old"))
                  .is_ok());
  ASSERT_TRUE(env_->open_writable(path("a"), WriteMode::kOverwrite)
                  .value()
                  ->write_at(0, bytes_of("b"))
                  .is_ok());
  EXPECT_EQ(text_of(env_->open_readable(path("a")).value()->map().value()), "bld");
  EXPECT_TRUE(env_->open_writable(path("a"), WriteMode::kTruncate).is_ok());
  EXPECT_EQ(env_->open_readable(path("a")).value()->byte_count(), 0u);
  EXPECT_EQ(env_->open_writable(path("b"), WriteMode::kOverwrite).status().code(),
            StatusCode::kNotFound);
}

TEST_F(PosixEnv, direct_and_durable_writes_reach_readers) {
  ASSERT_TRUE(env_->open_writable(path("log"), WriteMode::kTruncate).is_ok());
  auto file = env_->open_writable(path("log"), WriteMode::kDirect);
  ASSERT_TRUE(file.is_ok());
  AlignedBuffer block;
  block.append(bytes_of("first"));
  block.append_zeros(kDirectAlign - block.size());
  ASSERT_TRUE(file.value()->write_at(0, block.bytes()).is_ok());
  ASSERT_TRUE(file.value()->write_durably_at(kDirectAlign, block.bytes()).is_ok());
  ASSERT_TRUE(file.value()->sync().is_ok());
  auto reader = env_->open_readable(path("log"));
  ASSERT_TRUE(reader.is_ok());
  ASSERT_EQ(reader.value()->byte_count(), 2 * kDirectAlign);
  std::byte word[5];
  for (const bool direct : {false, true}) {
    AlignedBuffer got;
    got.append_zeros(kDirectAlign);
    const MutableBytes out(const_cast<std::byte*>(got.bytes().data()), got.size());
    ASSERT_TRUE(reader.value()->read_scattered_at(kDirectAlign, out, direct).is_ok());
    EXPECT_EQ(text_of(got.bytes().first(5)), "first");
  }
  ASSERT_TRUE(reader.value()->read_at(0, word).is_ok());
  EXPECT_EQ(text_of(word), "first");
}

TEST_F(PosixEnv, a_file_system_that_refuses_an_unaligned_direct_write_gets_an_ordinary_one) {
  ASSERT_TRUE(env_->open_writable(path("log"), WriteMode::kTruncate).is_ok());
  auto file = env_->open_writable(path("log"), WriteMode::kDirect);
  ASSERT_TRUE(file.value()->write_at(3, bytes_of("odd")).is_ok());
  EXPECT_EQ(env_->open_readable(path("log")).value()->byte_count(), 6u);
}

TEST_F(PosixEnv, names_change_atomically_and_lists_are_sorted) {
  for (const char* name : {"c", "a", "b"}) {
    ASSERT_TRUE(env_->open_writable(path(name), WriteMode::kTruncate).is_ok());
  }
  ASSERT_TRUE(env_->rename(path("c"), path("a")).is_ok());
  ASSERT_TRUE(env_->sync_directory(directory_).is_ok());
  EXPECT_EQ(env_->list(directory_).value(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(env_->remove(path("c")).code(), StatusCode::kNotFound);
}

TEST_F(PosixEnv, a_lock_is_exclusive_until_released) {
  {
    auto lock = env_->lock(path("LOCK"));
    ASSERT_TRUE(lock.is_ok());
    EXPECT_EQ(env_->lock(path("LOCK")).status().code(), StatusCode::kLocked);
  }
  EXPECT_TRUE(env_->lock(path("LOCK")).is_ok());
}

TEST_F(PosixEnv, errors_carry_errno_and_path) {
  const Status status = env_->create_directory(path("a/b"));
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find(path("a/b")), std::string::npos);
  const Status full =
      env_->open_writable("/dev/full", WriteMode::kOverwrite).value()->write_at(0, bytes_of("x"));
  EXPECT_EQ(full.error_number(), ENOSPC);
}

}  // namespace
}  // namespace mc
