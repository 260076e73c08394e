// Forward on CUDA: rotates when there are tables, chooses a kernel by shape, merges split lists.
#include <algorithm>

#include "kernels/focused_attention/attend_args.cuh"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Thread blocks that keep a large GPU reading when few queries decode: 132 multiprocessors, 4 each.
constexpr int64_t kDecodeThreadBlocks = 528;
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
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, possible), 1, 128));
}

struct RotateArgs {
  const void* from;
  const float* table;
  const int* rows;  // of keys; null for queries
  void* to;
  int64_t vectors;
  int heads, width, half, page_shift;
};

// One warp a vector. Queries: vector = query * heads + head. Keys: vector is a row of
// [N, Hkv, 32, E], gathered from the pool; empty places are left alone, nobody reads them.
template <class T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(RotateArgs args) {
  const int64_t vector = int64_t{blockIdx.x} * kWarps + warp_index();
  if (vector >= args.vectors) return;
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
  const float* table = args.table + entry * 2 * args.half;
  T* to = static_cast<T*>(args.to) + vector * args.width;
  for (int j = lane_index(); j < args.half; j += kWarp) {
    const float cosine = table[j], sine = table[args.half + j];
    const float first = to_float(from[j]), second = to_float(from[args.half + j]);
    to[j] = from_float<T>(first * cosine - second * sine);
    to[args.half + j] = from_float<T>(second * cosine + first * sine);
  }
  for (int j = 2 * args.half + lane_index(); j < args.width; j += kWarp) to[j] = from[j];
}

Status launch_rotate(DType dtype, const RotateArgs& args, const Exec& exec) {
  const dim3 grid(static_cast<unsigned>((args.vectors + kWarps - 1) / kWarps)), block(kThreads);
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

// One warp a row of the output; the sink joins here.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_splits_kernel(MergeArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= args.rows) return;
  const float sink = args.sink == nullptr ? -INFINITY : args.sink[row % args.heads];
  float top = sink;
  for (int s = lane_index(); s < args.splits; s += kWarp) {
    top = fmaxf(top, args.part_lse[s * args.rows + row]);
  }
  top = warp_max(top);
  const float anchor = top == -INFINITY ? 0.f : top;
  float total = 0.f;
  for (int s = lane_index(); s < args.splits; s += kWarp) {
    total += expf(args.part_lse[s * args.rows + row] - anchor);
  }
  total = warp_sum(total) + expf(sink - anchor);
  const float factor = total == 0.f ? 0.f : 1.f / total;
  for (int e = lane_index(); e < args.width; e += kWarp) {
    float sum = 0.f;
    for (int s = 0; s < args.splits; ++s) {
      const float lse = args.part_lse[s * args.rows + row];
      if (lse == -INFINITY) continue;
      sum += expf(lse - anchor) * args.part_out[(s * args.rows + row) * args.width + e];
    }
    static_cast<T*>(args.out)[row * args.width + e] = from_float<T>(sum * factor);
  }
  if (lane_index() == 0) args.lse[row] = total == 0.f ? -INFINITY : anchor + logf(total);
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
  const dim3 grid(static_cast<unsigned>((rows + kWarps - 1) / kWarps)), block(kThreads);
  if (in.q.dtype == DType::kBF16) {
    return MC_LAUNCH(merge_splits_kernel<bf16>, grid, block, 0, exec.stream, merge);
  }
  return MC_LAUNCH(merge_splits_kernel<f16>, grid, block, 0, exec.stream, merge);
}

}  // namespace mc::focused
