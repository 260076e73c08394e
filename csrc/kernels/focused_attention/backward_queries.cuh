// Gradient of the queries by mma.sync: the forward's loop over a query block's list, with the
// weights made again from lse. Rows, lists, stages and their order are those of attend_mma.cuh.
#pragma once

#include "kernels/focused_attention/attend_mma.cuh"
#include "kernels/focused_attention/backward_args.cuh"

namespace mc::focused {

template <class T, int kWidth, int kWarps>
struct QueryGradient {
  static constexpr int kBlocks = 1;  // a turn is one block, so a step is too
  using Forward = MmaAttention<T, kWidth, 1, kWarps, kBlocks>;
  using S = typename Forward::S;
  static constexpr size_t kSmemBytes = S::kSmemBytes + sizeof(T) * S::kRows * kWidth;
  // Thread blocks of a multiprocessor: at 64 columns 128 registers let four in, at 128 columns
  // shared memory lets in two on sm_80 (255 registers then). 0 leaves it open: where three fit, the
  // compiler finds 168 registers without spilling, and told so it spills.
  static constexpr int kFit = resident_blocks(kSmemBytes, kWidth == 64 ? 4 : 3);
  static constexpr int kResident = kWidth == 64 || (kWidth == 128 && kFit < 3) ? kFit : 0;

  Forward& tiles;  // its `out` gathers the gradient
  const BackwardArgs& back;
  T* grad_outs;  // [kRows, kWidth]
  float lse2[2], delta[2];

  MC_DEVICE QueryGradient(Forward& tiles, const BackwardArgs& back, unsigned char* smem)
      : tiles(tiles), back(back), grad_outs(reinterpret_cast<T*>(smem + S::kSmemBytes)) {}

  MC_DEVICE void load_rows() {
    const T* from = static_cast<const T*>(back.grad_out);
    for (int i = threadIdx.x; i < S::kRows * S::kCells; i += S::kThreads) {
      const int row = i / S::kCells, cell = i % S::kCells;
      const bool real = tiles.row0 + row < tiles.row_count;
      cp_async16(grad_outs + cell_at<kWidth>(row, cell),
                 from + (real ? tiles.at(tiles.row0 + row) * kWidth + cell * 8 : 0), real ? 16 : 0);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tiles.thread_row(0, half);
      const bool real = row < tiles.row_count;
      lse2[half] = real ? back.lse2[tiles.at(row)] : INFINITY;
      delta[half] = real ? back.delta[tiles.at(row)] : 0.f;
    }
  }

  // grads = grad_out . v, like Forward::score.
  MC_DEVICE void grad_weights(const T* values, float (&grads)[S::kKeyTiles][4]) {
    const int lane = lane_index();
    const T* mine = grad_outs + warp_index() * S::kWarpRows * kWidth;
#pragma unroll
    for (int n = 0; n < S::kKeyTiles; ++n) {
      grads[n][0] = grads[n][1] = grads[n][2] = grads[n][3] = 0.f;
    }
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t a[4];
      ldmatrix(a, mine + cell_at<kWidth>(lane & 15, 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; n += 2) {
        uint32_t b[4];
        ldmatrix(b, values + cell_at<kWidth>(n * 8 + (lane & 7) + (lane >> 4) * 8,
                                             2 * k + (lane >> 3 & 1)));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_16x8x16<T>(grads[n], a, low);
        mma_16x8x16<T>(grads[n + 1], a, high);
      }
    }
  }

  // scores becomes d loss / d (q . k).
  MC_DEVICE void grad_scores(int turn, float (&scores)[S::kKeyTiles][4],
                             const float (&grads)[S::kKeyTiles][4]) {
    const AttendArgs& args = tiles.args;
    const int* rows = tiles.ring + turn % S::kRing * S::kTurnNumbers;
    const int* positions = rows + S::kPlaces;
    const int block = tiles.listed(turn) & (static_cast<int>(kFullBlock) - 1);
    const bool full = tiles.all_full(turn, 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(tiles.thread_row(0, half), tiles.row_count - 1);
      const int now = args.positions == nullptr ? 0 : args.query_positions[tiles.query_of(row)];
      const int oldest = args.oldest(now);
      const float* bias = tiles.staged_bias(turn, row);
      if (bias == nullptr && args.bias != nullptr) {
        bias = args.bias_of(tiles.head_of(row)) + int64_t{block} * kBlockPlaces;
      }
#pragma unroll
      for (int n = 0; n < S::kKeyTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int place = n * 8 + 2 * (lane_index() & 3) + j;
          const bool seen = full || (rows[place] >= 0 && is_visible(positions[place], now, oldest));
          scores[n][2 * half + j] =
              score_grad(args, scores[n][2 * half + j], grads[n][2 * half + j],
                         bias == nullptr ? 0.f : bias[place], lse2[half], delta[half], seen)
                  .grad_dot;
        }
      }
    }
  }

  MC_DEVICE void run_list() {
#pragma unroll
    for (int n = 0; n < S::kOutTiles; ++n) {
      tiles.out[0][n][0] = tiles.out[0][n][1] = tiles.out[0][n][2] = tiles.out[0][n][3] = 0.f;
    }
    const int count = tiles.turns();
    tiles.load_queries();
    load_rows();
    tiles.load_numbers(0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if (count > 0) tiles.load_tile(0);
    tiles.load_numbers(1);
    cp_async_commit();
    for (int turn = 0; turn < count; ++turn) {
      cp_async_wait<0>();
      __syncthreads();
      if (turn + 1 < count) tiles.load_tile(turn + 1);
      tiles.load_numbers(turn + 2);
      cp_async_commit();
      const T* keys = tiles.stages + turn % 2 * S::kStageElements;
      float scores[1][S::kKeyTiles][4], grads[S::kKeyTiles][4];
      tiles.score(keys, scores);
      grad_weights(keys + S::kPlaces * kWidth, grads);
      grad_scores(turn, scores[0], grads);
      tiles.add_values(keys, scores);  // grad_q += d(q . k) . k
    }
    cp_async_wait<0>();
  }

  // Element e and e + rope_width / 2 of a rotated row lie in one thread: rotates them back. The
  // loop over distances is there because registers need constant indices.
  MC_DEVICE void rotate_back(int half, int row) {
    const int pairs = back.rope_width / 2;
    const float* table = back.query_rope + int64_t{tiles.query_of(row)} * back.rope_width;
#pragma unroll
    for (int apart = 2; apart <= S::kOutTiles / 2; apart += 2) {
      if (apart * 8 != pairs) continue;
#pragma unroll
      for (int n = 0; n < apart; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int e = n * 8 + 2 * (lane_index() & 3) + j;
          const float cosine = table[e], sine = table[pairs + e];
          float& first = tiles.out[0][n][2 * half + j];
          float& second = tiles.out[0][n + apart][2 * half + j];
          const float rotated = second * cosine - first * sine;
          first = first * cosine + second * sine;
          second = rotated;
        }
      }
    }
  }

  MC_DEVICE void store(bool cut) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tiles.thread_row(0, half);
      if (row >= tiles.row_count) continue;
      if (back.query_rope != nullptr) rotate_back(half, row);
      const float factor = cut ? __int_as_float(0x7fc00000) : 1.f;
      T* to = static_cast<T*>(back.grad_q) + tiles.at(row) * kWidth + 2 * (lane_index() & 3);
#pragma unroll
      for (int n = 0; n < S::kOutTiles; ++n) {
        const uint32_t pair =
            pack2<T>(tiles.out[0][n][2 * half] * factor, tiles.out[0][n][2 * half + 1] * factor);
        memcpy(to + n * 8, &pair, sizeof pair);
      }
    }
  }
};

// grid: (query blocks * slices, KV heads)
template <class T, int kWidth, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, QueryGradient<T, kWidth, kWarps>::kResident)
    query_gradient_kernel(const __grid_constant__ AttendArgs args,
                          const __grid_constant__ BackwardArgs back, int slices) {
  MC_DYNAMIC_SMEM(smem);
  using Gradient = QueryGradient<T, kWidth, kWarps>;
  typename Gradient::Forward tiles(args, smem);
  const int turn = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  bool cut;
  if (!tiles.place(turn / slices, turn % slices, static_cast<int>(blockIdx.y), 0, &cut)) return;
  Gradient gradient(tiles, back, smem);
  gradient.run_list();
  gradient.store(cut);
}

template <class T, int kWidth, int kWarps>
Status launch_query_gradient(const AttendArgs& args, const BackwardArgs& back, const Exec& exec) {
  using Gradient = QueryGradient<T, kWidth, kWarps>;
  constexpr int kRows = Gradient::S::kRows;
  const int slices = (args.group * args.query_tile + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>(args.query_blocks) * slices, args.kv_heads);
  return MC_LAUNCH((query_gradient_kernel<T, kWidth, kWarps>), grid, dim3(kWarps * kWarp),
                   Gradient::kSmemBytes, exec.stream, args, back, slices);
}

}  // namespace mc::focused
