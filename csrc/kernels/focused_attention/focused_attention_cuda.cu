// Forward on CUDA: rotates when there are tables, chooses a kernel by shape, merges split lists.
#include <algorithm>

#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Thread blocks that keep a large GPU reading when few queries decode: 132 multiprocessors, 4 each.
constexpr int64_t kDecodeThreadBlocks = 528;
constexpr int kSplitsMax = kThreads;    // a thread each when they are merged
constexpr int64_t kSplitBlocksMin = 4;  // a shorter share of a list is not worth its merge

int64_t align256(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

int row_tile_of(const FocusedAttention& in) {
  const int64_t rows = in.group() * in.query_tile;
  if (rows <= 16) return 16;
  return rows <= 64 || in.width() == 256 ? 64 : 128;
}

int splits_of(const FocusedAttention& in) {
  if (in.q.dtype == DType::kF32 || row_tile_of(in) != 16) return 1;
  const int64_t thread_blocks = std::max<int64_t>(1, in.query_block_count() * in.kv_heads());
  const int64_t wanted = (kDecodeThreadBlocks + thread_blocks - 1) / thread_blocks;
  const int64_t possible = (in.list_capacity() + kSplitBlocksMin - 1) / kSplitBlocksMin;
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, possible), 1, kSplitsMax));
}

struct RotateArgs {
  const void* from;
  const float* table;
  const int* rows;  // of keys; null for queries
  void* to;
  int64_t vectors;
  int heads, width, half, page_shift;
};

constexpr int kRotated = 8;  // pairs a thread turns: 16 bytes of 16-bit values

// Threads of a vector are neighbours; each turns kRotated pairs. Queries: vector = query * heads +
// head. Keys: vector is a row of [N, Hkv, 32, E], gathered from the pool; empty places are left
// alone, nobody reads them.
template <class T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(RotateArgs args) {
  const int turning = args.half / kRotated;
  const int threads = turning + (args.width - 2 * args.half) / (2 * kRotated);
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t vector = item / threads;
  if (vector >= args.vectors) return;
  const int part = static_cast<int>(item % threads);
  int64_t source = vector, entry = vector / args.heads;
  if (args.rows != nullptr) {
    const int64_t block = vector / (args.heads * 32);
    const int head = static_cast<int>(vector / 32 % args.heads);
    entry = block * 32 + vector % 32;
    const int row = args.rows[entry];
    if (row < 0) return;
    const int64_t page = row >> args.page_shift;
    source = ((page * args.heads + head) << args.page_shift) + (row & ((1 << args.page_shift) - 1));
  }
  const T* from = static_cast<const T*>(args.from) + source * args.width;
  T* to = static_cast<T*>(args.to) + vector * args.width;
  if (part >= turning) {  // columns beyond the rotary ones
    const int j = 2 * (args.half + (part - turning) * kRotated);
    store_pack(to + j, load_pack<kRotated>(from + j));
    store_pack(to + j + kRotated, load_pack<kRotated>(from + j + kRotated));
    return;
  }
  const int j = part * kRotated;
  const float* table = args.table + entry * 2 * args.half + j;
  auto first = load_pack<kRotated>(from + j), second = load_pack<kRotated>(from + args.half + j);
#pragma unroll
  for (int i = 0; i < kRotated; i += 4) {
    const auto cosines = load_pack<4>(table + i), sines = load_pack<4>(table + args.half + i);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float x = to_float(first.value[i + n]), y = to_float(second.value[i + n]);
      first.value[i + n] = from_float<T>(x * cosines.value[n] - y * sines.value[n]);
      second.value[i + n] = from_float<T>(y * cosines.value[n] + x * sines.value[n]);
    }
  }
  store_pack(to + j, first);
  store_pack(to + args.half + j, second);
}

Status launch_rotate(DType dtype, const RotateArgs& args, const Exec& exec) {
  const int64_t items = args.vectors * (args.width / (2 * kRotated));
  const dim3 grid(static_cast<unsigned>((items + kThreads - 1) / kThreads)), block(kThreads);
  switch (dtype) {
    case DType::kF32: return MC_LAUNCH(rotate_kernel<float>, grid, block, 0, exec.stream, args);
    case DType::kBF16: return MC_LAUNCH(rotate_kernel<bf16>, grid, block, 0, exec.stream, args);
    default: return MC_LAUNCH(rotate_kernel<f16>, grid, block, 0, exec.stream, args);
  }
}

struct MergeArgs {
  const float* part_out;
  const float* part_lse;
  const float* sink;
  void* out;
  float* lse;
  int64_t rows;
  int splits, width, heads;
};

// One thread block a row of the output; the sink joins here. Warps take the splits in turn, so that
// many loads are on their way at once; their sums are added in the order of warps.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_splits_kernel(MergeArgs args) {
  __shared__ float weights[kSplitsMax];
  __shared__ float scratch[kWarp];
  __shared__ float parts[kWarps][256];
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const float sink = args.sink == nullptr ? -INFINITY : args.sink[row % args.heads];
  const float own = thread < args.splits ? args.part_lse[thread * args.rows + row] : -INFINITY;
  const float top = fmaxf(block_max(own, scratch), sink);
  const float anchor = top == -INFINITY ? 0.f : top;
  const float weight = expf(own - anchor);
  weights[thread] = weight;
  const float total = block_sum(weight, scratch) + expf(sink - anchor);  // its barriers: weights
  const float factor = total == 0.f ? 0.f : 1.f / total;
  for (int e = 4 * lane_index(); e < args.width; e += 4 * kWarp) {
    Pack<float, 4> sum{};
#pragma unroll 4
    for (int s = warp_index(); s < args.splits; s += kWarps) {
      const auto part = load_pack<4>(args.part_out + (s * args.rows + row) * args.width + e);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.value[i] += weights[s] * part.value[i];
    }
    for (int i = 0; i < 4; ++i) parts[warp_index()][e + i] = sum.value[i];
  }
  __syncthreads();
  for (int e = thread; e < args.width; e += kThreads) {
    float sum = 0.f;
    for (int w = 0; w < kWarps; ++w) sum += parts[w][e];
    static_cast<T*>(args.out)[row * args.width + e] = from_float<T>(sum * factor);
  }
  if (thread == 0) args.lse[row] = total == 0.f ? -INFINITY : anchor + logf(total);
}

Status attend_mma(const FocusedAttention& in, const AttendArgs& args, const Exec& exec) {
  const AttendShape shape{row_tile_of(in), args.splits};
  switch (in.width()) {
    case 64: return attend_mma_64(in.q.dtype, args, shape, exec);
    case 128: return attend_mma_128(in.q.dtype, args, shape, exec);
    default: return attend_mma_256(in.q.dtype, args, shape, exec);
  }
}

}  // namespace

AttendArgs attend_args(const FocusedAttention& in) {
  AttendArgs args{};
  args.q = in.q.data;
  args.keys = in.keys.data;
  args.values = in.values.data;
  args.rows = in.rows.as<int>();
  args.positions = in.causal() ? in.positions.as<int>() : nullptr;
  args.bias = in.bias.as<float>();
  args.starts = in.query_starts.as<int>();
  args.query_positions = in.query_positions.as<int>();
  args.counts = in.counts.as<int>();
  args.blocks = in.blocks.as<int>();
  args.sink = in.sink.as<float>();
  args.queries = static_cast<int>(in.query_count());
  args.query_heads = static_cast<int>(in.query_heads());
  args.kv_heads = static_cast<int>(in.kv_heads());
  args.group = static_cast<int>(in.group());
  args.query_blocks = static_cast<int>(in.query_block_count());
  args.block_count = static_cast<int>(in.block_count());
  args.capacity = static_cast<int>(in.list_capacity());
  args.plan_heads = static_cast<int>(in.plan_heads());
  args.bias_heads = in.bias.defined() ? static_cast<int>(in.bias_heads()) : 1;
  args.query_tile = static_cast<int>(in.query_tile);
  while ((int64_t{1} << args.page_shift) < in.page_rows()) ++args.page_shift;
  args.splits = 1;
  args.scale = in.scale;
  args.softcap = in.softcap;
  args.window = in.window;
  return args;
}

int64_t rotated_bytes(const FocusedAttention& in) {
  if (!in.key_rope.defined()) return 0;
  const int64_t bytes = dtype_bytes(in.q.dtype);
  const int64_t places = in.block_count() * kBlockPlaces;
  return align256(in.q.numel() * bytes) + align256(places * in.kv_heads() * in.width() * bytes);
}

Status rotate_into(const FocusedAttention& in, void* workspace, AttendArgs& args,
                   const Exec& exec) {
  if (!in.key_rope.defined()) return {};
  char* queries = static_cast<char*>(workspace);
  char* keys = queries + align256(in.q.numel() * dtype_bytes(in.q.dtype));
  RotateArgs rotate{};
  rotate.width = static_cast<int>(in.width());
  rotate.half = static_cast<int>(in.rope_width() / 2);
  rotate.page_shift = args.page_shift;
  rotate.from = in.q.data;
  rotate.table = in.query_rope.as<float>();
  rotate.to = queries;
  rotate.heads = args.query_heads;
  rotate.vectors = in.query_count() * args.query_heads;
  MC_RETURN_IF_ERROR(launch_rotate(in.q.dtype, rotate, exec));
  rotate.from = in.keys.data;
  rotate.table = in.key_rope.as<float>();
  rotate.rows = args.rows;
  rotate.to = keys;
  rotate.heads = args.kv_heads;
  rotate.vectors = in.block_count() * kBlockPlaces * args.kv_heads;
  MC_RETURN_IF_ERROR(launch_rotate(in.q.dtype, rotate, exec));
  args.q = queries;
  args.keys = keys;
  args.keys_by_place = true;
  return {};
}

int64_t attend_cuda_workspace_bytes(const FocusedAttention& in) {
  const int64_t splits = splits_of(in);
  if (splits == 1) return rotated_bytes(in);
  const int64_t rows = splits * in.query_count() * in.query_heads();
  return rotated_bytes(in) + align256(rows * in.width() * 4) + rows * 4;
}

Status attend_cuda(const FocusedAttention& in, const TensorView& out, const TensorView& lse,
                   const TensorView& workspace, const Exec& exec) {
  AttendArgs args = attend_args(in);
  args.out = out.data;
  args.lse = lse.as<float>();
  args.splits = splits_of(in);
  MC_RETURN_IF_ERROR(rotate_into(in, workspace.data, args, exec));
  if (in.q.dtype == DType::kF32) return attend_f32(args, static_cast<int>(in.width()), exec);
  if (args.splits == 1) return attend_mma(in, args, exec);
  const int64_t rows = in.query_count() * in.query_heads();
  char* parts = workspace.as<char>() + rotated_bytes(in);
  args.part_out = reinterpret_cast<float*>(parts);
  args.part_lse = reinterpret_cast<float*>(parts + align256(args.splits * rows * in.width() * 4));
  MC_RETURN_IF_ERROR(attend_mma(in, args, exec));
  const MergeArgs merge{args.part_out,   args.part_lse, args.sink,   args.out,
                        args.lse,        rows,          args.splits, static_cast<int>(in.width()),
                        args.query_heads};
  const dim3 grid(static_cast<unsigned>(rows)), block(kThreads);
  if (in.q.dtype == DType::kBF16) {
    return MC_LAUNCH(merge_splits_kernel<bf16>, grid, block, 0, exec.stream, merge);
  }
  return MC_LAUNCH(merge_splits_kernel<f16>, grid, block, 0, exec.stream, merge);
}

}  // namespace mc::focused
