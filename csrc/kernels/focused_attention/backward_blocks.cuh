// Gradients of keys, values and bias by mma.sync: a thread block owns one block of 32 places of one
// KV head and walks the query blocks that read it, so each sum has one owner and one order.
//
// Two warps own 16 places each. For every tile of 32 queries of one head, with places as rows:
//   S^T = K Q^T, dP^T = V dO^T;  then  dV += P^T dO, dK += dS^T Q, dBias += row sums of dS^T.
// Weights leave the accumulators of the first products as operands of the second: no transposition.
#pragma once

#include "kernels/focused_attention/attend_mma.cuh"
#include "kernels/focused_attention/backward_args.cuh"

namespace mc::focused {

template <class T, int kWidth>
struct BlockGradient {
  // Twice the warps where the sums of a whole width would not fit the registers: each pair then
  // takes half of the columns.
  static constexpr int kColumnParts = kWidth == 256 ? 2 : 1;
  static constexpr int kWarps = 2 * kColumnParts, kThreads = kWarps * kWarp;
  static constexpr int kPlaces = static_cast<int>(kBlockPlaces), kQueries = 32;
  static constexpr int kCells = kWidth / 8, kOutTiles = kWidth / 8 / kColumnParts,
                       kQueryTiles = kQueries / 8;
  static constexpr int kTile = kPlaces * kWidth;  // elements; places and queries are both 32
  static constexpr size_t kSmemBytes =
      sizeof(T) * 6 * kTile + sizeof(float) * 2 * 3 * kQueries + sizeof(int) * 2 * kPlaces;

  const AttendArgs& args;
  const BackwardArgs& back;
  T* keys;
  T* values;
  T* stages;       // [2][q, grad_out][kQueries, kWidth]
  float* scalars;  // [2][lse2, delta, position bits][kQueries]
  int* rows;
  int* positions;
  int block, kv_head, readers_count, subtiles;
  const int* readers;
  float grad_keys[kOutTiles][4], grad_values[kOutTiles][4], grad_bias[2];

  MC_DEVICE BlockGradient(const AttendArgs& args, const BackwardArgs& back, unsigned char* smem)
      : args(args), back(back) {
    keys = reinterpret_cast<T*>(smem);
    values = keys + kTile;
    stages = values + kTile;
    scalars = reinterpret_cast<float*>(stages + 4 * kTile);
    rows = reinterpret_cast<int*>(scalars + 2 * 3 * kQueries);
    positions = rows + kPlaces;
  }

  MC_DEVICE static int place_warp() { return warp_index() % 2; }
  MC_DEVICE static int column_part() { return warp_index() / 2; }

  // Turn t: head of the group, reader, tile of 32 queries inside it.
  struct Turn {
    int head, first, count;
    bool full;
  };
  MC_DEVICE Turn turn_of(int turn) const {
    const int per_head = readers_count * subtiles;
    const int reader = readers[turn % per_head / subtiles];
    const int query_block = reader & (static_cast<int>(kFullBlock) - 1);
    Turn out;
    out.head = kv_head * args.group + turn / per_head;
    out.first = args.starts[query_block] + turn % subtiles * kQueries;
    out.count = max(0, min(kQueries, args.starts[query_block + 1] - out.first));
    out.full = (reader & static_cast<int>(kFullBlock)) != 0;
    return out;
  }

  MC_DEVICE void load_places() {
    for (int i = threadIdx.x; i < kPlaces; i += kThreads) {
      rows[i] = args.rows[int64_t{block} * kPlaces + i];
      positions[i] = args.positions == nullptr ? -1 : args.positions[int64_t{block} * kPlaces + i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kPlaces * kCells; i += kThreads) {
      const int place = i / kCells, cell = i % kCells, row = rows[place];
      const int bytes = row >= 0 ? 16 : 0;
      const int64_t key =
          row < 0 ? 0 : args.key_row(row, block * kPlaces + place, kv_head) * kWidth + cell * 8;
      const int64_t value = row < 0 ? 0 : args.value_row(row, kv_head) * kWidth + cell * 8;
      cp_async16(keys + cell_at<kWidth>(place, cell), static_cast<const T*>(args.keys) + key,
                 bytes);
      cp_async16(values + cell_at<kWidth>(place, cell), static_cast<const T*>(args.values) + value,
                 bytes);
    }
  }

  MC_DEVICE void load_queries(int turn) {
    const Turn t = turn_of(turn);
    T* q = stages + turn % 2 * 2 * kTile;
    float* scalar = scalars + turn % 2 * 3 * kQueries;
    for (int i = threadIdx.x; i < kQueries * kCells; i += kThreads) {
      const int query = i / kCells, cell = i % kCells;
      const bool real = query < t.count;
      const int64_t from =
          real ? (int64_t{t.first + query} * args.query_heads + t.head) * kWidth + cell * 8 : 0;
      const int to = cell_at<kWidth>(query, cell);
      cp_async16(q + to, static_cast<const T*>(args.q) + from, real ? 16 : 0);
      cp_async16(q + kTile + to, static_cast<const T*>(back.grad_out) + from, real ? 16 : 0);
    }
    for (int i = threadIdx.x; i < kQueries; i += kThreads) {
      const bool real = i < t.count;
      const int64_t at = int64_t{t.first + i} * args.query_heads + t.head;
      scalar[i] = real ? back.lse2[at] : INFINITY;
      scalar[kQueries + i] = real ? back.delta[at] : 0.f;
      scalar[2 * kQueries + i] =
          __int_as_float(real && args.positions != nullptr ? args.query_positions[t.first + i] : 0);
    }
  }

  // product [16 places, 32 queries] = a [16 places, E] . b [32 queries, E]^T
  MC_DEVICE void multiply(const T* a_tile, const T* b_tile, float (&product)[kQueryTiles][4]) {
    const int lane = lane_index(), first = place_warp() * 16;
#pragma unroll
    for (int n = 0; n < kQueryTiles; ++n) {
      product[n][0] = product[n][1] = product[n][2] = product[n][3] = 0.f;
    }
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t a[4];
      ldmatrix(a, a_tile + cell_at<kWidth>(first + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < kQueryTiles; n += 2) {
        uint32_t b[4];
        ldmatrix(b, b_tile + cell_at<kWidth>(n * 8 + (lane & 7) + (lane >> 4) * 8,
                                             2 * k + (lane >> 3 & 1)));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_16x8x16<T>(product[n], a, low);
        mma_16x8x16<T>(product[n + 1], a, high);
      }
    }
  }

  // sums [16 places, E] += factors [16 places, 32 queries] . tile [32 queries, E]
  MC_DEVICE void accumulate(const float (&factors)[kQueryTiles][4], const T* tile,
                            float (&sums)[kOutTiles][4]) {
    // As in MmaAttention::score; the other widths have registers for the addresses.
    const int lane = kWidth == 128 ? opaque(lane_index()) : lane_index();
    const int first = column_part() * kOutTiles;
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      const uint32_t a[4] = {pack2<T>(factors[2 * k][0], factors[2 * k][1]),
                             pack2<T>(factors[2 * k][2], factors[2 * k][3]),
                             pack2<T>(factors[2 * k + 1][0], factors[2 * k + 1][1]),
                             pack2<T>(factors[2 * k + 1][2], factors[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 2) {
        uint32_t b[4];
        ldmatrix<4, true>(b, tile + cell_at<kWidth>(k * 16 + (lane & 15), first + n + (lane >> 4)));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_16x8x16<T>(sums[n], a, low);
        mma_16x8x16<T>(sums[n + 1], a, high);
      }
    }
  }

  // scores becomes the weights, grads becomes d loss / d (q . k).
  MC_DEVICE void grad_scores(const Turn& t, const float* scalar, float (&scores)[kQueryTiles][4],
                             float (&grads)[kQueryTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = place_warp() * 16 + half * 8 + (lane_index() >> 2);
      const bool filled = rows[place] >= 0;
      const float bias =
          args.bias == nullptr ? 0.f : args.bias_of(t.head)[int64_t{block} * kPlaces + place];
#pragma unroll
      for (int n = 0; n < kQueryTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int query = n * 8 + 2 * (lane_index() & 3) + j, i = 2 * half + j;
          const int now = __float_as_int(scalar[2 * kQueries + query]);
          const bool seen =
              t.full || (filled && is_visible(positions[place], now, args.oldest(now)));
          const ScoreGrad grad = score_grad(args, scores[n][i], grads[n][i], bias, scalar[query],
                                            scalar[kQueries + query], seen);
          scores[n][i] = grad.weight;
          grads[n][i] = grad.grad_dot;
          grad_bias[half] += grad.grad;
        }
      }
    }
  }

  MC_DEVICE void compute(int turn) {
    const Turn t = turn_of(turn);
    if (t.count == 0) return;
    const T* q = stages + turn % 2 * 2 * kTile;
    float scores[kQueryTiles][4], grads[kQueryTiles][4];
    multiply(keys, q, scores);
    multiply(values, q + kTile, grads);
    grad_scores(t, scalars + turn % 2 * 3 * kQueries, scores, grads);
    accumulate(scores, q + kTile, grad_values);
    accumulate(grads, q, grad_keys);
  }

  // The four lanes of a place add up, in a fixed order; then the next head begins at zero.
  MC_DEVICE void store_bias(int head) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = grad_bias[half];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      const int place = place_warp() * 16 + half * 8 + (lane_index() >> 2);
      if (back.grad_bias != nullptr && (lane_index() & 3) == 0 && column_part() == 0) {
        back.grad_bias[(int64_t{head} * args.block_count + block) * kPlaces + place] = sum;
      }
      grad_bias[half] = 0.f;
    }
  }

  MC_DEVICE void store() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = place_warp() * 16 + half * 8 + (lane_index() >> 2);
      const int64_t at = args.pool_row(block * kPlaces + place, kv_head, 5) * kWidth;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        const int e = (column_part() * kOutTiles + n) * 8 + 2 * (lane_index() & 3);
        const float2 key = make_float2(grad_keys[n][2 * half], grad_keys[n][2 * half + 1]);
        const float2 value = make_float2(grad_values[n][2 * half], grad_values[n][2 * half + 1]);
        memcpy(back.grad_keys + at + e, &key, sizeof key);
        memcpy(back.grad_values + at + e, &value, sizeof value);
      }
    }
  }

  MC_DEVICE void run(int which_block, int which_head) {
    block = which_block;
    kv_head = which_head;
    subtiles = (args.query_tile + kQueries - 1) / kQueries;
    const int64_t list =
        int64_t{kv_head * args.plan_heads / args.kv_heads} * args.block_count + block;
    readers_count = back.readers_count[list];
    readers = back.readers + list * args.query_blocks;
    grad_bias[0] = grad_bias[1] = 0.f;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) grad_keys[n][i] = grad_values[n][i] = 0.f;
    }
    const int per_head = readers_count * subtiles, turns = args.group * per_head;
    load_places();
    if (turns > 0) load_queries(0);
    cp_async_commit();
    for (int turn = 0; turn < turns; ++turn) {
      cp_async_wait<0>();
      __syncthreads();
      if (turn + 1 < turns) load_queries(turn + 1);
      cp_async_commit();
      compute(turn);
      if ((turn + 1) % per_head == 0) store_bias(kv_head * args.group + turn / per_head);
    }
    cp_async_wait<0>();
    if (turns == 0) {
      for (int head = 0; head < args.group; ++head) store_bias(kv_head * args.group + head);
    }
    store();
  }
};

// grid: (blocks, KV heads)
template <class T, int kWidth>
__global__ void __launch_bounds__(BlockGradient<T, kWidth>::kThreads)
    block_gradient_kernel(const __grid_constant__ AttendArgs args,
                          const __grid_constant__ BackwardArgs back) {
  MC_DYNAMIC_SMEM(smem);
  BlockGradient<T, kWidth> gradient(args, back, smem);
  gradient.run(static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
}

template <class T, int kWidth>
Status launch_block_gradient(const AttendArgs& args, const BackwardArgs& back, const Exec& exec) {
  const dim3 grid(static_cast<unsigned>(args.block_count), args.kv_heads);
  return MC_LAUNCH((block_gradient_kernel<T, kWidth>), grid,
                   dim3(BlockGradient<T, kWidth>::kThreads), (BlockGradient<T, kWidth>::kSmemBytes),
                   exec.stream, args, back);
}

}  // namespace mc::focused
