#include <algorithm>
#include <type_traits>

#include "kernels/score_topk/score_args.cuh"
#include "kernels/score_topk/score_mma.cuh"
#include "kernels/score_topk/score_topk.h"
#include "kernels/score_topk/select.cuh"
#include "kernels/score_topk/workspace.h"

namespace mc {
namespace {

constexpr int64_t kQueriesAtOnce = 8;  // that one read of a row serves
constexpr int kRowsInFlight = 4;       // a lane
constexpr int64_t kQuerySmemBytes = 48 << 10;
constexpr int64_t kPositionLimit = int64_t{1} << 32;

// 16 bytes of a row, or one element where rows do not begin at multiples of 16 bytes.
template <class T, bool kVector>
struct Piece {
  static constexpr int kCount = kVector ? 16 / static_cast<int>(sizeof(T)) : 1;
};

// The next four elements of a piece, which is moved on by as much.
MC_DEVICE void take_quad(uint4& bits, float (&out)[4], const float*) {
  out[0] = __uint_as_float(bits.x);
  out[1] = __uint_as_float(bits.y);
  out[2] = __uint_as_float(bits.z);
  out[3] = __uint_as_float(bits.w);
}
MC_DEVICE void take_quad(uint4& bits, float (&out)[4], const bf16*) {
  out[0] = __uint_as_float(bits.x << 16);
  out[1] = __uint_as_float(bits.x & 0xffff0000u);
  out[2] = __uint_as_float(bits.y << 16);
  out[3] = __uint_as_float(bits.y & 0xffff0000u);
  bits = make_uint4(bits.z, bits.w, 0, 0);
}
MC_DEVICE void take_quad(uint4& bits, float (&out)[4], const int8_t*) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(static_cast<int8_t>(bits.x >> (8 * i)));
  bits = make_uint4(bits.y, bits.z, bits.w, 0);
}
MC_DEVICE float widen_one(float value) {
  return value;
}
MC_DEVICE float widen_one(bf16 value) {
  return to_float(value);
}
MC_DEVICE float widen_one(int8_t value) {
  return static_cast<float>(value);
}

// Where element `d` of a query stands in shared memory: quads of a piece apart, so that the 16-byte
// reads of neighbouring lanes fall into different banks.
template <int kCount>
MC_DEVICE int64_t query_slot(int64_t d, int64_t pieces) {
  if constexpr (kCount == 1) return d;
  return (d % kCount / 4) * pieces * 4 + d / kCount * 4 + d % 4;
}

// sums[r][q] += piece `piece` of row r times that of query q. Four elements of each row are widened
// at a time, in a loop that stays one: all 16 of an int8 piece would be 64 registers beside the
// sums.
template <class T, int kQueries>
MC_DEVICE void add_pieces(uint4 (&bits)[kRowsInFlight], const float* queries, int64_t width,
                          int64_t pieces, int64_t piece, float (&sums)[kRowsInFlight][kQueries]) {
#pragma unroll 1
  for (int quad = 0; quad < Piece<T, true>::kCount / 4; ++quad) {
    float parts[kRowsInFlight][4];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      take_quad(bits[r], parts[r], static_cast<const T*>(nullptr));
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const auto elements = load_pack<4>(queries + q * width + (quad * pieces + piece) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) sums[r][q] += parts[r][i] * elements.value[i];
      }
    }
  }
}

// scores[q][n] = row n . query q, for `kQueries` queries (blockIdx.z picks which) and all n. Groups
// of `lanes` threads take kRowsInFlight rows at a time; a row's sum is the same wherever it stands.
template <class T, bool kVector, int kQueries>
__global__ void __launch_bounds__(kThreads, 2) score_kernel(ScoreArgs args, int lanes) {
  constexpr int kCount = Piece<T, kVector>::kCount;
  MC_DYNAMIC_SMEM(smem);
  auto* queries = reinterpret_cast<float*>(smem);
  const int64_t pieces = args.width / kCount;
  const int64_t first_query = static_cast<int64_t>(blockIdx.z) * kQueries;
  for (int64_t i = threadIdx.x; i < kQueries * args.width; i += kThreads) {
    const int64_t q = i / args.width, d = i % args.width;
    const int64_t from = (first_query + q) * args.width + d;
    const bool exists = first_query + q < args.query_count;
    float value = 0.f;
    if (exists && args.queries_are_bf16)
      value = to_float(static_cast<const bf16*>(args.queries)[from]);
    if (exists && !args.queries_are_bf16) value = static_cast<const float*>(args.queries)[from];
    queries[q * args.width + query_slot<kCount>(d, pieces)] = value;
  }
  __syncthreads();
  const int in_group = static_cast<int>(threadIdx.x) % lanes;
  const int64_t groups = static_cast<int64_t>(gridDim.x) * (kThreads / lanes);
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  const int64_t rounds = (args.count + groups * kRowsInFlight - 1) / (groups * kRowsInFlight);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t n0 = (round * groups + group) * kRowsInFlight;
    const T* rows[kRowsInFlight];
    int64_t numbers[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      const int64_t n = n0 + r;
      int64_t number = n < args.count ? n : -1;
      if (args.candidates != nullptr && number >= 0) {
        number = args.candidates[first_query * args.count + n];
        if (number >= args.row_count) number = -1;
      }
      if (args.mask != nullptr && number >= 0 && args.mask[number] == 0) number = -1;
      numbers[r] = number;
      rows[r] = static_cast<const T*>(args.rows) + (number < 0 ? 0 : number) * args.width;
    }
    float sums[kRowsInFlight][kQueries] = {};
    for (int64_t piece = in_group; piece < pieces; piece += lanes) {
      if constexpr (kVector) {
        uint4 bits[kRowsInFlight];
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
          bits[r] = make_uint4(0, 0, 0, 0);
          if (numbers[r] >= 0) bits[r] = load_streaming(rows[r] + piece * kCount);
        }
        add_pieces<T>(bits, queries, args.width, pieces, piece, sums);
      } else {
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
          const float part = numbers[r] >= 0 ? widen_one(rows[r][piece]) : 0.f;
#pragma unroll
          for (int q = 0; q < kQueries; ++q) sums[r][q] += part * queries[q * args.width + piece];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        for (int step = lanes / 2; step > 0; step >>= 1) {
          sums[r][q] += __shfl_xor_sync(kFullMask, sums[r][q], step);
        }
        const int64_t to = (first_query + q) * args.count + n0 + r;
        if (in_group != 0 || n0 + r >= args.count || first_query + q >= args.query_count) continue;
        const float scale =
            args.scales != nullptr && numbers[r] >= 0 ? args.scales[numbers[r]] : 1.f;
        args.scores[to] = sums[r][q] * scale;
        if (args.valid != nullptr) args.valid[to] = numbers[r] >= 0 ? 1 : 0;
      }
    }
  }
}

template <class T, bool kVector>
Status launch_scores(const ScoreArgs& args, const Exec& exec) {
  constexpr int64_t kCount = Piece<T, kVector>::kCount;
  int lanes = 32;
  while (kVector && lanes > 1 && (lanes / 2) * kCount >= args.width) lanes /= 2;
  // Candidates differ from query to query, so nothing is shared there.
  int64_t together = args.candidates != nullptr ? 1 : kQueriesAtOnce;
  while (together > 1 &&
         (together / 2 >= args.query_count || together * args.width * 4 > kQuerySmemBytes)) {
    together /= 2;
  }
  const int64_t rows_a_block = kThreads / lanes * kRowsInFlight;
  const int64_t blocks = std::min<int64_t>((args.count + rows_a_block - 1) / rows_a_block, 2112);
  const dim3 grid(static_cast<unsigned>(blocks), 1,
                  static_cast<unsigned>((args.query_count + together - 1) / together));
  const auto smem = static_cast<size_t>(together * args.width * 4);
  const dim3 block(kThreads);
  switch (together) {
    case 1:
      return MC_LAUNCH((score_kernel<T, kVector, 1>), grid, block, smem, exec.stream, args, lanes);
    case 2:
      return MC_LAUNCH((score_kernel<T, kVector, 2>), grid, block, smem, exec.stream, args, lanes);
    case 4:
      return MC_LAUNCH((score_kernel<T, kVector, 4>), grid, block, smem, exec.stream, args, lanes);
    default:
      return MC_LAUNCH((score_kernel<T, kVector, 8>), grid, block, smem, exec.stream, args, lanes);
  }
}

template <class T>
Status launch_scores_of(const ScoreArgs& args, const Exec& exec) {
  const bool aligned =
      args.width * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(args.rows) % 16 == 0;
  if constexpr (!std::is_same_v<T, float>) {
    const bool fits =
        args.width % kMmaSpan<T> == 0 && mma_smem_bytes(args.width, 3) <= kMmaSmemBytes;
    const bool shared = args.query_count > 1 && args.candidates == nullptr;
    if (aligned && fits && shared) return launch_score_mma<T>(args, exec);
  }
  return aligned ? launch_scores<T, true>(args, exec) : launch_scores<T, false>(args, exec);
}

Status launch_sort(const ListArgs& args, const WriteArgs& out, int64_t lists, const Exec& exec) {
  const auto rows = static_cast<unsigned>(lists);
  if (args.k <= kRankedAtMost) {
    const auto blocks = static_cast<unsigned>((args.k + kRankedByBlock - 1) / kRankedByBlock);
    return MC_LAUNCH(rank_kernel, dim3(blocks, rows), dim3(kThreads), 0, exec.stream, args, out);
  }
  const int64_t tile = std::min(args.sorted, kSortTile);
  const auto smem = static_cast<size_t>(tile * 8);
  const dim3 tiles(static_cast<unsigned>(args.sorted / tile), rows);
  const dim3 threads(static_cast<unsigned>(std::clamp<int64_t>(tile / 2, 32, 1024)));
  MC_RETURN_IF_ERROR(
      MC_LAUNCH(sort_tile_kernel, tiles, threads, smem, exec.stream, args, out, tile, 0));
  if (args.sorted == tile) return Status::ok();
  const dim3 pairs(static_cast<unsigned>(args.sorted / 2 / kThreads), rows);
  for (int64_t size = 2 * tile; size <= args.sorted; size *= 2) {
    for (int64_t stride = size / 2; stride >= tile; stride /= 2) {
      MC_RETURN_IF_ERROR(
          MC_LAUNCH(merge_step_kernel, pairs, dim3(kThreads), 0, exec.stream, args, size, stride));
    }
    MC_RETURN_IF_ERROR(
        MC_LAUNCH(sort_tile_kernel, tiles, threads, smem, exec.stream, args, out, tile, size));
  }
  const dim3 places(static_cast<unsigned>((args.k + kThreads - 1) / kThreads), rows);
  return MC_LAUNCH(write_kernel, places, dim3(kThreads), 0, exec.stream, args, out);
}

// Selects from `lists` lists of scores; `workspace` begins with their states.
Status select(ListArgs args, const WriteArgs& out, int64_t lists, void* workspace,
              const Exec& exec) {
  const int64_t most = std::clamp<int64_t>(1024 / lists, 1, kMaxBlocks);
  const int64_t blocks =
      std::clamp<int64_t>((args.count + kScoresPerBlock - 1) / kScoresPerBlock, 1, most);
  args.chunk = ((args.count + blocks - 1) / blocks + 3) / 4 * 4;
  args.sorted = sorted_count(args.k);
  args.states = static_cast<ListState*>(workspace);
  args.order = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + lists * kListStateBytes);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(lists));
  const dim3 block(kThreads);
  MC_RETURN_IF_ERROR(fill_async(args.states, 0, lists * sizeof(ListState), exec.stream));
  for (int pass = 0; pass < kPasses; ++pass) {
    MC_RETURN_IF_ERROR(MC_LAUNCH(digit_kernel, grid, block, 0, exec.stream, args, pass));
  }
  MC_RETURN_IF_ERROR(MC_LAUNCH(tie_kernel, grid, block, 0, exec.stream, args));
  MC_RETURN_IF_ERROR(MC_LAUNCH(gather_kernel, grid, block, 0, exec.stream, args));
  return launch_sort(args, out, lists, exec);
}

Status check_count(const char* op, int64_t count) {
  if (count < kPositionLimit) return Status::ok();
  return Status::unsupported(
      str_cat("[", op, "] a list must have fewer than 2^32 positions on CUDA, got ", count));
}

}  // namespace

Status topk_cuda(const TopkArgs& args, const Exec& exec) {
  const int64_t batch = args.scores.shape[0], count = args.scores.shape[1];
  MC_RETURN_IF_ERROR(check_count("topk", count));
  const int64_t k = args.values.shape[1];
  for (int64_t first = 0; first < batch; first += kListsAtOnce) {
    ListArgs lists{};
    lists.mask_stride = args.mask.rank == 2 ? count : 0;
    lists.scores = args.scores.as<float>() + first * count;
    if (args.mask.defined()) lists.mask = args.mask.as<uint8_t>() + first * lists.mask_stride;
    lists.count = count;
    lists.k = k;
    const WriteArgs out{args.values.as<float>() + first * k, args.indices.as<int64_t>() + first * k,
                        nullptr};
    MC_RETURN_IF_ERROR(
        select(lists, out, std::min(kListsAtOnce, batch - first), args.workspace.data, exec));
  }
  return Status::ok();
}

Status score_topk_cuda(const ScoreTopkArgs& args, const Exec& exec) {
  const bool named = args.candidates.defined();
  const int64_t queries = args.queries.shape[0], width = args.queries.shape[1];
  const int64_t count = named ? args.candidates.shape[1] : args.rows.shape[0];
  const int64_t k = args.values.shape[1];
  MC_RETURN_IF_ERROR(check_count("score_topk", count));
  if (width * 4 > kQuerySmemBytes) {
    return Status::unsupported(str_cat("[score_topk] rows.shape[1] must be at most ",
                                       kQuerySmemBytes / 4, " on CUDA, got ", width));
  }
  const int64_t together = queries_at_once(queries, count);
  char* place = args.workspace.as<char>();
  auto* scores = reinterpret_cast<float*>(place);
  place += padded(together * count * 4);
  auto* valid = reinterpret_cast<uint8_t*>(place);
  if (named) place += padded(together * count);
  for (int64_t first = 0; first < queries; first += together) {
    const int64_t lists = std::min(together, queries - first);
    ScoreArgs score{};
    score.queries = args.queries.as<char>() + first * width * dtype_bytes(args.queries.dtype);
    score.queries_are_bf16 = args.queries.dtype == DType::kBF16;
    score.rows = args.rows.data;
    if (args.scales.defined()) score.scales = args.scales.as<float>();
    if (args.mask.rank == 1) score.mask = args.mask.as<uint8_t>();
    if (named) score.candidates = args.candidates.as<int64_t>() + first * count;
    score.row_count = args.rows.shape[0];
    score.count = count;
    score.width = width;
    score.query_count = lists;
    score.scores = scores;
    if (named) score.valid = valid;
    switch (args.rows.dtype) {
      case DType::kBF16: MC_RETURN_IF_ERROR(launch_scores_of<bf16>(score, exec)); break;
      case DType::kI8: MC_RETURN_IF_ERROR(launch_scores_of<int8_t>(score, exec)); break;
      default: MC_RETURN_IF_ERROR(launch_scores_of<float>(score, exec)); break;
    }
    ListArgs list{};
    list.scores = scores;
    list.count = count;
    list.k = k;
    list.mask = named ? valid : nullptr;
    list.mask_stride = named || args.mask.rank == 2 ? count : 0;
    if (args.mask.defined()) list.mask = args.mask.as<uint8_t>() + first * list.mask_stride;
    const WriteArgs out{args.values.as<float>() + first * k, args.indices.as<int64_t>() + first * k,
                        score.candidates};
    MC_RETURN_IF_ERROR(select(list, out, lists, place, exec));
  }
  return Status::ok();
}

}  // namespace mc
