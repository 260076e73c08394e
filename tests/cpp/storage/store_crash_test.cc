// The store at every point a crash can come: nothing acknowledged is lost, nothing wrong returned.
#include <functional>

#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

// What a run got done before its file system stopped.
struct Progress {
  bool created = false;
  size_t acknowledged = 0;  // operations that were durable when a call returned
  size_t issued = 0;        // operations that were begun
};

constexpr size_t kOps = 240;
constexpr uint32_t kSeed = 63;
constexpr size_t kReopenAt = 150;  // a second writer goes on after this many operations

Progress run(FaultEnv* env, const std::vector<Op>& ops) {
  Progress progress;
  auto store = Store::create(env, kPath, {{"model", "m"}}, small_options());
  if (!store.is_ok()) return progress;
  progress.created = true;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (i == kReopenAt) {
      if (!store.value()->close().is_ok()) return progress;
      progress.acknowledged = i;
      store = open_small(env);
      if (!store.is_ok()) return progress;
    }
    progress.issued = i + 1;
    if (!apply(*store.value(), ops[i]).is_ok()) return progress;
    const bool durable = ops[i].kind == OpKind::kCommit || ops[i].kind == OpKind::kCheckpoint ||
                         ops[i].kind == OpKind::kPurge;
    if (durable) progress.acknowledged = i + 1;
  }
  return progress;
}

std::vector<Model> prefixes_of(const std::vector<Op>& ops) {
  std::vector<Model> prefixes(1);
  for (const Op& op : ops) {
    prefixes.push_back(prefixes.back());
    apply(prefixes.back(), op);
  }
  return prefixes;
}

bool is_a_prefix(const Reading& reading, const std::vector<Model>& prefixes, size_t least,
                 size_t most) {
  for (size_t n = least; n <= most; ++n) {
    if (same(reading, prefixes[n])) return true;
  }
  return false;
}

// Opens what a crash left, compares, goes on writing, crashes again, and compares again.
void verify(FaultEnv* image, const Progress& progress, const std::vector<Model>& prefixes) {
  std::vector<uint32_t> more(40, 7);
  uint64_t before = 0;
  {
    auto store = open_small(image);
    if (!progress.created && store.status().code() == StatusCode::kNotFound) return;
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    Status checked = store.value()->check();
    ASSERT_TRUE(checked.is_ok()) << checked.to_string();
    auto reading = read_all(*store.value());
    ASSERT_TRUE(reading.is_ok()) << reading.status().to_string();
    ASSERT_TRUE(is_a_prefix(reading.value(), prefixes, progress.acknowledged, progress.issued))
        << "acknowledged " << progress.acknowledged << ", issued " << progress.issued;
    if (reading.value().model.partitions.empty()) return;
    before = reading.value().model.partitions[0].tokens.size();
    ASSERT_TRUE(store.value()->append_tokens(0, more).is_ok());
    ASSERT_TRUE(store.value()->commit().is_ok());
    image = image->crash_image(CrashKind::kLost, 0).release();  // before the store closes
  }
  const std::unique_ptr<FaultEnv> second(image);
  auto store = open_small(second.get());
  ASSERT_TRUE(store.is_ok()) << store.status().to_string();
  ASSERT_EQ(store.value()->token_count(0).value(), before + more.size());
  ASSERT_TRUE(store.value()->check().is_ok());
  const Reading whole = read_all(*store.value()).value();
  ASSERT_TRUE(store.value()->purge().is_ok());
  ASSERT_TRUE(store.value()->check().is_ok());
  const Reading purged = read_all(*store.value()).value();
  ASSERT_EQ(purged.model, whole.model);
  ASSERT_EQ(purged.needles, whole.needles);
}

void crash_everywhere(uint64_t points, uint64_t step, uint64_t torn_images,
                      const std::function<void(FaultEnv&, uint64_t)>& stop) {
  const std::vector<Op> ops = random_ops(kSeed, kOps);
  const std::vector<Model> prefixes = prefixes_of(ops);
  for (uint64_t point = 0; point <= points; point += step) {
    FaultEnv env;
    stop(env, point);
    const Progress progress = run(&env, ops);
    for (uint64_t seed = 0; seed < torn_images + 2; ++seed) {
      const CrashKind kind = seed == 0   ? CrashKind::kLost
                             : seed == 1 ? CrashKind::kKept
                                         : CrashKind::kTorn;
      SCOPED_TRACE(::testing::Message() << "point " << point << " image " << seed);
      verify(env.crash_image(kind, point * 100 + seed).get(), progress, prefixes);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(StoreCrash, the_workload_crosses_every_border) {
  FaultEnv env;
  const std::vector<Op> ops = random_ops(kSeed, kOps);
  const Progress progress = run(&env, ops);
  EXPECT_EQ(progress.issued, kOps);
  auto store = open_small(&env);
  ASSERT_TRUE(store.is_ok()) << store.status().to_string();
  auto reading = read_all(*store.value());
  ASSERT_TRUE(reading.is_ok()) << reading.status().to_string();
  EXPECT_TRUE(same(reading.value(), prefixes_of(ops).back()));
  EXPECT_GT(reading.value().needles.size(), 3u);
  std::set<OpKind> kinds;
  for (const Op& op : ops) kinds.insert(op.kind);
  EXPECT_EQ(kinds.size(), static_cast<size_t>(OpKind::kPurge) + 1);
  EXPECT_GT(store.value()->stats().generation, 8u);  // checkpoints and merges happened
  EXPECT_GT(store.value()->stats().segment_count, 5u);
}

class StoreCrashWhile : public ::testing::TestWithParam<MergeMode> {
 protected:
  StoreCrashWhile() { small_merges = GetParam(); }
  ~StoreCrashWhile() override { small_merges = MergeMode::kDeferred; }
};
INSTANTIATE_TEST_SUITE_P(, StoreCrashWhile,
                         ::testing::Values(MergeMode::kInline, MergeMode::kDeferred));

TEST_P(StoreCrashWhile, at_every_sync_no_acknowledged_change_is_lost) {
  FaultEnv whole;
  run(&whole, random_ops(kSeed, kOps));
  const uint64_t syncs = whole.sync_count();
  ASSERT_GT(syncs, 60u);
  crash_everywhere(syncs, 1, 6, [](FaultEnv& env, uint64_t point) { env.stop_after_sync(point); });
}

TEST_P(StoreCrashWhile, at_every_write_no_acknowledged_change_is_lost) {
  FaultEnv whole;
  run(&whole, random_ops(kSeed, kOps));
  const uint64_t operations = whole.operation_count();
  ASSERT_GT(operations, 200u);
  crash_everywhere(operations, 1, 2, [](FaultEnv& env, uint64_t point) { env.stop_after(point); });
}

TEST(StoreCrash, what_a_killed_writer_left_unsynced_stays_once_it_was_shown) {
  FaultEnv env;
  // Leaked, as a killed process leaves it: its destructor would close it in good order.
  StoreOptions options;
  options.wal_first_file_bytes = 4 << 20;
  static Store* const killed = Store::create(&env, kPath, {}, options).value().release();
  ASSERT_TRUE(killed->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(killed->commit().is_ok());
  // More than the WAL buffers, so some of it was written without a sync.
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(killed->append_tokens(0, std::vector<uint32_t>(100'000, 3)).is_ok());
  }
  env.kill();
  auto store = Store::open(&env, kPath, {.read_only = false, .identity = {}, .options = options});
  ASSERT_TRUE(store.is_ok()) << store.status().to_string();
  const uint64_t shown = store.value()->token_count(0).value();
  EXPECT_EQ(shown, 400'000u);  // four whole records of 425 KB lie in the first 2 MiB
  const auto image = env.crash_image(CrashKind::kLost, 0);
  auto after = open_small(image.get());
  ASSERT_TRUE(after.is_ok()) << after.status().to_string();
  EXPECT_EQ(after.value()->token_count(0).value(), shown);
}

TEST(StoreCrash, a_failed_operation_makes_the_store_failed_until_it_is_opened_again) {
  const std::vector<Op> ops = random_ops(kSeed, kOps);
  const std::vector<Model> prefixes = prefixes_of(ops);
  FaultEnv whole;
  run(&whole, ops);
  for (uint64_t point = 1; point <= whole.operation_count(); ++point) {
    SCOPED_TRACE(::testing::Message() << "operation " << point);
    FaultEnv env;
    env.fail_operation(point, 5);
    const Progress progress = run(&env, ops);
    verify(env.copy().get(), progress, prefixes);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(StoreCrash, after_a_failed_write_every_later_write_is_refused_and_reads_go_on) {
  FaultEnv env;
  auto store = Store::create(&env, kPath, {}, small_options());
  ASSERT_TRUE(store.value()->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store.value()->append_tokens(0, std::vector<uint32_t>(10, 1)).is_ok());
  env.fail_operation(env.operation_count() + 1, 28);
  Status first = store.value()->commit();
  EXPECT_EQ(first.code(), StatusCode::kIoError);
  EXPECT_EQ(first.error_number(), 28);
  EXPECT_EQ(store.value()->commit().code(), StatusCode::kStoreFailed);
  EXPECT_EQ(store.value()->append_tokens(0, std::vector<uint32_t>(1, 1)).status().code(),
            StatusCode::kStoreFailed);
  EXPECT_EQ(store.value()->checkpoint().code(), StatusCode::kStoreFailed);
  std::vector<uint32_t> tokens(10);
  EXPECT_TRUE(store.value()->read_tokens(0, {0, 10}, tokens).is_ok());
  EXPECT_FALSE(store.value()->close().is_ok());
}

TEST(StoreCrash, on_a_full_disk_nothing_acknowledged_is_lost) {
  const std::vector<Op> ops = random_ops(kSeed, kOps);
  const std::vector<Model> prefixes = prefixes_of(ops);
  for (uint64_t capacity = 0; capacity < 60'000; capacity += 500) {
    SCOPED_TRACE(::testing::Message() << "capacity " << capacity);
    FaultEnv env;
    env.set_capacity(capacity);
    const Progress progress = run(&env, ops);
    verify(env.copy().get(), progress, prefixes);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace mc
