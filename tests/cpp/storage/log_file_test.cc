#include "storage/log_file.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <thread>

#include "io/fault_env.h"

namespace mc {
namespace {

constexpr char kPath[] = "/log";

std::unique_ptr<LogFile> open_log(FaultEnv& env) {
  return std::make_unique<LogFile>(env.open_writable(kPath, WriteMode::kTruncate).value());
}

TEST(LogFile, writes_reach_the_file_in_the_order_of_their_turns) {
  FaultEnv env;
  const auto log = open_log(env);
  const uint64_t first = log->take_turn(), second = log->take_turn();
  std::thread later([&] { EXPECT_TRUE(log->write(second, 0, bytes_of("new"), true).is_ok()); });
  EXPECT_TRUE(log->write(first, 0, bytes_of("old"), true).is_ok());
  later.join();
  EXPECT_EQ(text_of(env.files().at(kPath)), "new");
}

TEST(LogFile, a_durable_write_covers_what_was_written_before_it) {
  FaultEnv env;
  const auto log = open_log(env);
  EXPECT_TRUE(env.sync_directory("/").is_ok());
  EXPECT_TRUE(log->write(log->take_turn(), 0, bytes_of("one"), false).is_ok());
  EXPECT_TRUE(log->write(log->take_turn(), 3, bytes_of("two"), true).is_ok());
  const auto image = env.crash_image(CrashKind::kLost, 0);
  EXPECT_EQ(text_of(image->files().at(kPath)), "onetwo");
  const uint64_t syncs = env.sync_count();
  EXPECT_TRUE(log->write(log->take_turn(), 0, {}, true).is_ok());  // nothing is left to do
  EXPECT_EQ(env.sync_count(), syncs);
}

TEST(LogFile, after_a_failure_every_turn_fails_and_none_waits_for_ever) {
  FaultEnv env;
  const auto log = open_log(env);
  env.fail_operation(env.operation_count() + 1, EIO);
  EXPECT_FALSE(log->write(log->take_turn(), 0, bytes_of("one"), false).is_ok());
  EXPECT_FALSE(log->write(log->take_turn(), 0, bytes_of("one"), true).is_ok());
}

}  // namespace
}  // namespace mc
