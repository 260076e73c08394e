#include "format/row_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace mc {
namespace {

constexpr RowType kScaledTypes[] = {RowType::kQ8, RowType::kE4m3, RowType::kQ4};

// The largest step between codes, over the largest code.
double step_of(RowType type) {
  switch (type) {
    case RowType::kQ8: return 1.0 / 127;
    case RowType::kE4m3: return 32.0 / 448;
    default: return 1.0 / 7;
  }
}

std::vector<float> gaussian(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<std::byte> encoded(const RowFormat& format, const std::vector<float>& values) {
  std::vector<std::byte> row(format.row_bytes(), std::byte{0xAA});
  EXPECT_TRUE(encode_row(format, values.data(), row.data()));
  return row;
}

std::vector<float> decoded(const RowFormat& format, const std::vector<std::byte>& row) {
  std::vector<float> values(format.width, NAN);
  decode_row(format, row.data(), values.data());
  return values;
}

TEST(RowFormat, codes_and_names_are_what_the_disk_has) {
  for (const auto& [code, name] : {std::pair{1, "u8"},
                                   {2, "i8"},
                                   {3, "f16"},
                                   {4, "bf16"},
                                   {5, "f32"},
                                   {6, "u32"},
                                   {7, "u64"},
                                   {8, "q8"},
                                   {9, "e4m3"},
                                   {10, "q4"}}) {
    EXPECT_EQ(row_type_name(static_cast<RowType>(code)), name);
    EXPECT_EQ(row_type_from_name(name), static_cast<RowType>(code));
  }
  EXPECT_FALSE(is_known(static_cast<RowType>(0)));
  EXPECT_FALSE(is_known(static_cast<RowType>(11)));
  EXPECT_FALSE(row_type_from_name("unknown"));
}

TEST(RowFormat, rows_have_the_bytes_of_the_table) {
  EXPECT_EQ((RowFormat{RowType::kBf16, 576, 0}).row_bytes(), 1152u);
  EXPECT_EQ((RowFormat{RowType::kQ8, 576, 576}).row_bytes(), 580u);
  EXPECT_EQ((RowFormat{RowType::kQ8, 576, 64}).row_bytes(), 36u + 576);
  EXPECT_EQ((RowFormat{RowType::kE4m3, 5, 2}).row_bytes(), 12u + 5);
  EXPECT_EQ((RowFormat{RowType::kQ4, 577, 64}).row_bytes(), 40u + 289);
  EXPECT_EQ(default_group_size(RowType::kQ8, 576), 576u);
  EXPECT_EQ(default_group_size(RowType::kQ4, 576), 64u);
  EXPECT_EQ(default_group_size(RowType::kQ4, 5), 5u);
  EXPECT_EQ(default_group_size(RowType::kBf16, 576), 0u);
}

TEST(RowFormat, only_whole_descriptions_are_valid) {
  EXPECT_TRUE((RowFormat{RowType::kQ8, 64, 64}).is_valid());
  for (const RowFormat& bad :
       {RowFormat{RowType::kQ8, 64, 0}, RowFormat{RowType::kQ8, 64, 65},
        RowFormat{RowType::kF32, 64, 64}, RowFormat{RowType::kF32, 0, 0},
        RowFormat{static_cast<RowType>(0), 64, 0}, RowFormat{static_cast<RowType>(11), 64, 64},
        RowFormat{RowType::kF32, 0xFFFFFFFF, 0}, RowFormat{RowType::kQ8, 0xFFFFFFFF, 1}}) {
    EXPECT_FALSE(bad.is_valid()) << describe(bad);
  }
}

TEST(RowFormat, no_element_is_further_off_than_half_a_step) {
  for (const RowType type : kScaledTypes) {
    for (const uint32_t width : {1u, 2u, 7u, 63u, 64u, 65u, 576u}) {
      for (const uint32_t group : {1u, 3u, 64u, width}) {
        if (group > width) continue;
        const RowFormat format{type, width, group};
        const std::vector<float> values = gaussian(width, width * 7 + group);
        const std::vector<std::byte> row = encoded(format, values);
        const std::vector<float> back = decoded(format, row);
        for (uint32_t start = 0; start < width; start += group) {
          float highest = 0;
          const uint32_t end = std::min(width, start + group);
          for (uint32_t i = start; i < end; ++i) highest = std::max(highest, std::fabs(values[i]));
          for (uint32_t i = start; i < end; ++i) {
            ASSERT_LE(std::fabs(back[i] - values[i]), highest * step_of(type) * 0.5001)
                << describe(format) << " element " << i;
          }
        }
        EXPECT_TRUE(check_rows(format, row).is_ok());
        // What was rounded once keeps its codes, and its values to the last bits of the scale.
        const std::vector<float> twice = decoded(format, encoded(format, back));
        for (uint32_t i = 0; i < width; ++i) {
          ASSERT_NEAR(twice[i], back[i], std::fabs(back[i]) * 1e-6) << describe(format);
        }
      }
    }
  }
}

TEST(RowFormat, scales_lie_in_front_and_int4_pairs_begin_in_the_low_bits) {
  const RowFormat format{RowType::kQ4, 3, 2};
  const std::vector<std::byte> row = encoded(format, {7.f, -7.f, 0.5f});
  ASSERT_EQ(row.size(), 10u);
  float scales[2];
  std::memcpy(scales, row.data(), sizeof(scales));
  EXPECT_EQ(scales[0], 1.f);
  EXPECT_EQ(scales[1], 0.5f / 7);
  EXPECT_EQ(row[8], std::byte{0x97});  // 7, then -7
  EXPECT_EQ(row[9], std::byte{0x07});  // nothing in the high bits
}

TEST(RowFormat, zeros_tiny_and_huge_values_stay_finite) {
  const float most = std::numeric_limits<float>::max();
  for (const RowType type : kScaledTypes) {
    const RowFormat format{type, 4, 4};
    EXPECT_EQ(decoded(format, encoded(format, {0, -0.f, 0, 0})), (std::vector<float>{0, 0, 0, 0}));
    EXPECT_EQ(decoded(format, encoded(format, {1e-44f, -1e-40f, 0, 0})),
              (std::vector<float>{0, 0, 0, 0}));
    const std::vector<std::byte> huge = encoded(format, {most, -most, 0, most / 2});
    EXPECT_TRUE(check_rows(format, huge).is_ok());
    EXPECT_NEAR(decoded(format, huge)[0] / most, 1.0, 1e-6);
  }
}

TEST(RowFormat, what_is_not_finite_is_refused_with_its_row) {
  const std::vector<float> rows = {1, 2, 3, 4, NAN, 6};
  for (const RowType type : kScaledTypes) {
    const RowFormat from{RowType::kF32, 2, 0}, to{type, 2, 2};
    std::vector<std::byte> out(3 * to.row_bytes());
    EXPECT_EQ(convert_rows(from, std::as_bytes(std::span(rows)), to, out).message(),
              "row 2 must be finite to be kept as " + std::string(row_type_name(type)));
    std::vector<std::byte> row = encoded(to, {1, 2});
    const float scale = -1.f;
    std::memcpy(row.data(), &scale, sizeof(scale));
    EXPECT_EQ(check_rows(to, row).message(), "row 0: scale 0 must be finite and >= 0, got -1");
  }
  std::vector<std::byte> row = encoded({RowType::kE4m3, 2, 2}, {1, 2});
  row[5] = std::byte{0x7F};
  EXPECT_EQ(check_rows({RowType::kE4m3, 2, 2}, row).message(), "row 0: element 1 must be finite");
}

TEST(RowFormat, rows_go_from_any_float_format_to_any) {
  const std::vector<float> values = gaussian(5 * 32, 5);
  const RowFormat floats{RowType::kF32, 32, 0};
  for (const RowType type :
       {RowType::kF32, RowType::kF16, RowType::kBf16, RowType::kQ8, RowType::kE4m3, RowType::kQ4}) {
    const RowFormat format{type, 32, default_group_size(type, 32)};
    std::vector<std::byte> rows(5 * format.row_bytes());
    std::vector<float> back(values.size());
    ASSERT_TRUE(convert_rows(floats, std::as_bytes(std::span(values)), format, rows).is_ok());
    ASSERT_TRUE(
        convert_rows(format, rows, floats, std::as_writable_bytes(std::span(back))).is_ok());
    double error = 0, sum = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += (back[i] - values[i]) * (back[i] - values[i]);
      sum += values[i] * values[i];
    }
    EXPECT_LT(std::sqrt(error / sum), 0.12) << row_type_name(type);
    EXPECT_EQ(error == 0, type == RowType::kF32) << row_type_name(type);
  }
}

}  // namespace
}  // namespace mc
