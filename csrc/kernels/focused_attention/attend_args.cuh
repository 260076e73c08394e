// What every attention kernel on CUDA is told, and how it finds rows.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/focused_attention/focused_attention.h"

namespace mc::focused {

// Passed by value. Pointers of absent optionals are null.
struct AttendArgs {
  const void* q;       // rotated already
  const void* keys;    // the pool, or rotated_keys
  const void* values;  // the pool
  const int* rows;
  const int* positions;  // null when not causal
  const float* bias;
  const int* starts;
  const int* query_positions;
  const int* counts;
  const int* blocks;
  const float* sink;
  void* out;
  float* lse;
  float* part_out;  // [splits, T, Hq, E] f32 when splits > 1
  float* part_lse;  // [splits, T, Hq]
  int queries, query_heads, kv_heads, group, query_blocks, block_count, capacity;
  int plan_heads, bias_heads, query_tile, page_shift, splits;
  bool keys_by_place;  // keys is [N, Hkv, 32, E]: row of a place is the place itself
  float scale, softcap;
  int64_t window;

  MC_DEVICE int list_of(int kv_head, int query_block) const {
    return kv_head * plan_heads / kv_heads * query_blocks + query_block;
  }
  MC_DEVICE int64_t pool_row(int row, int kv_head, int shift) const {
    const int64_t page = row >> shift;
    return ((page * kv_heads + kv_head) << shift) + (row & ((1 << shift) - 1));
  }
  MC_DEVICE int64_t value_row(int row, int kv_head) const {
    return pool_row(row, kv_head, page_shift);
  }
  MC_DEVICE int64_t key_row(int row, int place, int kv_head) const {
    return keys_by_place ? pool_row(place, kv_head, 5) : pool_row(row, kv_head, page_shift);
  }
  MC_DEVICE int bias_row(int head) const { return head * bias_heads / query_heads; }
  MC_DEVICE const float* bias_of(int head) const {
    return bias + int64_t{bias_row(head)} * block_count * kBlockPlaces;
  }
  // Least visible position, given the query's.
  MC_DEVICE int oldest(int position) const {
    if (window == 0) return 0;
    const int64_t least = int64_t{position} - window + 1;
    return least < 0 ? 0 : static_cast<int>(least);
  }
};

MC_DEVICE bool is_visible(int position, int query_position, int oldest) {
  return position < 0 || (position <= query_position && position >= oldest);
}

// softcap * tanh(score / softcap)
MC_DEVICE float capped(float score, float softcap) {
  const float e = exp2_fast(fminf(score / softcap, 20.f) * (2.f * kLog2E));
  return softcap * (1.f - 2.f / (1.f + e));
}

AttendArgs attend_args(const FocusedAttention& in);

// Rotates queries and keys into the workspace and points args at them, when there are tables.
int64_t rotated_bytes(const FocusedAttention& in);
Status rotate_into(const FocusedAttention& in, void* workspace, AttendArgs& args, const Exec& exec);

// Float32, forward and backward: correct and deterministic, without matrix instructions.
Status attend_f32(const AttendArgs& args, int width, const Exec& exec);

// The matrix-instruction kernels, one file a width; splits > 1 writes the parts.
struct AttendShape {
  int row_tile;  // 16, 64 or 128 rows (of queries times heads of one KV head) a thread block
  int splits;
};
Status attend_mma_64(DType dtype, const AttendArgs& args, AttendShape shape, const Exec& exec);
Status attend_mma_128(DType dtype, const AttendArgs& args, AttendShape shape, const Exec& exec);
Status attend_mma_256(DType dtype, const AttendArgs& args, AttendShape shape, const Exec& exec);

}  // namespace mc::focused
