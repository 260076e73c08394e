#include <gtest/gtest.h>

#include "format/file_names.h"
#include "io/fault_env.h"
#include "storage/wal_reader.h"

namespace mc {
namespace {

constexpr char kPath[] = "/wal";

WalOptions small_options() {
  return {.directory = kPath,
          .store_id = {},
          .first_file_bytes = 512,
          .most_file_bytes = 512,
          .most_spare_files = 4};
}

RecordParts text_record(const std::string& text) {
  return RecordParts({SetMetadata{0, text}});
}

struct Replayed {
  std::vector<std::string> texts;
  Result<WalReplay> replay = Status::not_found("not run");
};

Replayed replay(Env* env, WalPosition start = {}) {
  Replayed replayed;
  replayed.replay = replay_wal(env, kPath, {}, start, [&](Bytes record) -> Status {
    MC_ASSIGN_OR_RETURN(const auto changes, decode_record(record));
    replayed.texts.push_back(std::get<SetMetadata>(changes[0]).metadata_json);
    return Status::ok();
  });
  return replayed;
}

TEST(Wal, records_come_back_across_files_and_larger_than_one) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  std::vector<std::string> expected;
  for (size_t length : {0, 1, 100, 440, 441, 442, 443, 5000, 7, 20'000, 3}) {
    expected.push_back(std::string(length, static_cast<char>('a' + expected.size())));
    ASSERT_TRUE(writer.append(text_record(expected.back())).is_ok());
  }
  ASSERT_TRUE(writer.sync().is_ok());
  const Replayed replayed = replay(&env);
  ASSERT_TRUE(replayed.replay.is_ok()) << replayed.replay.status().to_string();
  EXPECT_EQ(replayed.texts, expected);
  EXPECT_EQ(replayed.replay.value().next.sequence, writer.next_sequence());
  EXPECT_EQ(replayed.replay.value().numbers.size(), writer.file_count());
}

TEST(Wal, nothing_is_touched_before_the_first_append) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  ASSERT_TRUE(writer.sync().is_ok());
  EXPECT_EQ(env.operation_count(), 0u);
}

TEST(Wal, a_commit_into_a_written_file_is_one_write_and_one_sync) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  ASSERT_TRUE(writer.append(text_record("first")).is_ok());
  ASSERT_TRUE(writer.sync().is_ok());
  const uint64_t before = env.operation_count();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(writer.append(text_record("more")).is_ok());
  ASSERT_TRUE(writer.sync().is_ok());
  ASSERT_TRUE(writer.sync().is_ok());  // nothing to do
  EXPECT_EQ(env.operation_count(), before + 2);
}

TEST(Wal, recycled_files_never_give_their_old_frames) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(writer.append(text_record("old")).is_ok());
  const WalPosition start = writer.finish_file().value();
  ASSERT_TRUE(writer.retire_before(start.number).is_ok());
  const size_t files = env.files().size();
  ASSERT_TRUE(writer.append(text_record("new")).is_ok());
  ASSERT_TRUE(writer.sync().is_ok());
  EXPECT_EQ(env.files().size(), files);  // one was renamed
  EXPECT_EQ(replay(&env, start).texts, std::vector<std::string>{"new"});
}

TEST(Wal, a_lost_frame_that_was_synced_is_corruption_and_a_torn_end_is_not) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  ASSERT_TRUE(writer.append(text_record("one")).is_ok());
  ASSERT_TRUE(writer.sync().is_ok());
  ASSERT_TRUE(writer.append(text_record("two")).is_ok());
  ASSERT_TRUE(writer.append(text_record("three")).is_ok());
  ASSERT_TRUE(writer.flush().is_ok());
  const std::string path = join_path(kPath, wal_file_name(1));
  const auto bytes = env.files().at(path);
  const auto damage = [&](const char* text) {
    auto damaged = bytes;
    const size_t at = std::string(text_of(bytes)).find(text);
    damaged[at] ^= std::byte{1};
    env.set_file(path, damaged);
    return replay(&env);
  };
  EXPECT_EQ(damage("one").replay.status().code(), StatusCode::kCorruption);
  EXPECT_EQ(damage("two").texts, std::vector<std::string>{"one"});
  EXPECT_EQ(damage("three").texts, (std::vector<std::string>{"one", "two"}));
}

TEST(Wal, a_missing_file_in_the_middle_is_corruption) {
  FaultEnv env;
  WalWriter writer(&env, small_options(), {});
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(writer.append(text_record("text")).is_ok());
  ASSERT_TRUE(writer.sync().is_ok());
  auto cut = env.files().at(join_path(kPath, wal_file_name(1)));
  std::fill(cut.begin() + 64, cut.end(), std::byte{0});
  env.set_file(join_path(kPath, wal_file_name(1)), cut);
  EXPECT_EQ(replay(&env).replay.status().code(), StatusCode::kCorruption);
}

TEST(Wal, a_record_left_unfinished_by_a_crash_is_void) {
  FaultEnv env;
  WalWriter first(&env, small_options(), {});
  ASSERT_TRUE(first.append(text_record("kept")).is_ok());
  ASSERT_TRUE(first.sync().is_ok());
  env.stop_after(env.operation_count() + 6);
  EXPECT_FALSE(first.append(text_record(std::string(5000, 'x'))).is_ok());
  const auto image = env.crash_image(CrashKind::kKept, 0);
  const Replayed replayed = replay(image.get());
  EXPECT_EQ(replayed.texts, std::vector<std::string>{"kept"});
  WalWriter second(image.get(), small_options(), replayed.replay.value().next);
  ASSERT_TRUE(second.append(text_record("after")).is_ok());
  ASSERT_TRUE(second.sync().is_ok());
  EXPECT_EQ(replay(image.get()).texts, (std::vector<std::string>{"kept", "after"}));
}

}  // namespace
}  // namespace mc
