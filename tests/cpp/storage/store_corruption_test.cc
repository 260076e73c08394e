// A small store with every byte damaged in turn: an error, or the right answer. Never another one.
#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

struct SmallStore {
  FaultEnv env;
  Model model;

  SmallStore() {
    const std::vector<Op> ops = random_ops(5, 45);
    auto store = Store::create(&env, kPath, {{"model", "m"}}, small_options());
    for (size_t i = 0; i < ops.size(); ++i) {
      EXPECT_TRUE(apply(*store.value(), ops[i]).is_ok());
      apply(model, ops[i]);
      if (i == 30) {
        EXPECT_TRUE(store.value()->checkpoint().is_ok());
      }
    }
    EXPECT_TRUE(store.value()->close().is_ok());
  }
};

// Whether the damage was noticed. Fails the test when a wrong answer came.
bool detected(FaultEnv& env, const Model& expected, const std::string& where) {
  auto store = open_small(&env, /*read_only=*/true);
  if (!store.is_ok()) return true;
  auto reading = read_all(*store.value());
  if (!reading.is_ok()) return true;
  EXPECT_TRUE(same(reading.value(), expected)) << where;
  return !store.value()->check().is_ok();
}

TEST(StoreCorruption, the_store_has_every_kind_of_file) {
  SmallStore small;
  std::set<std::string> kinds;
  for (const auto& [path, bytes] : small.env.files()) {
    if (!bytes.empty()) kinds.insert(path.substr(path.size() - 3));
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"log", "mcs", "EST"}));
  EXPECT_FALSE(detected(small.env, small.model, "undamaged"));
}

TEST(StoreCorruption, every_flipped_byte_is_detected_or_harmless) {
  SmallStore small;
  uint64_t flips = 0, noticed = 0;
  for (const auto& [path, bytes] : small.env.files()) {
    for (size_t at = 0; at < bytes.size(); ++at) {
      for (const uint8_t mask : {uint8_t{0xFF}, static_cast<uint8_t>(1u << (at % 8))}) {
        auto damaged = bytes;
        damaged[at] ^= std::byte{mask};
        small.env.set_file(path, std::move(damaged));
        noticed += detected(small.env, small.model, path + ":" + std::to_string(at));
        ++flips;
        if (::testing::Test::HasFailure()) return;
      }
    }
    small.env.set_file(path, bytes);
  }
  EXPECT_GT(noticed, flips / 3);  // the rest is padding and WAL space not yet written
}

TEST(StoreCorruption, every_truncation_is_detected_or_harmless) {
  SmallStore small;
  for (const auto& [path, bytes] : small.env.files()) {
    for (size_t length = 0; length < bytes.size(); ++length) {
      small.env.set_file(path, {bytes.begin(), bytes.begin() + static_cast<long>(length)});
      EXPECT_TRUE(detected(small.env, small.model, path + " cut to " + std::to_string(length)));
      if (::testing::Test::HasFailure()) return;
    }
    small.env.set_file(path, bytes);
  }
}

TEST(StoreCorruption, a_file_of_another_store_is_detected) {
  SmallStore small;
  FaultEnv other;
  other.random_u64();  // another store id
  auto store = Store::create(&other, kPath, {{"model", "m"}}, small_options());
  for (const Op& op : random_ops(5, 45)) ASSERT_TRUE(apply(*store.value(), op).is_ok());
  ASSERT_TRUE(store.value()->close().is_ok());
  const auto files = small.env.files();
  for (const auto& [path, bytes] : other.files()) {
    const bool segment_or_log = path.ends_with(".mcs") || path.ends_with(".log");
    if (!segment_or_log || !files.contains(path)) continue;
    small.env.set_file(path, bytes);
    EXPECT_TRUE(detected(small.env, small.model, path));
    small.env.set_file(path, files.at(path));
  }
}

TEST(StoreCorruption, a_damaged_page_names_its_file_and_offset) {
  SmallStore small;
  for (const auto& [path, bytes] : small.env.files()) {
    if (!path.ends_with("0001.mcs")) continue;
    auto damaged = bytes;
    damaged[600] ^= std::byte{1};
    small.env.set_file(path, damaged);
    auto store = open_small(&small.env, true);
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    const Status status = store.value()->check();
    EXPECT_EQ(status.code(), StatusCode::kCorruption);
    EXPECT_NE(status.message().find(path + ":512: expected page crc32c"), std::string::npos)
        << status.message();
  }
}

}  // namespace
}  // namespace mc
