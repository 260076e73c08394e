#include "kernels/focused_attention/cpu_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mc::focused {

ReadList read_list(const FocusedAttention& in, int64_t query_block, int64_t kv_head) {
  const int64_t list =
      kv_head * in.plan_heads() / in.kv_heads() * in.query_block_count() + query_block;
  const int64_t count = in.counts.as<int32_t>()[list];
  return {in.blocks.as<int32_t>() + list * in.list_capacity(), count, count > in.list_capacity()};
}

void RowStore::store(int64_t query, int64_t head, const RowSums& row) const {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const int64_t width = in_.width(), at = query * in_.query_heads() + head;
  float max = row.max, sum = row.sum, kept = 1.0f;
  if (in_.sink.defined()) {
    const float sink = in_.sink.as<float>()[head] * kLog2e;
    const float top = std::max(max, sink);
    kept = max == top ? 1.0f : std::exp2(max - top);
    sum = sum * kept + (top == kMinusInfinity ? 0.0f : std::exp2(sink - top));
    max = top;
  }
  float factor = sum == 0.0f ? 0.0f : kept / sum;
  if (row.cut) factor = std::numeric_limits<float>::quiet_NaN();
  ops_.from_f32(row.sums, out_.dtype, width, out_.as<char>() + at * width * dtype_bytes(out_.dtype),
                factor);
  lse_.as<float>()[at] = row.cut       ? factor
                         : sum == 0.0f ? kMinusInfinity
                                       : max / kLog2e + std::log(sum);
}

BlockGroup RowLoader::group(const int32_t* list, int64_t first, int64_t count) const {
  BlockGroup group;
  group.count = count - first < kGroupBlocks ? count - first : kGroupBlocks;
  for (int64_t i = 0; i < group.count; ++i) {
    const int32_t listed = list[first + i];
    group.full[i] = (listed & kFullBlock) != 0;
    group.block[i] = listed & (kFullBlock - 1);
    const int32_t* rows = in_.rows.as<int32_t>() + group.block[i] * kBlockPlaces;
    group.start[i] = start_of(rows);
    uint32_t filled = group.start[i] >= 0 ? ~0u : 0;
    for (int64_t j = 0; j < kBlockPlaces && group.start[i] < 0; ++j) {
      filled |= static_cast<uint32_t>(rows[j] >= 0) << j;
    }
    group.filled[i] = filled;
  }
  return group;
}

// Rows one behind the other lie so in memory too, within a page.
int64_t RowLoader::start_of(const int32_t* rows) const {
  int32_t apart = 0;
  for (int32_t j = 0; j < kBlockPlaces; ++j) apart |= (rows[j] - j) ^ rows[0];
  const bool in_page = (rows[0] & (in_.page_rows() - 1)) + kBlockPlaces <= in_.page_rows();
  return apart == 0 && rows[0] >= 0 && in_page ? rows[0] : -1;
}

int64_t RowLoader::row_offset(int64_t row, int64_t kv_head) const {
  const int64_t page = row >> page_shift_, slot = row & (in_.page_rows() - 1);
  return (((page * in_.kv_heads() + kv_head) << page_shift_) + slot) * in_.width();
}

void RowLoader::row_f32(const TensorView& pool, int32_t row, int64_t kv_head, float* to) const {
  const int64_t width = in_.width(), bytes = dtype_bytes(pool.dtype);
  if (row < 0) {
    std::memset(to, 0, static_cast<size_t>(width) * sizeof(float));
  } else {
    ops_.to_f32(pool.as<char>() + row_offset(row, kv_head) * bytes, pool.dtype, width, to);
  }
}

void RowLoader::key_f32(int64_t block, int64_t place, int64_t kv_head, float* to) const {
  row_f32(in_.keys, in_.rows.as<int32_t>()[block * kBlockPlaces + place], kv_head, to);
  if (!in_.key_rope.defined()) return;
  ops_.rotate(to, key_table(block, place), in_.rope_width() / 2, 1.0f);
}

void RowLoader::keys_f32(const BlockGroup& group, int64_t kv_head, float* to) const {
  for (int64_t i = 0; i < group.count; ++i) {
    for (int64_t j = 0; j < kBlockPlaces; ++j, to += in_.width()) {
      key_f32(group.block[i], j, kv_head, to);
    }
  }
}

void RowLoader::values_f32(const BlockGroup& group, int64_t kv_head, float* to) const {
  for (int64_t i = 0; i < group.count; ++i) {
    const int32_t* rows = in_.rows.as<int32_t>() + group.block[i] * kBlockPlaces;
    for (int64_t j = 0; j < kBlockPlaces; ++j, to += in_.width()) {
      row_f32(in_.values, rows[j], kv_head, to);
    }
  }
}

void RowLoader::rotated_keys_bf16(const BlockGroup& group, int64_t kv_head, uint16_t* to) const {
  alignas(64) float row[kWidthMax];
  for (int64_t i = 0; i < group.count; ++i) {
    for (int64_t j = 0; j < kBlockPlaces; ++j, to += in_.width()) {
      key_f32(group.block[i], j, kv_head, row);
      ops_.from_f32(row, DType::kBF16, in_.width(), to, 1.0f);
    }
  }
}

void RowLoader::keys_bf16(const BlockGroup& group, int64_t kv_head, uint16_t* to) const {
  const int64_t width = in_.width();
  if (in_.key_rope.defined()) return rotated_keys_bf16(group, kv_head, to);
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(uint16_t);
  for (int64_t i = 0; i < group.count; ++i) {
    const int32_t* rows = in_.rows.as<int32_t>() + group.block[i] * kBlockPlaces;
    for (int64_t j = 0; j < kBlockPlaces; ++j, to += width) {
      if (rows[j] < 0) {
        std::memset(to, 0, row_bytes);
      } else {
        std::memcpy(to, in_.keys.as<uint16_t>() + row_offset(rows[j], kv_head), row_bytes);
      }
    }
  }
}

void RowLoader::value_pairs(const BlockGroup& group, int64_t kv_head, uint32_t* to) const {
  alignas(64) static constexpr uint16_t kZeros[kWidthMax] = {};
  const int64_t width = in_.width();
  const auto* pool = in_.values.as<uint16_t>();
  for (int64_t i = 0; i < group.count; ++i) {
    const int32_t* rows = in_.rows.as<int32_t>() + group.block[i] * kBlockPlaces;
    for (int64_t j = 0; j < kBlockPlaces; j += 2, to += width) {
      const uint16_t* even = rows[j] < 0 ? kZeros : pool + row_offset(rows[j], kv_head);
      const uint16_t* odd = rows[j + 1] < 0 ? kZeros : pool + row_offset(rows[j + 1], kv_head);
      ops_.pair_rows(even, odd, width, to);
    }
  }
}

void RowLoader::query_f32(int64_t query, int64_t head, float* to) const {
  const int64_t width = in_.width();
  const int64_t offset = (query * in_.query_heads() + head) * width;
  ops_.to_f32(in_.q.as<char>() + offset * dtype_bytes(in_.q.dtype), in_.q.dtype, width, to);
  if (in_.query_rope.defined()) {
    ops_.rotate(to, query_table(query), in_.rope_width() / 2, 1.0f);
  }
}

void RowLoader::bias(const BlockGroup& group, int64_t bias_head, float* to) const {
  const float* bias = in_.bias.as<float>() + bias_head * in_.block_count() * kBlockPlaces;
  for (int64_t i = 0; i < group.count; ++i) {
    ops_.from_f32(bias + group.block[i] * kBlockPlaces, DType::kF32, kBlockPlaces,
                  to + i * kBlockPlaces, kLog2e);
  }
}

void RowLoader::visible(const BlockGroup& group, int64_t query, uint32_t* to) const {
  for (int64_t i = 0; i < group.count; ++i) {
    to[i] = group.filled[i];
    if (group.full[i] || !in_.causal()) continue;
    to[i] &= ops_.visible(in_.positions.as<int32_t>() + group.block[i] * kBlockPlaces,
                          in_.query_positions.as<int32_t>()[query], in_.window);
  }
}

void RowLoader::announce(const BlockGroup& group, int64_t kv_head, int64_t steps,
                         Ahead* ahead) const {
  const int64_t bytes = dtype_bytes(in_.keys.dtype), row_bytes = in_.width() * bytes;
  const int64_t table_bytes = in_.key_rope.defined() ? kBlockPlaces * in_.rope_width() * 4 : 0;
  ahead->count = ahead->lines = ahead->next_span = ahead->next_line = 0;
  const auto add_rows = [&](int64_t row, int64_t rows) {
    const int64_t offset = row_offset(row, kv_head) * bytes;
    ahead->add(in_.keys.as<char>() + offset, rows * row_bytes);
    ahead->add(in_.values.as<char>() + offset, rows * row_bytes);
  };
  for (int64_t i = 0; i < group.count; ++i) {
    if (table_bytes > 0) ahead->add(key_table(group.block[i], 0), table_bytes);
    if (group.start[i] >= 0) {
      add_rows(group.start[i], kBlockPlaces);
      continue;
    }
    const int32_t* rows = in_.rows.as<int32_t>() + group.block[i] * kBlockPlaces;
    for (int64_t j = 0; j < kBlockPlaces; ++j) {
      if (rows[j] >= 0) add_rows(rows[j], 1);
    }
  }
  ahead->lines_a_step = (ahead->lines + steps - 1) / steps;
}

}  // namespace mc::focused
