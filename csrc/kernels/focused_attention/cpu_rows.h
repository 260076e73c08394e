// Loads tiles of keys and values on CPU: gathers rows of the pools, rotates, transposes.
#pragma once

#include <bit>

#include "kernels/common/aligned.h"
#include "kernels/focused_attention/cpu_tile.h"
#include "kernels/focused_attention/focused_attention.h"

namespace mc::focused {

inline constexpr int64_t kGroupBlocks = 4;  // blocks that share one pass of softmax
inline constexpr int64_t kGroupPlaces = kGroupBlocks * kBlockPlaces;
inline constexpr int64_t kRowTile = 64;    // rows of scores in flight
inline constexpr int64_t kWidthMax = 256;  // of a head
inline constexpr float kLog2e = 1.4426950408889634f;

// The blocks of one list, taken kGroupBlocks at a time.
struct BlockGroup {
  int64_t count = 0;            // blocks
  int64_t block[kGroupBlocks];  // numbers without the flag
  bool full[kGroupBlocks];
  uint32_t filled[kGroupBlocks];  // bit masks of non-empty places
  int64_t start[kGroupBlocks];    // row of the first place, when the 32 rows lie together; or -1
  bool all_full() const {
    for (int64_t i = 0; i < count; ++i) {
      if (!full[i]) return false;
    }
    return true;
  }
  int64_t places() const { return count * kBlockPlaces; }
};

// What one query block reads with one KV head.
struct ReadList {
  const int32_t* blocks;
  int64_t count;
  bool cut;  // longer than its capacity: the answer is NaN
};
ReadList read_list(const FocusedAttention& in, int64_t query_block, int64_t kv_head);

// One row at the end of its list.
struct RowSums {
  const float* sums;  // [E] of weights times values
  float max, sum;     // log2; of weights
  bool cut;
};

class RowStore {
 public:
  RowStore(const FocusedAttention& in, const TileOps& ops, const TensorView& out,
           const TensorView& lse)
      : in_(in), ops_(ops), out_(out), lse_(lse) {}
  // Joins the learned sink, divides, writes out and lse.
  void store(int64_t query, int64_t head, const RowSums& row) const;

 private:
  const FocusedAttention& in_;
  const TileOps& ops_;
  const TensorView &out_, &lse_;
};

class RowLoader {
 public:
  RowLoader(const FocusedAttention& in, const TileOps& ops)
      : in_(in), ops_(ops), page_shift_(std::countr_zero(static_cast<uint64_t>(in.page_rows()))) {}

  BlockGroup group(const int32_t* list, int64_t first, int64_t count) const;
  // [places, E] f32, rotated when keys are un-rotated; empty places are zero.
  void keys_f32(const BlockGroup& group, int64_t kv_head, float* to) const;
  void values_f32(const BlockGroup& group, int64_t kv_head, float* to) const;
  // [places, E] bf16 for the pair path.
  void keys_bf16(const BlockGroup& group, int64_t kv_head, uint16_t* to) const;
  // [places / 2, E] pairs of bf16.
  void value_pairs(const BlockGroup& group, int64_t kv_head, uint32_t* to) const;
  // [E] f32, rotated.
  void query_f32(int64_t query, int64_t head, float* to) const;
  void bias(const BlockGroup& group, int64_t bias_head, float* to) const;  // times log2(e)
  // [count] masks of the places that a query sees.
  void visible(const BlockGroup& group, int64_t query, uint32_t* to) const;
  // What the loads above will read of `group`, for products of `steps` times kAheadStep turns.
  void announce(const BlockGroup& group, int64_t kv_head, int64_t steps, Ahead* ahead) const;
  // attend(group) for every group of a list that is not cut; meanwhile the next one is announced
  // for products of steps(places).
  template <class Steps, class Attend>
  void each_group(const ReadList& list, int64_t kv_head, Ahead* ahead, Steps steps,
                  Attend attend) const {
    if (list.cut) return;
    BlockGroup now = group(list.blocks, 0, list.count);
    for (int64_t i = 0; i < list.count; i += kGroupBlocks) {
      const BlockGroup next = group(list.blocks, i + kGroupBlocks, list.count);
      announce(next, kv_head, steps(now.places()), ahead);
      attend(now);
      now = next;
    }
  }
  int64_t row_offset(int64_t row, int64_t kv_head) const;  // elements into a pool
  const float* key_table(int64_t block, int64_t place) const {
    return in_.key_rope.as<float>() + (block * kBlockPlaces + place) * in_.rope_width();
  }
  const float* query_table(int64_t query) const {
    return in_.query_rope.as<float>() + query * in_.rope_width();
  }

 private:
  void row_f32(const TensorView& pool, int32_t row, int64_t kv_head, float* to) const;
  void key_f32(int64_t block, int64_t place, int64_t kv_head, float* to) const;
  void rotated_keys_bf16(const BlockGroup& group, int64_t kv_head, uint16_t* to) const;

  int64_t start_of(const int32_t* rows) const;

  const FocusedAttention& in_;
  const TileOps& ops_;
  const int page_shift_;
};

}  // namespace mc::focused
