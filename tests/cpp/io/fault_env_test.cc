#include "io/fault_env.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace mc {
namespace {

constexpr char kFile[] = "/d/file";

std::string content(FaultEnv& env, const std::string& path) {
  const auto files = env.files();
  const auto found = files.find(path);
  return found == files.end() ? "(none)" : std::string(text_of(found->second));
}

std::unique_ptr<WritableFile> create(FaultEnv& env, const std::string& path) {
  return std::move(env.open_writable(path, WriteMode::kTruncate)).value();
}

TEST(FaultEnv, unsynced_bytes_are_lost_and_synced_ones_stay) {
  FaultEnv env;
  auto file = create(env, kFile);
  ASSERT_TRUE(file->write_at(0, bytes_of("synced")).is_ok());
  ASSERT_TRUE(file->sync().is_ok());
  ASSERT_TRUE(env.sync_directory("/d").is_ok());
  ASSERT_TRUE(file->write_at(0, bytes_of("SY")).is_ok());
  EXPECT_EQ(content(*env.crash_image(CrashKind::kLost, 0), kFile), "synced");
  EXPECT_EQ(content(*env.crash_image(CrashKind::kKept, 0), kFile), "SYnced");
}

TEST(FaultEnv, a_name_needs_its_directory_synced) {
  FaultEnv env;
  auto file = create(env, kFile);
  ASSERT_TRUE(file->sync().is_ok());
  EXPECT_EQ(content(*env.crash_image(CrashKind::kLost, 0), kFile), "(none)");
  ASSERT_TRUE(env.sync_directory("/d").is_ok());
  ASSERT_TRUE(env.rename(kFile, "/d/other").is_ok());
  EXPECT_EQ(content(*env.crash_image(CrashKind::kLost, 0), kFile), "");
  EXPECT_EQ(content(*env.crash_image(CrashKind::kKept, 0), "/d/other"), "");
}

TEST(FaultEnv, torn_images_mix_sectors_and_names) {
  FaultEnv env;
  auto file = create(env, kFile);
  ASSERT_TRUE(file->write_at(0, bytes_of(std::string(5000, 'a'))).is_ok());
  ASSERT_TRUE(file->sync().is_ok());
  ASSERT_TRUE(env.sync_directory("/d").is_ok());
  ASSERT_TRUE(file->write_at(0, bytes_of(std::string(5000, 'b'))).is_ok());
  create(env, "/d/second");
  ASSERT_TRUE(env.remove("/d/second").is_ok());
  bool mixed = false, named = false, unnamed = false;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto image = env.crash_image(CrashKind::kTorn, seed);
    const std::string bytes = content(*image, kFile);
    ASSERT_EQ(bytes.size(), 5000u);
    for (size_t at = 0; at < bytes.size(); ++at) ASSERT_EQ(bytes[at], bytes[at / 512 * 512]);
    mixed = mixed || bytes.find('a') * bytes.find('b') == 0;
    (content(*image, "/d/second") == "(none)" ? unnamed : named) = true;
  }
  EXPECT_TRUE(mixed && named && unnamed);
}

TEST(FaultEnv, stops_for_good_and_fails_once) {
  FaultEnv env;
  auto file = create(env, kFile);  // operation 1
  env.fail_operation(2, ENOSPC);
  EXPECT_EQ(file->write_at(0, bytes_of("x")).error_number(), ENOSPC);
  EXPECT_TRUE(file->write_at(0, bytes_of("x")).is_ok());
  env.stop_after_sync(1);
  EXPECT_TRUE(file->sync().is_ok());
  EXPECT_FALSE(file->sync().is_ok());
  EXPECT_FALSE(file->write_at(0, bytes_of("y")).is_ok());
  EXPECT_EQ(content(env, kFile), "x");
}

TEST(FaultEnv, runs_full) {
  FaultEnv env;
  env.set_capacity(10);
  auto file = create(env, kFile);
  EXPECT_TRUE(file->write_at(0, bytes_of("0123456789")).is_ok());
  EXPECT_EQ(file->write_at(5, bytes_of("012345")).error_number(), ENOSPC);
  EXPECT_TRUE(file->write_at(5, bytes_of("01234")).is_ok());
}

TEST(FaultEnv, a_lock_is_exclusive_until_released) {
  FaultEnv env;
  {
    auto lock = env.lock("/d/LOCK");
    ASSERT_TRUE(lock.is_ok());
    EXPECT_EQ(env.lock("/d/LOCK").status().code(), StatusCode::kLocked);
  }
  EXPECT_TRUE(env.lock("/d/LOCK").is_ok());
}

}  // namespace
}  // namespace mc
