// Rows rewritten in fewer bits: what readers get, what the disk has, and crashes at every point.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "format/file_names.h"
#include "storage/store_model.h"

namespace mc {
namespace {

using namespace testing;

constexpr uint32_t kRowWidth = 96;
constexpr uint64_t kRows = 60;

std::vector<float> rows_of(uint64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(count * kRowWidth);
  for (float& value : rows) value = normal(random);
  return rows;
}

std::unique_ptr<Store> make(FaultEnv& env, uint64_t rows = kRows) {
  auto store = std::move(Store::create(&env, kPath, {}, small_options())).value();
  EXPECT_TRUE(store->add_partition("a", "{}").is_ok());
  EXPECT_TRUE(store->append_tokens(0, std::vector<uint32_t>(rows * 32, 1)).is_ok());
  EXPECT_TRUE(store->define_rows("gist", 1, RowType::kBf16, kRowWidth).is_ok());
  return store;
}

Status put(Store& store, uint64_t first, const std::vector<float>& rows) {
  return store.put_rows("gist", 0, first, std::as_bytes(std::span(rows)), RowType::kF32);
}

std::vector<float> read(const RowReader& reader) {
  std::vector<float> rows(reader.row_count("gist", 0).value() * kRowWidth);
  const Span all{0, rows.size() / kRowWidth};
  const Status status =
      reader.read_rows("gist", 0, all, std::as_writable_bytes(std::span(rows)), RowType::kF32);
  EXPECT_TRUE(status.is_ok()) << status.to_string();
  return rows;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& wanted) {
  double error = 0, sum = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    sum += wanted[i] * wanted[i];
  }
  return std::sqrt(error / sum);
}

uint64_t counted(const Store& store, const std::string& name) {
  for (const Metric& metric : store.metrics()) {
    if (metric.name == name) return metric.value;
  }
  ADD_FAILURE() << name;
  return 0;
}

TEST(StoreReencode, readers_keep_their_dtype_and_snapshots_their_bits) {
  for (const auto& [type, most_error, most_bytes] : {std::tuple{RowType::kQ8, 0.01, 0.6},
                                                     {RowType::kE4m3, 0.035, 0.6},
                                                     {RowType::kQ4, 0.12, 0.4}}) {
    FaultEnv env;
    auto store = make(env);
    ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
    const std::vector<float> exact = read(*store);
    const auto snapshot = store->snapshot();
    const auto report = store->reencode("gist", type);
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    EXPECT_EQ(report.value().error.row_count, kRows);
    EXPECT_LT(static_cast<double>(report.value().bytes_after),
              most_bytes * static_cast<double>(report.value().bytes_before));
    const std::vector<float> rounded = read(*store);
    EXPECT_NEAR(report.value().error.relative(), relative_error(rounded, exact), 1e-3);
    EXPECT_GT(report.value().error.relative(), 1e-4);
    EXPECT_LT(relative_error(rounded, exact), most_error);
    EXPECT_EQ(read(*snapshot), exact);
    EXPECT_EQ(store->row_family("gist").value().type, RowType::kBf16);
    // As declared, these are bf16 bits.
    std::vector<uint16_t> bits(exact.size());
    ASSERT_TRUE(
        store->read_rows("gist", 0, {0, kRows}, std::as_writable_bytes(std::span(bits))).is_ok());
    for (size_t i = 0; i < bits.size(); ++i) {
      ASSERT_NEAR(std::bit_cast<float>(uint32_t{bits[i]} << 16), rounded[i],
                  std::fabs(rounded[i]) / 250);
    }
    EXPECT_EQ(counted(*store, "reencode_count"), 1u);
    EXPECT_EQ(counted(*store, "reencoded_rows"), kRows);
    EXPECT_EQ(counted(*store, "reencode_saved_bytes"),
              report.value().bytes_before - report.value().bytes_after);
    EXPECT_EQ(store->reencode("gist", type).value().error.row_count, 0u);  // they are so already
    ASSERT_TRUE(store->close().is_ok());
    store = std::move(open_small(&env)).value();
    EXPECT_EQ(read(*store), rounded);
    const Status checked = store->check();
    EXPECT_TRUE(checked.is_ok()) << checked.to_string();
  }
}

TEST(StoreReencode, gathers_decode_warm_and_cold_rows_of_both_formats_in_one_call) {
  for (const ReadMode mode : {ReadMode::kMapped, ReadMode::kDirect}) {
    FaultEnv env;
    auto store = make(env);
    ASSERT_TRUE(put(*store, 0, rows_of(40, 1)).is_ok());
    ASSERT_TRUE(store->reencode("gist", RowType::kQ8, 32).is_ok());
    ASSERT_TRUE(put(*store, 40, rows_of(10, 2)).is_ok());
    ASSERT_TRUE(store->checkpoint().is_ok());
    ASSERT_TRUE(put(*store, 50, rows_of(10, 3)).is_ok());
    const std::vector<float> expected = read(*store);
    ASSERT_TRUE(store->commit().is_ok());
    ASSERT_TRUE(store->close().is_ok());
    OpenRequest request{.read_only = true, .identity = {}, .options = small_options()};
    request.options.reads.mode = mode;
    store = std::move(Store::open(&env, kPath, request)).value();
    const std::vector<uint64_t> indices = {59, 0, 39, 40, 7, 49, 50, 7};
    const std::vector<uint32_t> partitions(indices.size(), 0);
    std::vector<float> rows(indices.size() * kRowWidth);
    for (int round = 0; round < 2; ++round) {  // from the disk, then from what is kept in memory
      std::fill(rows.begin(), rows.end(), NAN);
      const Status status = store->gather_rows(
          {"gist", partitions, indices}, std::as_writable_bytes(std::span(rows)), RowType::kF32);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      for (size_t i = 0; i < indices.size(); ++i) {
        for (uint32_t at = 0; at < kRowWidth; ++at) {
          ASSERT_EQ(rows[i * kRowWidth + at], expected[indices[i] * kRowWidth + at]);
        }
      }
    }
  }
}

TEST(StoreReencode, later_rows_edits_merges_purges_and_backups_keep_both_formats_apart) {
  FaultEnv env;
  auto store = make(env, 200);
  std::vector<float> expected;
  for (uint32_t round = 0; round < 10; ++round) {
    ASSERT_TRUE(put(*store, round * 20, rows_of(20, round)).is_ok());
    ASSERT_TRUE(store->checkpoint().is_ok());
    if (round % 3 == 1) {
      ASSERT_TRUE(store->reencode("gist", RowType::kQ8).is_ok());
    }
    if (round == 8) {  // over rows that were rounded, and back to exact ones
      ASSERT_TRUE(put(*store, 15, rows_of(10, 99)).is_ok());
    }
    expected = read(*store);
    ASSERT_TRUE(store->check().is_ok());
  }
  EXPECT_GT(counted(*store, "merge_count"), 0u);
  ASSERT_TRUE(store->backup("/copy").is_ok());
  auto copy = Store::open(&env, "/copy", {.read_only = true, .identity = {}, .options = {}});
  ASSERT_TRUE(copy.is_ok()) << copy.status().to_string();
  EXPECT_EQ(read(*copy.value()), expected);
  EXPECT_TRUE(copy.value()->check().is_ok());

  ASSERT_TRUE(store->replace_tail(0, {150 * 32, {}, {}, {}}).is_ok());
  expected.resize(150 * kRowWidth);
  ASSERT_TRUE(store->purge().is_ok());
  EXPECT_EQ(read(*store), expected);
  ASSERT_TRUE(store->close().is_ok());
  store = std::move(open_small(&env)).value();
  EXPECT_EQ(read(*store), expected);
  // All of it, and back to what it was declared as: rounded rows stay as they are.
  ASSERT_TRUE(store->reencode("gist", RowType::kE4m3).is_ok());
  EXPECT_LT(relative_error(read(*store), expected), 0.05);
  const std::vector<float> rounded = read(*store);
  ASSERT_TRUE(store->reencode("gist", RowType::kBf16).is_ok());
  EXPECT_LT(relative_error(read(*store), rounded), 0.004);
  ASSERT_TRUE(store->check().is_ok());
}

TEST(StoreReencode, what_cannot_be_rounded_changes_nothing_and_leaves_no_file) {
  FaultEnv env;
  auto store = make(env);
  std::vector<float> rows = rows_of(kRows, 1);
  rows[7 * kRowWidth + 3] = INFINITY;
  ASSERT_TRUE(put(*store, 0, rows).is_ok());
  ASSERT_TRUE(store->checkpoint().is_ok());
  const std::vector<float> before = read(*store);
  const uint64_t files = env.list(kPath).value().size();
  EXPECT_EQ(store->reencode("gist", RowType::kQ8).status().message(),
            "[reencode] partition 0, from row 0 on: row 7 must be finite to be kept as q8");
  EXPECT_EQ(env.list(kPath).value().size(), files);
  EXPECT_EQ(read(*store), before);
  EXPECT_TRUE(put(*store, 7, rows_of(1, 2)).is_ok());
  EXPECT_TRUE(store->reencode("gist", RowType::kQ8).is_ok());

  EXPECT_EQ(store->reencode("none", RowType::kQ8).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store->reencode("gist", RowType::kU8).status().message(),
            "[reencode] rows of 'gist' are bf16 width 96, got u8 width 96");
  EXPECT_EQ(store->reencode("gist", RowType::kQ8, 97).status().code(),
            StatusCode::kInvalidArgument);
  ASSERT_TRUE(store->define_rows("counts", 1, RowType::kU32, 1).is_ok());
  EXPECT_EQ(store->reencode("counts", RowType::kQ8).status().code(), StatusCode::kInvalidArgument);
}

// Feature bits of the manifest, where versions that do not know the formats look first.
uint32_t features(const FaultEnv& env) {
  return decode_manifest(env.files().at(std::string(kPath) + "/MANIFEST")).value().features;
}

TEST(StoreReencode, the_manifest_is_marked_before_the_first_rows_that_older_versions_misread) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
  ASSERT_TRUE(store->checkpoint().is_ok());
  ASSERT_TRUE(store->reencode("gist", RowType::kBf16).is_ok());  // as they are
  EXPECT_EQ(features(env), 0u);
  ASSERT_TRUE(store->reencode("gist", RowType::kF16).is_ok());
  EXPECT_EQ(features(env), kEncodedRows);
  ASSERT_TRUE(store->backup("/copy").is_ok());
  EXPECT_EQ(decode_manifest(env.files().at("/copy/MANIFEST")).value().features, kEncodedRows);

  FaultEnv second;
  store = make(second);
  const uint64_t generation = store->stats().generation;
  ASSERT_TRUE(store->define_rows("small", 1, RowType::kQ8, 8).is_ok());
  EXPECT_EQ(features(second), kEncodedRows);
  EXPECT_EQ(store->stats().generation, generation + 1);
  ASSERT_TRUE(store->define_rows("other", 1, RowType::kQ4, 8).is_ok());
  EXPECT_EQ(store->stats().generation, generation + 1);
  ASSERT_TRUE(store->check().is_ok());
  store = nullptr;
  EXPECT_EQ(open_small(&second).value()->row_families().size(), 3u);
}

TEST(StoreReencode, a_damaged_page_of_rounded_rows_is_found) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
  ASSERT_TRUE(store->reencode("gist", RowType::kQ8).is_ok());
  ASSERT_TRUE(store->close().is_ok());
  store = nullptr;
  for (auto [path, bytes] : env.files()) {
    if (!path.ends_with(".mcs")) continue;
    const SegmentHeader header = decode_segment_header(bytes).value();
    if (header.type != RowType::kQ8) continue;
    bytes[header.data_offset + 300] ^= std::byte{4};
    env.set_file(path, bytes);
  }
  store = std::move(open_small(&env)).value();
  std::vector<float> rows(kRows * kRowWidth);
  EXPECT_EQ(
      store
          ->read_rows("gist", 0, {0, kRows}, std::as_writable_bytes(std::span(rows)), RowType::kF32)
          .code(),
      StatusCode::kCorruption);
  EXPECT_EQ(store->check().code(), StatusCode::kCorruption);
}

TEST(StoreReencode, a_segment_whose_rows_cannot_be_the_familys_is_refused_at_opening) {
  FaultEnv env;
  auto store = make(env);
  ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
  ASSERT_TRUE(store->checkpoint().is_ok());
  ASSERT_TRUE(store->close().is_ok());
  store = nullptr;
  const std::string manifest_path = std::string(kPath) + "/MANIFEST";
  const auto files = env.files();
  for (const RowType type : {RowType::kF16, RowType::kU32, RowType::kQ8}) {
    Manifest manifest = decode_manifest(files.at(manifest_path)).value();
    for (auto [path, bytes] : files) {
      if (!path.ends_with(".mcs")) continue;
      SegmentHeader header = decode_segment_header(bytes).value();
      if (header.family <= kBuiltinFamilies) continue;
      // As if it had been written so: sound in itself, and the manifest names it.
      header.type = type;
      header.features = is_scaled(type) ? kScaledSegment : 0;
      header.group_size = default_group_size(type, kRowWidth);
      header = seal(header);
      std::memcpy(bytes.data(), &header, sizeof(header));
      env.set_file(path, bytes);
      for (SegmentEntry& entry : manifest.segments) {
        if (entry.id == header.segment_id) entry.header_crc = header.crc;
      }
    }
    env.set_file(manifest_path, encode_manifest(manifest));
    const auto opened = open_small(&env, true);
    EXPECT_EQ(opened.is_ok(), type == RowType::kF16);  // of as many bytes, and floats
    if (opened.is_ok()) continue;
    EXPECT_EQ(opened.status().code(), StatusCode::kCorruption);
    EXPECT_NE(opened.status().message().find(":45: expected rows of bf16 width 96, got "),
              std::string::npos)
        << opened.status().to_string();
  }
}

// ---- crashes ----

struct Step {
  std::function<Status(Store&)> run;
  bool durable = false;
};

std::vector<Step> workload() {
  std::vector<Step> steps;
  const auto add = [&steps](bool durable, std::function<Status(Store&)> run) {
    steps.push_back({std::move(run), durable});
  };
  const auto commit = [](Store& s) { return s.commit(); };
  const auto reencode = [](RowType type) {
    return [type](Store& s) { return s.reencode("gist", type).status(); };
  };
  add(false, [](Store& s) { return s.add_partition("a", "{}").status(); });
  add(false,
      [](Store& s) { return s.append_tokens(0, std::vector<uint32_t>(80 * 32, 1)).status(); });
  add(false, [](Store& s) { return s.define_rows("gist", 1, RowType::kBf16, kRowWidth); });
  add(false, [](Store& s) { return put(s, 0, rows_of(30, 1)); });
  add(true, commit);
  add(true, reencode(RowType::kQ8));
  add(false, [](Store& s) { return put(s, 30, rows_of(20, 2)); });
  add(true, [](Store& s) { return s.checkpoint(); });
  add(false, [](Store& s) { return put(s, 10, rows_of(5, 3)); });
  add(true, reencode(RowType::kQ8));
  add(false, [](Store& s) { return s.define_rows("q4", 1, RowType::kQ4, 8); });
  add(false, [](Store& s) { return put(s, 50, rows_of(10, 4)); });
  add(true, commit);
  add(false, [](Store& s) { return s.replace_tail(0, {55 * 32, {}, {}, {}}).status(); });
  add(true, reencode(RowType::kE4m3));
  add(true, [](Store& s) { return s.purge(); });
  return steps;
}

// Everything readable, or nothing where the family is not defined yet.
std::vector<float> state_of(const Store& store) {
  if (!store.row_family("gist").is_ok()) return {};
  return read(store);
}

size_t run_steps(Store& store, const std::vector<Step>& steps, size_t& acknowledged) {
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].run(store).is_ok()) return i + 1;
    if (steps[i].durable) acknowledged = i + 1;
  }
  return steps.size();
}

TEST(StoreReencode, at_every_write_and_sync_a_crash_leaves_all_rows_rounded_or_none) {
  const std::vector<Step> steps = workload();
  std::vector<std::vector<float>> states(1);
  uint64_t operations = 0;
  {
    FaultEnv env;
    auto store = std::move(Store::create(&env, kPath, {}, small_options())).value();
    for (const Step& step : steps) {
      const Status status = step.run(*store);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      states.push_back(state_of(*store));
    }
    operations = env.operation_count();
  }
  ASSERT_GT(operations, 60u);
  for (uint64_t point = 1; point <= operations; ++point) {
    FaultEnv env;
    auto store = std::move(Store::create(&env, kPath, {}, small_options())).value();
    env.stop_after(point);
    size_t acknowledged = 0;
    const size_t issued = run_steps(*store, steps, acknowledged);
    for (const CrashKind kind : {CrashKind::kLost, CrashKind::kKept, CrashKind::kTorn}) {
      SCOPED_TRACE(::testing::Message() << "operation " << point);
      const auto image = env.crash_image(kind, point);
      auto opened = open_small(image.get());
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      const Status checked = opened.value()->check();
      ASSERT_TRUE(checked.is_ok()) << checked.to_string();
      if (opened.value()->partitions().empty()) {
        ASSERT_EQ(acknowledged, 0u);
        continue;
      }
      const std::vector<float> found = state_of(*opened.value());
      const auto first = states.begin() + static_cast<long>(acknowledged);
      const auto last = states.begin() + static_cast<long>(issued) + 1;
      ASSERT_NE(std::find(first, last, found), last)
          << "acknowledged " << acknowledged << ", issued " << issued;
      if (found.empty()) continue;
      ASSERT_TRUE(opened.value()->reencode("gist", RowType::kQ8).is_ok());  // goes on
      ASSERT_TRUE(opened.value()->check().is_ok());
    }
  }
}

TEST(StoreReencode, a_failed_write_makes_the_store_failed_and_reads_go_on) {
  FaultEnv whole;
  uint64_t operations = 0;
  {
    auto store = make(whole);
    ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
    operations = whole.operation_count();
    ASSERT_TRUE(store->reencode("gist", RowType::kQ8).is_ok());
    operations = whole.operation_count() - operations;
  }
  for (uint64_t point = 1; point <= operations; ++point) {
    FaultEnv env;
    auto store = make(env);
    ASSERT_TRUE(put(*store, 0, rows_of(kRows, 1)).is_ok());
    const std::vector<float> exact = read(*store);
    env.fail_operation(env.operation_count() + point, 28);
    const auto report = store->reencode("gist", RowType::kQ8);
    ASSERT_FALSE(report.is_ok()) << "operation " << point;
    EXPECT_EQ(store->commit().code(), StatusCode::kStoreFailed);
    EXPECT_LT(relative_error(read(*store), exact), 0.01);
    store = nullptr;
    auto again = open_small(&env);
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    EXPECT_TRUE(again.value()->check().is_ok());
    EXPECT_LT(relative_error(read(*again.value()), exact), 0.01);
  }
}

}  // namespace
}  // namespace mc
