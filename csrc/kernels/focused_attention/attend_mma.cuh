// Forward by mma.sync, for bf16 and f16, prefill and decode.
//
// A thread block takes kRows rows of one query block and one KV head; a row is a query of one of
// the group's heads, so grouped heads share every tile of keys (decode: 16 rows are 16 heads). Each
// warp owns 16 * kM rows. The list is read kBlocks blocks at a time through two stages of shared
// memory:
//
//   top of turn j: tile j and the row numbers of tile j + 1 have arrived
//                  start tile j + 1 and the row numbers of tile j + 2, then compute tile j
//
// Row numbers travel one turn ahead, so that no copy waits for an address; positions and bias go
// with them, so that a score waits for nothing but shared memory. Shared rows are swizzled: 16-byte
// cell c of row r lies at cell c ^ (r % 8), which makes ldmatrix free of bank conflicts. Source:
// FlashAttention-2 (Dao 2023) for the loop and the division of work among warps.
#pragma once

#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {

template <class T, int kWidth, int kM, int kWarps, int kBlocks>
struct MmaShape {
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kWarpRows = 16 * kM;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kPlaces = kBlocks * static_cast<int>(kBlockPlaces);
  static constexpr int kCells = kWidth / 8;  // 16-byte cells of a row
  // Places whose scores are in registers at once: beside 32 rows of wide output there is room for
  // one block, and more would spill.
  static constexpr int kStep = kM == 2 && kWidth >= 128 ? static_cast<int>(kBlockPlaces) : kPlaces;
  static constexpr int kKeyTiles = kStep / 8;   // 16x8 score tiles
  static constexpr int kOutTiles = kWidth / 8;  // 16x8 output tiles
  // Copies whose addresses are in registers at once: 128 of these hold the backward's narrow tile
  // only with one.
  static constexpr int kCopiesAtOnce = kWidth == 64 && kBlocks == 1 && kWarps > 1 ? 1 : 4;
  static constexpr int kRing = 3;                         // turns of row numbers in flight
  static constexpr int kBiasRows = kBlocks == 1 ? 4 : 2;  // bias of so many heads goes along
  static constexpr int kTurnNumbers = (2 + kBiasRows) * kPlaces;
  static constexpr int kStageElements = 2 * kPlaces * kWidth;
  static constexpr size_t kSmemBytes =
      sizeof(T) * (kRows * kWidth + 2 * kStageElements) + sizeof(int) * kRing * kTurnNumbers;
};

// Where cell c of row r lies in a tile of shared memory, in elements.
template <int kWidth>
MC_DEVICE int cell_at(int row, int cell) {
  return row * kWidth + ((cell ^ (row & 7)) << 3);
}

template <class T, int kWidth, int kM, int kWarps, int kBlocks>
struct MmaAttention {
  using S = MmaShape<T, kWidth, kM, kWarps, kBlocks>;

  const AttendArgs& args;
  T* queries;  // [kRows, kWidth]
  T* stages;   // [2][keys, values][kPlaces, kWidth]
  int* ring;   // [kRing][rows, positions, bias of kBiasRows heads as float][kPlaces]
  int kv_head, first_query, query_count, row_count, row0;
  int first_bias, bias_rows;  // what the ring holds; 0 rows: no bias, or more heads than fit
  const int* list;
  int list_count;

  float out[kM][S::kOutTiles][4];
  float top[kM][2], sum[kM][2];

  MC_DEVICE MmaAttention(const AttendArgs& args, unsigned char* smem) : args(args) {
    queries = reinterpret_cast<T*>(smem);
    stages = queries + S::kRows * kWidth;
    ring = reinterpret_cast<int*>(stages + 2 * S::kStageElements);
  }

  // Row r of the query block is query r % query_count of head r / query_count of the group.
  MC_DEVICE int head_of(int row) const { return kv_head * args.group + row / query_count; }
  MC_DEVICE int query_of(int row) const { return first_query + row % query_count; }
  MC_DEVICE int64_t at(int row) const {
    return int64_t{query_of(row)} * args.query_heads + head_of(row);
  }
  MC_DEVICE int thread_row(int m, int half) const {
    return row0 + warp_index() * S::kWarpRows + m * 16 + half * 8 + (lane_index() >> 2);
  }
  MC_DEVICE int turns() const { return (list_count + kBlocks - 1) / kBlocks; }
  MC_DEVICE int listed(int i) const { return i < list_count ? list[i] : -1; }

  MC_DEVICE void load_queries() {
    const T* from = static_cast<const T*>(args.q);
    for (int i = threadIdx.x; i < S::kRows * S::kCells; i += S::kThreads) {
      const int row = i / S::kCells, cell = i % S::kCells;
      const bool real = row0 + row < row_count;
      cp_async16(queries + cell_at<kWidth>(row, cell),
                 from + (real ? at(row0 + row) * kWidth + cell * 8 : 0), real ? 16 : 0);
    }
  }

  MC_DEVICE const void* numbers_of_bias(int kind) const {
    return args.bias + int64_t{first_bias + kind - 2} * args.block_count * kBlockPlaces;
  }

  // Starts the row numbers, positions and bias of turn j on their way; absent blocks get row -1.
  MC_DEVICE void load_numbers(int turn) {
    constexpr int kQuads = S::kPlaces / 4;
    int* to = ring + turn % S::kRing * S::kTurnNumbers;
    for (int i = threadIdx.x; i < (2 + bias_rows) * kQuads; i += S::kThreads) {
      const int quad = i % kQuads, kind = i / kQuads;  // 0: rows, 1: positions, then bias
      const int entry = listed(turn * kBlocks + quad / 8);
      int* quad_to = to + i * 4;
      const void* from = kind == 0 ? args.rows : kind == 1 ? args.positions : numbers_of_bias(kind);
      if (entry >= 0 && from != nullptr) {
        const int block = entry & (static_cast<int>(kFullBlock) - 1);
        cp_async16(quad_to,
                   static_cast<const int*>(from) + int64_t{block} * kBlockPlaces + quad % 8 * 4);
      } else {
        quad_to[0] = quad_to[1] = quad_to[2] = quad_to[3] = -1;
      }
    }
  }

  MC_DEVICE void load_tile(int turn) {
    const int* rows = ring + turn % S::kRing * S::kTurnNumbers;
    T* keys = stages + turn % 2 * S::kStageElements;
    T* values = keys + S::kPlaces * kWidth;
#pragma unroll S::kCopiesAtOnce
    for (int i = threadIdx.x; i < S::kPlaces * S::kCells; i += S::kThreads) {
      const int place = i / S::kCells, cell = i % S::kCells;
      const int row = rows[place];
      const int bytes = row >= 0 ? 16 : 0;
      int64_t key = 0, value = 0;
      if (row >= 0) {
        const int block = args.keys_by_place ? listed(turn * kBlocks + place / 32) &
                                                   (static_cast<int>(kFullBlock) - 1)
                                             : 0;
        key = args.key_row(row, block * 32 + place % 32, kv_head) * kWidth + cell * 8;
        value = args.value_row(row, kv_head) * kWidth + cell * 8;
      }
      const int to = cell_at<kWidth>(place, cell);
      cp_async16(keys + to, static_cast<const T*>(args.keys) + key, bytes);
      cp_async16(values + to, static_cast<const T*>(args.values) + value, bytes);
    }
  }

  // scores = q . k for the warp's rows and the places of a step.
  MC_DEVICE void score(const T* keys, float (&scores)[kM][S::kKeyTiles][4]) {
    const int lane = opaque(lane_index());  // else addresses fill the registers, and some spill
    const T* mine = queries + warp_index() * S::kWarpRows * kWidth;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
        scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.f;
      }
    }
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        ldmatrix(a[m], mine + cell_at<kWidth>(m * 16 + (lane & 15), 2 * k + (lane >> 4)));
      }
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; n += 2) {
        uint32_t b[4];
        ldmatrix(b, keys + cell_at<kWidth>(n * 8 + (lane & 7) + (lane >> 4) * 8,
                                           2 * k + (lane >> 3 & 1)));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_16x8x16<T>(scores[m][n], a[m], low);
          mma_16x8x16<T>(scores[m][n + 1], a[m], high);
        }
      }
    }
  }

  // Bias of a thread's two columns of key tile n, for one row.
  MC_DEVICE float2 bias_at(int turn, int first, int n, const float* staged, const float* pool) {
    const int column = 2 * (lane_index() & 3);
    float2 more = make_float2(0.f, 0.f);
    if (staged != nullptr) {
      memcpy(&more, staged + n * 8 + column, sizeof more);
    } else {
      const int entry = listed(turn * kBlocks + first / 32 + n / 4);
      const int block = entry & (static_cast<int>(kFullBlock) - 1);
      const float* from = pool + int64_t{block} * kBlockPlaces + n % 4 * 8 + column;
      if (entry >= 0) memcpy(&more, from, sizeof more);
    }
    return more;
  }

  // The ring's bias of a turn's places for one of its heads; null where it holds none.
  MC_DEVICE const float* staged_bias(int turn, int row) const {
    if (bias_rows == 0) return nullptr;
    const int which = bias_rows == 1 ? 0 : args.bias_row(head_of(row)) - first_bias;
    const int* numbers = ring + turn % S::kRing * S::kTurnNumbers;
    return reinterpret_cast<const float*>(numbers + (2 + which) * S::kPlaces);
  }

  // Turns dot products into scores where that is more than a factor.
  MC_DEVICE void shape_scores(int turn, int first, int m, float (&scores)[S::kKeyTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(thread_row(m, half), row_count - 1);
      const float* staged = staged_bias(turn, row);
      if (staged != nullptr) staged += first;
      const float* pool =
          args.bias == nullptr || staged != nullptr ? nullptr : args.bias_of(head_of(row));
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
        float* pair = &scores[n][2 * half];
        pair[0] *= args.scale;
        pair[1] *= args.scale;
        if (args.softcap > 0.f) {
          pair[0] = capped(pair[0], args.softcap);
          pair[1] = capped(pair[1], args.softcap);
        }
        if (args.bias != nullptr) {
          const float2 more = bias_at(turn, first, n, staged, pool);
          pair[0] += more.x;
          pair[1] += more.y;
        }
      }
    }
  }

  MC_DEVICE void hide(int turn, int first, int m, float (&scores)[S::kKeyTiles][4]) {
    const int column = 2 * (lane_index() & 3);
    const int* rows = ring + turn % S::kRing * S::kTurnNumbers + first;
    const int* positions = rows + S::kPlaces;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(thread_row(m, half), row_count - 1);
      const bool causal = args.positions != nullptr;
      const int now = causal ? args.query_positions[query_of(row)] : 0;
      const int oldest = args.oldest(now);
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int place = n * 8 + column + j;
          const bool seen = rows[place] >= 0 && is_visible(positions[place], now, oldest);
          if (!seen) scores[n][2 * half + j] = -INFINITY;
        }
      }
    }
  }

  MC_DEVICE bool all_full(int turn, int first) const {
    bool full = true;
#pragma unroll
    for (int b = 0; b < S::kStep / 32; ++b) {
      const int entry = listed(turn * kBlocks + first / 32 + b);
      full = full && entry >= 0 && (entry & static_cast<int>(kFullBlock)) != 0;
    }
    return full;
  }

  // Scores times `factor` (to log2 units) become weights; earlier output is scaled down where the
  // maximum grew.
  MC_DEVICE void soften(int m, float factor, float (&scores)[S::kKeyTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = scores[0][2 * half];
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
        most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 2));
      const float before = top[m][half];
      const float after = fmaxf(before, most * factor);
      const float anchor = after == -INFINITY ? 0.f : after;
      const float kept = exp2_fast(before - anchor);
      float total = 0.f;
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float weight = exp2_fast(scores[n][2 * half + j] * factor - anchor);
          scores[n][2 * half + j] = weight;
          total += weight;
        }
      }
      top[m][half] = after;
      sum[m][half] = sum[m][half] * kept + total;                // of this thread's columns only
      if (__ballot_sync(kFullMask, kept != 1.f) == 0) continue;  // most turns: no new maximum
#pragma unroll
      for (int n = 0; n < S::kOutTiles; ++n) {
        out[m][n][2 * half] *= kept;
        out[m][n][2 * half + 1] *= kept;
      }
    }
  }

  MC_DEVICE void add_values(const T* values, const float (&weights)[kM][S::kKeyTiles][4]) {
    const int lane = opaque(lane_index());
#pragma unroll
    for (int k = 0; k < S::kStep / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        a[m][0] = pack2<T>(weights[m][2 * k][0], weights[m][2 * k][1]);
        a[m][1] = pack2<T>(weights[m][2 * k][2], weights[m][2 * k][3]);
        a[m][2] = pack2<T>(weights[m][2 * k + 1][0], weights[m][2 * k + 1][1]);
        a[m][3] = pack2<T>(weights[m][2 * k + 1][2], weights[m][2 * k + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < S::kOutTiles; n += 2) {
        uint32_t b[4];
        ldmatrix<4, true>(b, values + cell_at<kWidth>(k * 16 + (lane & 15), n + (lane >> 4)));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_16x8x16<T>(out[m][n], a[m], low);
          mma_16x8x16<T>(out[m][n + 1], a[m], high);
        }
      }
    }
  }

  MC_DEVICE void compute(int turn) {
    const T* keys = stages + turn % 2 * S::kStageElements;
    const bool shaped = args.softcap > 0.f || args.bias != nullptr;
#pragma unroll 1
    for (int first = 0; first < S::kPlaces; first += S::kStep) {
      float scores[kM][S::kKeyTiles][4];
      score(keys + first * kWidth, scores);
      const bool full = all_full(turn, first);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (shaped) shape_scores(turn, first, m, scores[m]);
        if (!full) hide(turn, first, m, scores[m]);
        soften(m, (shaped ? 1.f : args.scale) * kLog2E, scores[m]);
      }
      add_values(keys + (S::kPlaces + first) * kWidth, scores);
    }
  }

  MC_DEVICE void run_list() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      top[m][0] = top[m][1] = -INFINITY;
      sum[m][0] = sum[m][1] = 0.f;
#pragma unroll
      for (int n = 0; n < S::kOutTiles; ++n) {
        out[m][n][0] = out[m][n][1] = out[m][n][2] = out[m][n][3] = 0.f;
      }
    }
    const int count = turns();
    load_queries();
    load_numbers(0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if (count > 0) load_tile(0);
    load_numbers(1);
    cp_async_commit();
    for (int turn = 0; turn < count; ++turn) {
      cp_async_wait<0>();
      __syncthreads();
      if (turn + 1 < count) load_tile(turn + 1);
      load_numbers(turn + 2);
      cp_async_commit();
      compute(turn);
    }
    cp_async_wait<0>();
  }

  // The sink joins the sum; returns what the row's output is multiplied by, and its lse.
  MC_DEVICE float finish_row(int m, int half, int head, bool cut, float* lse) const {
    float total = sum[m][half];
    total += __shfl_xor_sync(kFullMask, total, 1);
    total += __shfl_xor_sync(kFullMask, total, 2);
    float most = top[m][half], kept = 1.f;
    if (args.sink != nullptr && args.splits == 1) {
      const float sink = args.sink[head] * kLog2E;
      const float after = fmaxf(most, sink);
      kept = after == -INFINITY ? 1.f : exp2_fast(most - after);
      total = total * kept + (after == -INFINITY ? 0.f : exp2_fast(sink - after));
      most = after;
    }
    const float nan = __int_as_float(0x7fc00000);
    *lse = cut ? nan : total == 0.f ? -INFINITY : most * kLn2 + logf(total);
    return cut ? nan : total == 0.f ? 0.f : kept / total;
  }

  MC_DEVICE void store(int split, bool cut) {
    const int column = 2 * (lane_index() & 3);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = thread_row(m, half);
        const bool real = row < row_count;
        float lse;
        const float factor = finish_row(m, half, head_of(real ? row : 0), cut, &lse);
        if (!real) continue;
        const int64_t part = int64_t{split} * args.queries * args.query_heads;
        if ((lane_index() & 3) == 0) {
          if (args.splits == 1) {
            args.lse[at(row)] = lse;
          } else {
            args.part_lse[part + at(row)] = lse;
          }
        }
#pragma unroll
        for (int n = 0; n < S::kOutTiles; ++n) {
          const float low = out[m][n][2 * half] * factor, high = out[m][n][2 * half + 1] * factor;
          if (args.splits == 1) {
            const uint32_t pair = pack2<T>(low, high);
            memcpy(static_cast<T*>(args.out) + at(row) * kWidth + n * 8 + column, &pair,
                   sizeof pair);
          } else {
            const float2 pair = make_float2(low, high);
            memcpy(args.part_out + (part + at(row)) * kWidth + n * 8 + column, &pair, sizeof pair);
          }
        }
      }
    }
  }

  // Takes a slice of a query block's rows and a share of its list; false when there are no rows.
  MC_DEVICE bool place(int query_block, int slice, int kv, int split, bool* cut) {
    kv_head = kv;
    first_query = args.starts[query_block];
    query_count = args.starts[query_block + 1] - first_query;
    row_count = args.group * query_count;
    row0 = slice * S::kRows;
    const int which = args.list_of(kv, query_block), total = args.counts[which];
    *cut = total > args.capacity;
    const int all_turns = *cut ? 0 : (total + kBlocks - 1) / kBlocks;
    const int share = (all_turns + args.splits - 1) / args.splits * kBlocks;
    list = args.blocks + int64_t{which} * args.capacity + int64_t{split} * share;
    list_count = *cut ? 0 : max(0, min(share, total - split * share));
    if (row0 >= row_count) return false;
    bias_rows = 0;
    if (args.bias != nullptr) {
      first_bias = args.bias_row(head_of(row0));
      const int last = args.bias_row(head_of(min(row0 + S::kRows, row_count) - 1));
      if (last - first_bias < S::kBiasRows) bias_rows = last - first_bias + 1;
    }
    return true;
  }
};

// grid: (query blocks * slices, KV heads, splits). Later query blocks, which read more when causal,
// come first.
template <class T, int kWidth, int kM, int kWarps, int kBlocks>
__global__ void __launch_bounds__(kWarps* kWarp)
    attend_mma_kernel(const __grid_constant__ AttendArgs args, int slices) {
  MC_DYNAMIC_SMEM(smem);
  MmaAttention<T, kWidth, kM, kWarps, kBlocks> attention(args, smem);
  const int turn = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  const int split = static_cast<int>(blockIdx.z);
  bool cut;
  if (!attention.place(turn / slices, turn % slices, static_cast<int>(blockIdx.y), split, &cut)) {
    return;
  }
  attention.run_list();
  attention.store(split, cut);
}

template <class T, int kWidth, int kM, int kWarps, int kBlocks>
Status launch_attend_mma(const AttendArgs& args, const Exec& exec) {
  using S = MmaShape<T, kWidth, kM, kWarps, kBlocks>;
  static_assert(S::kSmemBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 have no more");
  const int slices = (args.group * args.query_tile + S::kRows - 1) / S::kRows;
  const dim3 grid(static_cast<unsigned>(args.query_blocks) * slices, args.kv_heads, args.splits);
  return MC_LAUNCH((attend_mma_kernel<T, kWidth, kM, kWarps, kBlocks>), grid, dim3(S::kThreads),
                   S::kSmemBytes, exec.stream, args, slices);
}

}  // namespace mc::focused
