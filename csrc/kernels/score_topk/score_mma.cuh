// Scores of several queries on the tensor cores: one read of a row serves eight queries, and their
// sums stay apart in the accumulators. Included by score_topk_cuda.cu only.
//
// mma.sync multiplies 16-bit factors, so a float32 query is the sum of three bf16 parts, which
// together have its 24 bits; rows of bf16 and int8 are exact in bf16. A sum over k does not care
// in which order k runs, so a lane takes 16 neighbouring bytes of a row as they lie, and the query
// fragments are laid out to meet them.
#pragma once

#include <algorithm>

#include "kernels/common/device.cuh"
#include "kernels/common/exec.h"
#include "kernels/score_topk/score_args.cuh"

namespace mc {
namespace {

constexpr int kMmaThreads = 256;
constexpr int kMmaQueries = 8;
constexpr int kMmaRows = 16;        // a warp
constexpr int kPiecesInFlight = 4;  // of 16 bytes, for each of a lane's two rows
constexpr int64_t kMmaSmemBytes = 96 << 10;

// Elements of a row that four lanes read at once, 16 bytes each; a row is a whole number of these.
template <class T>
constexpr int kMmaSpan = 64 / static_cast<int>(sizeof(T));

constexpr int64_t mma_smem_bytes(int64_t width, int64_t parts) {
  return width / 16 * parts * 256;
}

// Operand a of step `step` of a piece: elements 4*step to 4*step+3 of the lane's 16 bytes.
MC_DEVICE void row_words(uint32_t (&words)[2], const uint32_t (&piece)[4], int step, const bf16*) {
  words[0] = piece[2 * step];
  words[1] = piece[2 * step + 1];
}
MC_DEVICE void row_words(uint32_t (&words)[2], const uint32_t (&piece)[4], int step,
                         const int8_t*) {
  const uint32_t bytes = piece[step];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    words[i] = pack2<bf16>(static_cast<float>(static_cast<int8_t>(bytes >> (16 * i))),
                           static_cast<float>(static_cast<int8_t>(bytes >> (16 * i + 8))));
  }
}

MC_DEVICE float query_element(const ScoreArgs& args, int64_t at) {
  return args.queries_are_bf16 ? to_float(static_cast<const bf16*>(args.queries)[at])
                               : static_cast<const float*>(args.queries)[at];
}

// The sum as plain floats would have it. The parts of an infinite factor cancel to NaN, and so does
// a part of 0 by an infinite row; who finds a NaN asks here whether it belongs there.
template <class T>
MC_DEVICE float plain_dot(const ScoreArgs& args, int64_t query, int64_t row) {
  const T* from = static_cast<const T*>(args.rows) + row * args.width;
  float sum = 0.f;
  for (int64_t i = 0; i < args.width; ++i) {
    sum += query_element(args, query * args.width + i) * to_float(from[i]);
  }
  return sum;
}

// fragments[step][part][lane]: what the lane needs of its query for one mma.
template <class T>
MC_DEVICE void split_queries(const ScoreArgs& args, int64_t first_query, int parts,
                             uint2* fragments) {
  constexpr int kPiece = kMmaSpan<T> / 4, kSteps = kPiece / 4;
  const int64_t items = args.width / 16 * 32;
  for (int64_t i = threadIdx.x; i < items; i += kMmaThreads) {
    const int64_t step = i / 32, lane = i % 32, query = first_query + lane / 4;
    const int64_t from = step / kSteps * kMmaSpan<T> + lane % 4 * kPiece + step % kSteps * 4;
    float rest[4] = {};
    for (int j = 0; j < 4 && query < args.query_count; ++j) {
      const int64_t at = query * args.width + from + j;
      rest[j] = query_element(args, at);
    }
    for (int part = 0; part < parts; ++part) {
      const uint2 packed = make_uint2(pack2<bf16>(rest[0], rest[1]), pack2<bf16>(rest[2], rest[3]));
      fragments[(step * parts + part) * 32 + lane] = packed;
      rest[0] -= low_float<bf16>(packed.x);
      rest[1] -= high_float<bf16>(packed.x);
      rest[2] -= low_float<bf16>(packed.y);
      rest[3] -= high_float<bf16>(packed.y);
    }
  }
}

template <class T>
MC_DEVICE void multiply_pieces(float (&sums)[4], const uint4 (&pieces)[kPiecesInFlight][2],
                               int count, int parts, const uint2* fragments) {
  constexpr int kSteps = kMmaSpan<T> / 16;
#pragma unroll
  for (int p = 0; p < kPiecesInFlight; ++p) {
    if (p >= count) return;
    const uint32_t low[4] = {pieces[p][0].x, pieces[p][0].y, pieces[p][0].z, pieces[p][0].w};
    const uint32_t high[4] = {pieces[p][1].x, pieces[p][1].y, pieces[p][1].z, pieces[p][1].w};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t upper[2], lower[2];
      row_words(upper, low, step, static_cast<const T*>(nullptr));
      row_words(lower, high, step, static_cast<const T*>(nullptr));
      const uint32_t a[4] = {upper[0], lower[0], upper[1], lower[1]};
      for (int part = 0; part < parts; ++part) {
        const uint2 fragment = fragments[((p * kSteps + step) * parts + part) * 32 + lane_index()];
        const uint32_t b[2] = {fragment.x, fragment.y};
        mma_16x8x16<bf16>(sums, a, b);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMmaThreads, 2) score_mma_kernel(ScoreArgs args, int parts) {
  constexpr int kPiece = kMmaSpan<T> / 4, kSteps = kPiece / 4;
  MC_DYNAMIC_SMEM(smem);
  auto* fragments = reinterpret_cast<uint2*>(smem);
  const int64_t first_query = static_cast<int64_t>(blockIdx.z) * kMmaQueries;
  split_queries<T>(args, first_query, parts, fragments);
  __syncthreads();
  const int group = lane_index() / 4, quad = lane_index() % 4;
  const int pieces = static_cast<int>(args.width / kMmaSpan<T>);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kMmaThreads / 32);
  const int64_t tiles = (args.count + kMmaRows - 1) / kMmaRows;
  int64_t tile = static_cast<int64_t>(blockIdx.x) * (kMmaThreads / 32) + warp_index();
  for (; tile < tiles; tile += warps) {
    int64_t rows[2];
    bool read[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows[h] = tile * kMmaRows + group + 8 * h;
      read[h] = rows[h] < args.count && (args.mask == nullptr || args.mask[rows[h]] != 0);
    }
    float sums[4] = {};
    for (int piece = 0; piece < pieces; piece += kPiecesInFlight) {
      uint4 loaded[kPiecesInFlight][2];
#pragma unroll
      for (int p = 0; p < kPiecesInFlight; ++p) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          loaded[p][h] = make_uint4(0, 0, 0, 0);
          if (!read[h] || piece + p >= pieces) continue;
          loaded[p][h] = load_streaming(static_cast<const T*>(args.rows) + rows[h] * args.width +
                                        (piece + p) * kMmaSpan<T> + quad * kPiece);
        }
      }
      multiply_pieces<T>(sums, loaded, pieces - piece, parts,
                         fragments + static_cast<int64_t>(piece) * kSteps * parts * 32);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = rows[i / 2], query = first_query + 2 * quad + i % 2;
      if (row >= args.count || query >= args.query_count) continue;
      const float scale = args.scales != nullptr ? args.scales[row] : 1.f;
      const bool trusted = fabsf(sums[i]) < INFINITY || !read[i / 2];
      const float sum = trusted ? sums[i] : plain_dot<T>(args, query, row);
      args.scores[query * args.count + row] = sum * scale;
    }
    __syncwarp();  // some lanes may have come late
  }
}

template <class T>
Status launch_score_mma(const ScoreArgs& args, const Exec& exec) {
  const int parts = args.queries_are_bf16 ? 1 : 3;
  const int64_t rows_a_block = kMmaThreads / 32 * kMmaRows;
  const int64_t blocks = std::min<int64_t>((args.count + rows_a_block - 1) / rows_a_block, 1056);
  const dim3 grid(static_cast<unsigned>(blocks), 1,
                  static_cast<unsigned>((args.query_count + kMmaQueries - 1) / kMmaQueries));
  const auto smem = static_cast<size_t>(mma_smem_bytes(args.width, parts));
  return MC_LAUNCH(score_mma_kernel<T>, grid, dim3(kMmaThreads), smem, exec.stream, args, parts);
}

}  // namespace
}  // namespace mc
