// Exact selection of the k greatest of each list on the device: radix select, then a sort.
//
//   digit_kernel x3  a histogram of 11, 11, 10 bits of the keys that share the bits found so far;
//                    the last thread block of a list to finish picks the next digit
//   tie_kernel       only where some but not all keys equal to the k-th belong: counts them by
//   block gather_kernel    collects what is above the k-th key, and the first ties in order of
//   position sort kernels     order by (greater key, lower position) and write values and indices
//
// Every count is an integer and the sort's order is total, so the result does not depend on the
// order in which threads arrive. No step is read by the host. Included by score_topk_cuda.cu only.
#pragma once

#include "kernels/common/device.cuh"
#include "kernels/score_topk/workspace.h"

namespace mc {
namespace {

constexpr int kThreads = 256;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kPasses = 3;
constexpr int kCopies = 4;  // of a histogram in shared memory: equal keys in a warp collide less
constexpr int64_t kMaxBlocks = 512;  // a list
constexpr int64_t kScoresPerBlock = 4096;
constexpr int64_t kSortTile = 8192;  // keys sorted in shared memory: 64 KiB

// What is known of one list; zeroed before the first pass.
struct ListState {
  uint32_t digits[kPasses][kDigits];
  uint32_t ties[kMaxBlocks];  // keys equal to the k-th, by block
  uint32_t arrived[kPasses];
  uint32_t prefix;     // the bits of the k-th greatest key found so far
  uint32_t missing;    // how many keys with this prefix belong to the k greatest
  uint32_t equal;      // how many keys have this prefix
  uint32_t takes_all;  // fewer than k are allowed: all of them are taken
  uint32_t gathered;
};
static_assert(sizeof(ListState) <= kListStateBytes);

struct ListArgs {
  const float* scores;  // [B, count]
  const uint8_t* mask;  // null, or [B, count] with mask_stride between lists, 0 for one mask
  int64_t mask_stride;
  int64_t count;
  int64_t chunk;  // scores a block, a multiple of 4
  int64_t k;
  ListState* states;
  uint64_t* order;  // [B, sorted]: ~key above position, so that ascending is best first
  int64_t sorted;   // the power of two that k fits in
};

MC_DEVICE uint32_t key_of(float score) {
  if (!(score == score)) score = -INFINITY;
  const uint32_t bits = __float_as_uint(score + 0.f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
MC_DEVICE float score_of(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

// Bit where the digit of a pass begins: 21, 10, 0.
MC_DEVICE int digit_shift(int pass) {
  return pass == 0 ? 21 : pass == 1 ? 10 : 0;
}
MC_DEVICE int digit_count(int pass) {
  return pass == 2 ? 1 << 10 : kDigits;
}

// Calls body(position, score) for the block's part of its list, positions growing for each thread.
template <class Body>
MC_DEVICE void for_each_score(const ListArgs& args, Body body) {
  constexpr int kUnroll = 4;
  const float* scores = args.scores + blockIdx.y * args.count;
  const int64_t begin = blockIdx.x * args.chunk;
  const int64_t end = begin + args.chunk < args.count ? begin + args.chunk : args.count;
  int64_t at = begin;
  if ((reinterpret_cast<uintptr_t>(scores) & 15) == 0) {
    for (; at + kUnroll * 4 * kThreads <= end; at += kUnroll * 4 * kThreads) {
      float4 quads[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t i = at + 4 * (u * kThreads + static_cast<int>(threadIdx.x));
        quads[u] = *reinterpret_cast<const float4*>(scores + i);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t i = at + 4 * (u * kThreads + static_cast<int>(threadIdx.x));
        body(i, quads[u].x);
        body(i + 1, quads[u].y);
        body(i + 2, quads[u].z);
        body(i + 3, quads[u].w);
      }
    }
  }
  for (int64_t i = at + threadIdx.x; i < end; i += kThreads) body(i, scores[i]);
}

MC_DEVICE const uint8_t* list_mask(const ListArgs& args) {
  return args.mask == nullptr ? nullptr : args.mask + blockIdx.y * args.mask_stride;
}

// Inclusive sum over the threads of the block; `scratch` holds a number for each warp.
MC_DEVICE uint32_t block_scan(uint32_t value, uint32_t* scratch) {
  const int lane = lane_index();
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const uint32_t below = __shfl_up_sync(kFullMask, value, step);
    if (lane >= step) value += below;
  }
  __syncthreads();
  if (lane == 31) scratch[warp_index()] = value;
  __syncthreads();
  for (int warp = 0; warp < warp_index(); ++warp) value += scratch[warp];
  return value;
}

// Finds the digit of the k-th key in the list's histogram. Run by a whole block.
MC_DEVICE void pick_digit(ListState& state, int pass, uint32_t* scratch) {
  constexpr int kMine = kDigits / kThreads;
  const volatile uint32_t* digits = state.digits[pass];
  // Volatile, as the digits are: written by other blocks of this launch, so L1 may be stale.
  const uint32_t missing = static_cast<const volatile ListState&>(state).missing;
  const int top = digit_count(pass) - 1 - kMine * static_cast<int>(threadIdx.x);
  uint32_t mine = 0;
  for (int j = 0; j < kMine; ++j) mine += top - j >= 0 ? digits[top - j] : 0;
  const uint32_t up_to_mine = block_scan(mine, scratch);
  uint32_t before = up_to_mine - mine;
  if (before < missing && missing <= up_to_mine) {
    int digit = top;
    while (before + digits[digit] < missing) before += digits[digit--];
    state.prefix |= static_cast<uint32_t>(digit) << digit_shift(pass);
    state.equal = digits[digit];
    state.missing = missing - before;
  }
  if (pass == 0 && threadIdx.x == kThreads - 1 && up_to_mine < missing) {
    state.takes_all = 1;  // prefix 0 is below every key
    state.missing = 0;
    state.equal = 0;
  }
}

__global__ void __launch_bounds__(kThreads) digit_kernel(ListArgs args, int pass) {
  __shared__ uint32_t histogram[kDigits * kCopies];
  __shared__ uint32_t scratch[kThreads / 32];
  __shared__ uint32_t is_last;
  ListState& state = args.states[blockIdx.y];
  if (pass == 0 && blockIdx.x == 0 && threadIdx.x == 0) {
    // Read by the last block of this pass only, after the fence below.
    state.missing = static_cast<uint32_t>(args.k);
  }
  if (pass > 0 && state.takes_all != 0) return;
  for (int i = threadIdx.x; i < kDigits * kCopies; i += kThreads) histogram[i] = 0;
  __syncthreads();
  const uint8_t* mask = list_mask(args);
  const int shift = digit_shift(pass);
  const uint32_t digit_mask = static_cast<uint32_t>(digit_count(pass) - 1);
  const uint32_t prefix = pass == 0 ? 0 : state.prefix >> digit_shift(pass - 1);
  const int copy = lane_index() % kCopies;
  for_each_score(args, [&](int64_t position, float score) {
    const uint32_t key = key_of(score);
    if (pass > 0 && key >> digit_shift(pass - 1) != prefix) return;
    if (mask != nullptr && mask[position] == 0) return;
    atomicAdd(&histogram[(key >> shift & digit_mask) * kCopies + copy], 1u);
  });
  __syncthreads();
  for (int digit = threadIdx.x; digit < digit_count(pass); digit += kThreads) {
    uint32_t sum = 0;
#pragma unroll
    for (int c = 0; c < kCopies; ++c) sum += histogram[digit * kCopies + c];
    if (sum != 0) atomicAdd(&state.digits[pass][digit], sum);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&state.arrived[pass], 1u) == gridDim.x - 1 ? 1 : 0;
  __syncthreads();
  if (is_last == 0) return;
  __threadfence();
  pick_digit(state, pass, scratch);
}

// True when the position of a key equal to the k-th decides whether it belongs.
MC_DEVICE bool ties_matter(const ListState& state) {
  return state.takes_all == 0 && state.missing < state.equal;
}

__global__ void __launch_bounds__(kThreads) tie_kernel(ListArgs args) {
  __shared__ uint32_t scratch[kThreads / 32];
  ListState& state = args.states[blockIdx.y];
  if (!ties_matter(state)) return;
  const uint8_t* mask = list_mask(args);
  uint32_t ties = 0;
  for_each_score(args, [&](int64_t position, float score) {
    const bool tie = key_of(score) == state.prefix && (mask == nullptr || mask[position] != 0);
    ties += tie ? 1 : 0;
  });
  const uint32_t total = block_scan(ties, scratch);
  if (threadIdx.x == kThreads - 1) state.ties[blockIdx.x] = total;
}

MC_DEVICE void append(const ListArgs& args, uint32_t key, int64_t position) {
  const uint32_t at = atomicAdd(&args.states[blockIdx.y].gathered, 1u);
  args.order[blockIdx.y * args.sorted + at] =
      static_cast<uint64_t>(~key) << 32 | static_cast<uint32_t>(position);
}

// The first of the keys equal to the k-th, in order of position.
MC_DEVICE void gather_ties(const ListArgs& args, uint32_t* scratch) {
  const ListState& state = args.states[blockIdx.y];
  const uint8_t* mask = list_mask(args);
  const float* scores = args.scores + blockIdx.y * args.count;
  uint32_t before = 0;
  for (unsigned b = threadIdx.x; b < blockIdx.x; b += kThreads) before += state.ties[b];
  before = block_scan(before, scratch);
  __shared__ uint32_t carried;
  __syncthreads();
  if (threadIdx.x == kThreads - 1) carried = before;
  __syncthreads();
  const int64_t begin = blockIdx.x * args.chunk;
  const int64_t end = begin + args.chunk < args.count ? begin + args.chunk : args.count;
  for (int64_t at = begin; at < end && carried < state.missing; at += kThreads) {
    const int64_t position = at + threadIdx.x;
    const bool tie = position < end && key_of(scores[position]) == state.prefix &&
                     (mask == nullptr || mask[position] != 0);
    const uint32_t rank = carried + block_scan(tie ? 1 : 0, scratch);
    if (tie && rank <= state.missing) append(args, state.prefix, position);
    __syncthreads();
    if (threadIdx.x == kThreads - 1) carried = rank;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads, 6) gather_kernel(ListArgs args) {
  __shared__ uint32_t scratch[kThreads / 32];
  const ListState& state = args.states[blockIdx.y];
  const uint8_t* mask = list_mask(args);
  const bool in_order = ties_matter(state);
  const uint32_t kth = state.prefix;
  for_each_score(args, [&](int64_t position, float score) {
    const uint32_t key = key_of(score);
    if (key < kth || (key == kth && in_order)) return;
    if (mask != nullptr && mask[position] == 0) return;
    append(args, key, position);
  });
  if (in_order) gather_ties(args, scratch);
}

struct WriteArgs {
  float* values;              // [B, k]
  int64_t* indices;           // [B, k]
  const int64_t* candidates;  // null, or [B, count]: what a position stands for
};

MC_DEVICE void write_place(const ListArgs& args, const WriteArgs& out, int64_t place,
                           uint64_t entry) {
  const int64_t at = blockIdx.y * args.k + place;
  if (place >= args.states[blockIdx.y].gathered) {
    out.values[at] = -INFINITY;
    out.indices[at] = -1;
    return;
  }
  const auto position = static_cast<int64_t>(entry & 0xffffffffu);
  out.values[at] = score_of(~static_cast<uint32_t>(entry >> 32));
  out.indices[at] =
      out.candidates == nullptr ? position : out.candidates[blockIdx.y * args.count + position];
}

constexpr int kRankTile = 2048;   // keys in shared memory at a time
constexpr int kRankedByWarp = 4;  // keys whose place a warp finds
constexpr int kRankedByBlock = kThreads / 32 * kRankedByWarp;
constexpr int64_t kRankedAtMost = 8192;

// The place of a key is the number of smaller ones: k^2 comparisons over many blocks, where a sort
// of few keys would wait for one block's barriers.
__global__ void __launch_bounds__(kThreads) rank_kernel(ListArgs args, WriteArgs out) {
  __shared__ uint64_t keys[kRankTile];
  const uint64_t* order = args.order + blockIdx.y * args.sorted;
  const int64_t gathered = args.states[blockIdx.y].gathered;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kRankedByBlock + warp_index() * kRankedByWarp;
  uint64_t mine[kRankedByWarp];
  int smaller[kRankedByWarp] = {};
#pragma unroll
  for (int i = 0; i < kRankedByWarp; ++i) {
    mine[i] = first + i < gathered ? order[first + i] : uint64_t{0};
  }
  for (int64_t at = 0; at < gathered; at += kRankTile) {
    const int count = static_cast<int>(gathered - at < kRankTile ? gathered - at : kRankTile);
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += kThreads) keys[j] = order[at + j];
    __syncthreads();
    for (int j = lane_index(); j < count; j += 32) {
      const uint64_t other = keys[j];
#pragma unroll
      for (int i = 0; i < kRankedByWarp; ++i) smaller[i] += other < mine[i] ? 1 : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kRankedByWarp; ++i) {
    const int place = __reduce_add_sync(kFullMask, smaller[i]);
    if (lane_index() != 0 || first + i >= args.k) continue;
    write_place(args, out, first + i < gathered ? place : first + i, mine[i]);
  }
}

// Bitonic steps of stride < `tile` inside shared memory. `offset` is the tile's place in its list.
MC_DEVICE void bitonic_steps(uint64_t* tile_keys, int64_t tile, int64_t offset, int64_t size,
                             int64_t first_stride) {
  for (int64_t stride = first_stride; stride > 0; stride >>= 1) {
    __syncthreads();
    for (int64_t pair = threadIdx.x; pair < tile / 2; pair += blockDim.x) {
      const int64_t low = 2 * pair - (pair & (stride - 1)), high = low + stride;
      const bool ascending = ((offset + low) & size) == 0;
      const uint64_t a = tile_keys[low], b = tile_keys[high];
      if ((a > b) == ascending) {
        tile_keys[low] = b;
        tile_keys[high] = a;
      }
    }
  }
}

// Sorts each tile of the list, or with merge_size > tile does the last strides of one merge. Writes
// the result where the list is one tile, else the tile.
__global__ void sort_tile_kernel(ListArgs args, WriteArgs out, int64_t tile, int64_t merge_size) {
  MC_DYNAMIC_SMEM(smem);
  auto* keys = reinterpret_cast<uint64_t*>(smem);
  uint64_t* order = args.order + blockIdx.y * args.sorted;
  const int64_t offset = blockIdx.x * tile;
  const int64_t gathered = args.states[blockIdx.y].gathered;
  for (int64_t i = threadIdx.x; i < tile; i += blockDim.x) {
    const bool filled = merge_size > 0 || offset + i < gathered;
    keys[i] = filled ? order[offset + i] : ~uint64_t{0};
  }
  if (merge_size > 0) {
    bitonic_steps(keys, tile, offset, merge_size, tile / 2);
  } else {
    for (int64_t size = 2; size <= tile; size *= 2) {
      bitonic_steps(keys, tile, offset, size, size / 2);
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < tile; i += blockDim.x) {
    if (args.sorted > tile) {
      order[offset + i] = keys[i];
    } else if (i < args.k) {
      write_place(args, out, i, keys[i]);
    }
  }
}

__global__ void merge_step_kernel(ListArgs args, int64_t size, int64_t stride) {
  uint64_t* order = args.order + blockIdx.y * args.sorted;
  const int64_t pair = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (pair >= args.sorted / 2) return;
  const int64_t low = 2 * pair - (pair & (stride - 1)), high = low + stride;
  const uint64_t a = order[low], b = order[high];
  if ((a > b) == ((low & size) == 0)) {
    order[low] = b;
    order[high] = a;
  }
}

__global__ void write_kernel(ListArgs args, WriteArgs out) {
  const int64_t place = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (place < args.k) write_place(args, out, place, args.order[blockIdx.y * args.sorted + place]);
}

}  // namespace
}  // namespace mc
