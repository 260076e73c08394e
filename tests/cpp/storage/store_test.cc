#include "storage/store.h"

#include <atomic>
#include <thread>

#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

std::unique_ptr<Store> make(FaultEnv& env, StoreOptions options = small_options()) {
  auto store = Store::create(&env, kPath, {{"model", "m"}}, options);
  EXPECT_TRUE(store.is_ok()) << store.status().to_string();
  return std::move(store).value();
}

TEST(Store, random_workloads_equal_the_model_also_after_each_reopening) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    FaultEnv env;
    auto store = make(env);
    Model model;
    size_t step = 0;
    for (const Op& op : random_ops(seed, 150)) {
      ASSERT_TRUE(apply(*store, op).is_ok());
      apply(model, op);
      if (++step % 37 == 0) {
        ASSERT_TRUE(store->close().is_ok());
        store = std::move(open_small(&env)).value();
      }
      if (step % 5 == 0) {
        const auto reading = read_all(*store);
        ASSERT_TRUE(reading.is_ok()) << reading.status().to_string();
        ASSERT_TRUE(same(reading.value(), model)) << "seed " << seed << " step " << step;
      }
    }
    const Status checked = store->check();
    EXPECT_TRUE(checked.is_ok()) << checked.to_string();
  }
}

TEST(Store, snapshots_stay_through_writes_checkpoints_and_merges) {
  FaultEnv env;
  auto store = make(env);
  Model model;
  std::vector<std::pair<std::shared_ptr<const Snapshot>, Model>> kept;
  for (const Op& op : random_ops(77, 200)) {
    ASSERT_TRUE(apply(*store, op).is_ok());
    apply(model, op);
    if (op.kind == OpKind::kPut || op.kind == OpKind::kIndex) {
      kept.emplace_back(store->snapshot(), model);
    }
  }
  EXPECT_GT(store->stats().merge_count, 0u);
  ASSERT_TRUE(store->close().is_ok());
  store = nullptr;
  for (const auto& [snapshot, was] : kept) {
    const auto reading = read_all(*snapshot);
    ASSERT_TRUE(reading.is_ok()) << reading.status().to_string();
    EXPECT_TRUE(same(reading.value(), was));
  }
}

TEST(Store, merging_keeps_few_segments_and_removes_the_files) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  for (uint32_t round = 0; round < 40; ++round) {
    ASSERT_TRUE(store->append_tokens(0, std::vector<uint32_t>(100, round)).is_ok());
    ASSERT_TRUE(store->checkpoint().is_ok());
    ASSERT_LE(store->stats().segment_count, 6u);
  }
  size_t files = 0;
  for (const auto& [path, bytes] : env.files()) files += path.ends_with(".mcs");
  EXPECT_EQ(files, store->stats().segment_count);
  EXPECT_EQ(store->token_count(0).value(), 4000u);
  EXPECT_TRUE(store->check().is_ok());
}

TEST(Store, bulk_equals_token_by_token_equals_after_restart) {
  for (uint64_t length : {1, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 32768, 32769}) {
    std::vector<uint32_t> tokens(length);
    std::vector<uint64_t> starts(length);
    for (uint64_t i = 0; i < length; ++i)
      tokens[i] = static_cast<uint32_t>(i * 7), starts[i] = 3 * i;
    StoreOptions options;  // the default sizes
    FaultEnv bulk_env, single_env;
    auto bulk = make(bulk_env, options), single = make(single_env, options);
    ASSERT_TRUE(bulk->add_partition("a", "{}").is_ok());
    ASSERT_TRUE(single->add_partition("a", "{}").is_ok());
    EXPECT_EQ(bulk->append_tokens(0, tokens, starts).value(), (Span{0, length / 32}));
    uint64_t ready = 0;
    for (uint64_t i = 0; i < length; ++i) {
      if (i == length / 2) {
        ASSERT_TRUE(single->close().is_ok());
        single = std::move(Store::open(&single_env, kPath)).value();
      }
      const Span blocks = single->append_tokens(0, {&tokens[i], 1}, {&starts[i], 1}).value();
      EXPECT_EQ(blocks.start, ready);
      ready = blocks.end;
    }
    EXPECT_EQ(ready, length / 32);
    for (const auto* store : {bulk.get(), single.get()}) {
      const Reading reading = read_all(*store).value();
      EXPECT_EQ(reading.model.partitions[0].tokens, tokens);
      ASSERT_EQ(reading.model.partitions[0].char_starts.size(), (length + 31) / 32);
      EXPECT_EQ(reading.model.partitions[0].char_starts.back(), (length - 1) / 32 * 96);
    }
  }
}

TEST(Store, readers_see_whole_writes_while_a_writer_appends_and_seals) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->define_rows("gist", 1, RowType::kF32, kWidth).is_ok());
  std::atomic<bool> done = false;
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 3; ++reader) {
    readers.emplace_back([&] {
      while (!done) {
        const auto snapshot = store->snapshot();
        const Reading reading = read_all(*snapshot).value();
        const auto& tokens = reading.model.partitions[0].tokens;
        ASSERT_EQ(tokens.size() % 40, 0u);
        for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(tokens[i], i);
        std::vector<uint32_t> direct(tokens.size());
        ASSERT_TRUE(store->read_tokens(0, {0, direct.size()}, direct).is_ok());
        ASSERT_EQ(direct, tokens);
        ASSERT_EQ(reading.needles.size(), reading.indexed[0]);
      }
    });
  }
  uint32_t next = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<uint32_t> tokens(40);
    for (uint32_t& token : tokens) token = next++;
    const Span ready = store->append_tokens(0, tokens).value();
    for (uint64_t block = ready.start; block < ready.end; ++block) {
      const std::string_view text = "needle";
      ASSERT_TRUE(store->index_text(0, block, {&text, 1}).is_ok());
    }
    if (round % 3 == 0) {
      ASSERT_TRUE(store->commit().is_ok());
    }
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_GT(store->stats().checkpoint_count, 3u);
}

TEST(Store, a_reader_opens_while_the_writer_replaces_files) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->commit().is_ok());  // the reader may be first
  std::atomic<bool> done = false;
  std::thread reader([&] {
    uint64_t least = 0;
    while (!done) {
      auto opened = open_small(&env, true);
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      const uint64_t count = opened.value()->token_count(0).value();
      ASSERT_GE(count, least);
      std::vector<uint32_t> tokens(count);
      ASSERT_TRUE(opened.value()->read_tokens(0, {0, count}, tokens).is_ok());
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(tokens[i], i / 50);
      least = count;
    }
  });
  for (uint32_t round = 0; round < 300; ++round) {
    ASSERT_TRUE(store->append_tokens(0, std::vector<uint32_t>(50, round)).is_ok());
    ASSERT_TRUE((round % 5 == 0 ? store->checkpoint() : store->commit()).is_ok());
  }
  done = true;
  reader.join();
}

TEST(Store, a_second_writer_is_refused_and_a_reader_is_not) {
  FaultEnv env;
  auto store = make(env);
  EXPECT_EQ(open_small(&env).status().code(), StatusCode::kLocked);
  EXPECT_TRUE(open_small(&env, true).is_ok());
  ASSERT_TRUE(store->close().is_ok());
  EXPECT_TRUE(open_small(&env).is_ok());
}

TEST(Store, opening_writes_nothing_and_closing_unchanged_neither) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->close().is_ok());
  const auto files = env.files();
  store = std::move(open_small(&env)).value();
  ASSERT_TRUE(store->close().is_ok());
  EXPECT_EQ(env.files(), files);
}

}  // namespace
}  // namespace mc
