#include "storage/column.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace mc {
namespace {

constexpr uint32_t kRowBytes = sizeof(uint32_t);

const std::byte* rows_of(const std::vector<uint32_t>& values) {
  return std::as_bytes(std::span(values)).data();
}

std::vector<uint32_t> read(const Column& column) {
  std::vector<uint32_t> values;
  for (const Run& run : column.runs()) {
    EXPECT_EQ(run.first, values.size());
    values.resize(run.end);
    std::memcpy(&values[run.first], run.rows, (run.end - run.first) * run.row_bytes);
  }
  EXPECT_EQ(values.size(), column.row_count());
  return values;
}

TEST(Column, appends_of_every_size_come_back) {
  Column column;
  std::vector<uint32_t> expected;
  for (size_t count : {1, 0, 63, 64, 65, 1000, 300'000, 1}) {
    std::vector<uint32_t> values(count);
    std::iota(values.begin(), values.end(), static_cast<uint32_t>(expected.size()));
    column.append(rows_of(values), count, kRowBytes);
    expected.insert(expected.end(), values.begin(), values.end());
    ASSERT_EQ(read(column), expected);
  }
  EXPECT_EQ(column.first_gap(), column.row_count());
}

TEST(Column, random_appends_and_overwrites_equal_a_vector_and_copies_stay) {
  std::mt19937 random(3);
  Column column;
  std::vector<uint32_t> expected;
  std::vector<std::pair<Column, std::vector<uint32_t>>> copies;
  for (uint32_t step = 0; step < 400; ++step) {
    std::vector<uint32_t> values(random() % 50 + 1, step);
    if (expected.size() > values.size() && random() % 2 == 0) {
      const uint64_t first = random() % (expected.size() - values.size() + 1);
      column.overwrite(first, rows_of(values), values.size(), kRowBytes);
      std::copy(values.begin(), values.end(), expected.begin() + static_cast<long>(first));
    } else {
      column.append(rows_of(values), values.size(), kRowBytes);
      expected.insert(expected.end(), values.begin(), values.end());
    }
    ASSERT_EQ(read(column), expected) << "step " << step;
    if (step % 20 == 0) copies.emplace_back(column, expected);
  }
  for (const auto& [copy, was] : copies) EXPECT_EQ(read(copy), was);
}

TEST(Column, a_cursor_finds_every_row_across_runs) {
  Column column;
  std::vector<uint32_t> values(5000);
  std::iota(values.begin(), values.end(), 0u);
  column.append(rows_of(values), 100, kRowBytes);
  column.append(rows_of(values) + 100 * kRowBytes, 4900, kRowBytes);
  column.overwrite(70, rows_of(values) + 70 * kRowBytes, 60, kRowBytes);
  Column::Cursor cursor(column);
  for (uint64_t index : {4999, 0, 69, 70, 129, 130, 99, 100, 4999}) {
    const std::byte* row = nullptr;
    cursor.locate(index, row);
    uint32_t value;
    std::memcpy(&value, row, sizeof(value));
    EXPECT_EQ(value, index);
  }
}

TEST(Column, a_placed_run_cuts_what_it_covers) {
  const auto run = [](uint64_t first, uint64_t end) {
    static std::byte memory[1];
    return mc::Run{first, end, memory + first, 1, nullptr, nullptr};
  };
  RunList runs;
  for (const auto& [first, end] : {std::pair{0, 10}, {10, 20}, {30, 40}, {5, 12}, {0, 100}}) {
    place(runs, run(static_cast<uint64_t>(first), static_cast<uint64_t>(end)));
    for (size_t i = 1; i < runs.size(); ++i) EXPECT_LE(runs[i - 1].end, runs[i].first);
    if (end == 12) {
      ASSERT_EQ(runs.size(), 4u);
      EXPECT_EQ(runs[0].end, 5u);
      EXPECT_EQ(runs[2].first, 12u);
      EXPECT_EQ(runs[2].rows, run(12, 20).rows);
    }
  }
  EXPECT_EQ(runs.size(), 1u);
}

}  // namespace
}  // namespace mc
