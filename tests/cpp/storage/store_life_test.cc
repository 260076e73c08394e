// Taking away: what was cut, erased, dropped or hidden, seen by readers, snapshots, files, search.
#include <atomic>
#include <thread>

#include "format/file_names.h"
#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

std::vector<uint32_t> tokens_from(uint32_t first, size_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = first++;
  return tokens;
}

void index_all(Store& store, uint32_t partition, const std::string& word) {
  const uint64_t first = store.indexed_blocks(partition).value();
  const uint64_t limit = store.token_count(partition).value() / 32;
  std::vector<std::string> texts;
  for (uint64_t block = first; block < limit; ++block) {
    texts.push_back(word + " block " + std::to_string(block % 3));
  }
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  ASSERT_TRUE(store.index_text(partition, first, views).is_ok());
}

// Whether any file that is open by name holds these bytes.
bool on_disk(FaultEnv& env, Bytes wanted) {
  const auto names = env.list(kPath).value();
  for (const std::string& name : names) {
    auto file = env.open_readable(join_path(kPath, name)).value();
    std::string bytes(file->byte_count(), '\0');
    EXPECT_TRUE(file->read_at(0, std::as_writable_bytes(std::span(bytes))).is_ok());
    if (bytes.find(text_of(wanted)) != std::string::npos) return true;
  }
  return false;
}

std::unique_ptr<Store> make(FaultEnv& env) {
  auto store = std::move(Store::create(&env, kPath, {}, small_options())).value();
  EXPECT_TRUE(store->define_rows("gist", 1, RowType::kF32, kWidth).is_ok());
  return store;
}

void put_gists(Store& store, uint32_t partition, float value) {
  const uint64_t first = store.row_count("gist", partition).value();
  const uint64_t limit = store.token_count(partition).value() / 32;
  const std::vector<float> rows((limit - first) * kWidth, value);
  ASSERT_TRUE(store.put_rows("gist", partition, first, std::as_bytes(std::span(rows))).is_ok());
}

TEST(StoreLife, any_sequence_equals_the_model_through_restarts) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    FaultEnv env;
    auto store = std::move(Store::create(&env, kPath, {}, small_options())).value();
    Model model;
    std::vector<std::pair<std::shared_ptr<const Snapshot>, Model>> snapshots;
    const std::vector<Op> ops = random_ops(seed, 160);
    for (size_t i = 0; i < ops.size(); ++i) {
      const Status status = mc::testing::apply(*store, ops[i]);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      mc::testing::apply(model, ops[i]);
      if (i % 7 == 0) snapshots.emplace_back(store->snapshot(), model);
      if (i % 23 == 0) {
        ASSERT_TRUE(store->close().is_ok());
        auto opened = open_small(&env);
        ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
        store = std::move(opened).value();
      }
      ASSERT_TRUE(same(read_all(*store).value(), model)) << "seed " << seed << ", operation " << i;
      const Status checked = store->check();
      ASSERT_TRUE(checked.is_ok()) << checked.to_string();
    }
    for (const auto& [snapshot, expected] : snapshots) {
      ASSERT_TRUE(same(read_all(*snapshot).value(), expected)) << "seed " << seed;
    }
  }
}

TEST(StoreLife, an_edited_store_answers_like_one_built_from_the_result) {
  FaultEnv env, fresh_env;
  auto edited = make(env), fresh = make(fresh_env);
  for (auto* store : {edited.get(), fresh.get()}) {
    ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
    ASSERT_TRUE(store->add_partition("b", "{}").is_ok());
    ASSERT_TRUE(store->append_tokens(1, tokens_from(9000, 500)).is_ok());
    index_all(*store, 1, "needle other");
  }
  ASSERT_TRUE(edited->append_tokens(0, tokens_from(0, 1000)).is_ok());
  index_all(*edited, 0, "old needle");
  put_gists(*edited, 0, 1);
  ASSERT_TRUE(edited->checkpoint().is_ok());
  ASSERT_TRUE(edited->replace_tail(0, {320, tokens_from(5000, 400), {}, {}}).is_ok());
  index_all(*edited, 0, "new needle");
  // The second edit cuts what is still in memory.
  ASSERT_TRUE(edited->replace_tail(0, {330, tokens_from(7000, 300), {}, {}}).is_ok());
  index_all(*edited, 0, "newest needle");
  put_gists(*edited, 0, 2);

  ASSERT_TRUE(fresh->append_tokens(0, tokens_from(0, 320)).is_ok());
  index_all(*fresh, 0, "old needle");
  put_gists(*fresh, 0, 1);
  ASSERT_TRUE(fresh->append_tokens(0, tokens_from(5000, 10)).is_ok());
  ASSERT_TRUE(fresh->append_tokens(0, tokens_from(7000, 300)).is_ok());
  index_all(*fresh, 0, "newest needle");
  put_gists(*fresh, 0, 2);

  const Reading expected = read_all(*fresh).value();
  for (int state = 0; state < 4; ++state) {
    if (state == 1) {
      ASSERT_TRUE(edited->checkpoint().is_ok());
    }
    if (state == 2) {
      ASSERT_TRUE(edited->purge().is_ok());
    }
    if (state == 3) {
      ASSERT_TRUE(edited->close().is_ok());
      edited = std::move(open_small(&env)).value();
    }
    EXPECT_EQ(read_all(*edited).value().model, expected.model);
    for (const char* query : {"needle", "old", "new", "newest block", "other 2", "block 1"}) {
      EXPECT_EQ(edited->search(query, 100, {}).value(), fresh->search(query, 100, {}).value())
          << query << " in state " << state;
    }
  }
}

TEST(StoreLife, a_purge_leaves_no_byte_of_what_was_erased) {
  FaultEnv env;
  auto store = make(env);
  const std::vector<uint32_t> canary = {0xC0FFEE01, 0xC0FFEE02, 0xC0FFEE03};
  const std::vector<float> gist = {1.25e20f, -3.5e21f, 7.75e22f};
  ASSERT_TRUE(store->add_partition("kept", "{}").is_ok());
  ASSERT_TRUE(store->append_tokens(0, tokens_from(1, 100)).is_ok());
  ASSERT_TRUE(store->add_partition("secret name", "{\"secret\": 1}").is_ok());
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(store->append_tokens(1, canary).is_ok());
    if (round == 0) {
      ASSERT_TRUE(store->put_rows("gist", 1, 0, std::as_bytes(std::span(gist))).is_ok());
    }
    if (round % 2 == 0) {
      ASSERT_TRUE(store->checkpoint().is_ok());
    }
    ASSERT_TRUE(store->commit().is_ok());
  }
  const std::string name = "secret";
  const std::vector<Bytes> traces = {std::as_bytes(std::span(canary)),
                                     std::as_bytes(std::span(gist)), bytes_of(name)};
  for (Bytes trace : traces) EXPECT_TRUE(on_disk(env, trace));
  ASSERT_TRUE(store->erase_partition(1).is_ok());
  ASSERT_TRUE(store->commit().is_ok());
  EXPECT_EQ(store->token_count(1).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store->partitions().size(), 1u);
  EXPECT_FALSE(store->find_partition("secret name"));
  for (Bytes trace : traces) EXPECT_TRUE(on_disk(env, trace));
  ASSERT_TRUE(store->purge().is_ok());
  for (Bytes trace : traces) EXPECT_FALSE(on_disk(env, trace));
  EXPECT_GT(store->stats().reclaimed_bytes, 0u);
  EXPECT_EQ(store->add_partition("secret name", "{}").value(), 2u);
  ASSERT_TRUE(store->close().is_ok());
  store = std::move(open_small(&env)).value();
  EXPECT_EQ(store->append_tokens(1, canary).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store->token_count(0).value(), 100u);
}

TEST(StoreLife, a_backup_made_while_writing_is_the_moment_of_its_call) {
  FaultEnv env;
  auto store = std::move(Store::create(&env, kPath, {{"model", "m"}}, small_options())).value();
  for (const Op& op : random_ops(9, 200)) {
    ASSERT_TRUE(mc::testing::apply(*store, op).is_ok());
  }
  const Reading before = read_all(*store).value();
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (uint32_t round = 0; !done || round < 20; ++round) {
      ASSERT_TRUE(store->replace_tail(0, {0, tokens_from(round, 300), {}, {}}).is_ok());
    }
  });
  ASSERT_TRUE(store->backup("/copy").is_ok());
  done = true;
  writer.join();
  {
    auto copy = Store::open(&env, "/copy",
                            {.read_only = false, .identity = {{"model", "m"}}, .options = {}});
    ASSERT_TRUE(copy.is_ok()) << copy.status().to_string();
    // Partition 0 is at some edit of the writer's, whole; all else is as before.
    Reading after = read_all(*copy.value()).value();
    const auto& tokens = after.model.partitions[0].tokens;
    if (tokens != before.model.partitions[0].tokens) {
      EXPECT_EQ(tokens, tokens_from(tokens[0], 300));
    }
    for (size_t p = 1; p < before.model.partitions.size(); ++p) {
      EXPECT_EQ(after.model.partitions[p], before.model.partitions[p]);
    }
    ASSERT_TRUE(copy.value()->append_tokens(0, tokens_from(1, 5)).is_ok());
    ASSERT_TRUE(copy.value()->close().is_ok());
  }
  ASSERT_TRUE(store->backup("/second").is_ok());
  auto second = Store::open(&env, "/second", {.read_only = true, .identity = {}, .options = {}});
  ASSERT_TRUE(second.is_ok());
  const Reading now = read_all(*store).value(), copied = read_all(*second.value()).value();
  EXPECT_EQ(copied.model, now.model);
  EXPECT_EQ(copied.needles, now.needles);
  EXPECT_EQ(second.value()->search("needle words", 50, {}).value(),
            store->search("needle words", 50, {}).value());
  EXPECT_EQ(store->backup("/second").code(), StatusCode::kInvalidArgument);
}

TEST(StoreLife, a_backup_that_stops_anywhere_is_no_store) {
  FaultEnv source;
  {
    auto store = make(source);
    for (const Op& op : random_ops(3, 60)) (void)mc::testing::apply(*store, op);
  }
  for (uint64_t point = 1; point < 200; ++point) {
    const auto env = source.crash_image(CrashKind::kKept, 0);
    auto store = std::move(open_small(env.get())).value();
    env->stop_after(env->operation_count() + point);
    const bool whole = store->backup("/copy").is_ok();
    const auto left = env->crash_image(CrashKind::kLost, point);
    auto copy =
        Store::open(left.get(), "/copy", {.read_only = true, .identity = {}, .options = {}});
    if (copy.is_ok()) {
      const Status checked = copy.value()->check();
      EXPECT_TRUE(checked.is_ok()) << checked.to_string();
    } else {
      EXPECT_FALSE(whole);
      EXPECT_EQ(copy.status().code(), StatusCode::kNotFound) << copy.status().to_string();
    }
    if (whole) return;
  }
  FAIL() << "the backup never finished";
}

TEST(StoreLife, wrong_calls_are_refused_with_the_numbers) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  ASSERT_TRUE(store->append_tokens(0, tokens_from(0, 40)).is_ok());
  EXPECT_EQ(store->replace_tail(0, {41, {}, {}, {}}).status().message(),
            "[replace_tail] kept_tokens must be <= 40, got 41");
  EXPECT_EQ(store->erase_partition(7).message(), "[erase_partition] partition must be < 1, got 7");
  EXPECT_EQ(store->drop_rows("none").code(), StatusCode::kNotFound);
  EXPECT_EQ(store->clear_rows("none", 0).code(), StatusCode::kNotFound);
  ASSERT_TRUE(store->erase_partition(0).is_ok());
  EXPECT_EQ(store->set_hidden(0, true).message(), "[set_hidden] partition 0 was erased");
  EXPECT_EQ(store->erase_partition(0).code(), StatusCode::kNotFound);
}

TEST(StoreLife, repeated_edits_keep_the_list_of_cuts_short) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(store->add_partition("a", "{}").is_ok());
  for (uint32_t round = 0; round < 40; ++round) {
    ASSERT_TRUE(store->replace_tail(0, {0, tokens_from(round, 200), {}, {}}).is_ok());
    index_all(*store, 0, "round");
    ASSERT_TRUE(store->checkpoint().is_ok());
  }
  std::vector<uint32_t> tokens(200);
  ASSERT_TRUE(store->read_tokens(0, {0, 200}, tokens).is_ok());
  EXPECT_EQ(tokens, tokens_from(39, 200));
  EXPECT_LT(store->stats().segment_count, 10u);
  ASSERT_TRUE(store->purge().is_ok());
  EXPECT_EQ(store->stats().segment_count, 3u);  // tokens, character starts, postings
}

}  // namespace
}  // namespace mc
