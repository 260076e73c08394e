// Backward on CUDA: prepares, runs the two gradient kernels, brings the gradients of places to
// their rows. Every sum has one owner and one order, so the result has the same bits in every run.
#include <algorithm>

#include "kernels/focused_attention/backward_args.cuh"

namespace mc::focused {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

int64_t align256(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}
unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// One warp a row: delta and the lse in log2 units.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_scalars_kernel(const void* out, const void* grad_out, const float* lse,
                       const float* grad_lse, float* lse2, float* delta, int64_t rows, int width) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= rows) return;
  float sum = 0.f;
  for (int e = lane_index(); e < width; e += kWarp) {
    sum += to_float(static_cast<const T*>(out)[row * width + e]) *
           to_float(static_cast<const T*>(grad_out)[row * width + e]);
  }
  sum = warp_sum(sum);
  if (lane_index() != 0) return;
  delta[row] = grad_lse == nullptr ? sum : sum - grad_lse[row];
  lse2[row] = lse[row] == -INFINITY ? INFINITY : lse[row] * kLog2E;
}

struct TransposeArgs {
  const int* counts;
  const int* blocks;
  unsigned char* marks;  // [Hp, N, M]
  int* readers_count;    // [Hp, N]
  int* readers;          // [Hp, N, M]
  int query_blocks, block_count, capacity, lists;
};

// One thread an element of a list. A list that was cut marks nothing: its queries gave NaN.
__global__ void __launch_bounds__(kThreads) mark_readers_kernel(TransposeArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t list = item / args.capacity;
  if (list >= args.lists) return;
  const int count = args.counts[list], slot = static_cast<int>(item % args.capacity);
  if (count > args.capacity || slot >= count) return;
  const int entry = args.blocks[item];
  const int64_t head = list / args.query_blocks, query_block = list % args.query_blocks;
  const int64_t block = entry & (static_cast<int>(kFullBlock) - 1);
  args.marks[(head * args.block_count + block) * args.query_blocks + query_block] =
      (entry & static_cast<int>(kFullBlock)) != 0 ? 2 : 1;
}

// One warp a block: its readers in ascending order.
__global__ void __launch_bounds__(kThreads) list_readers_kernel(TransposeArgs args, int rows) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;
  const unsigned char* marks = args.marks + int64_t{row} * args.query_blocks;
  int* to = args.readers + int64_t{row} * args.query_blocks;
  int count = 0;
  for (int base = 0; base < args.query_blocks; base += kWarp) {
    const int query_block = base + lane_index();
    const int mark = query_block < args.query_blocks ? marks[query_block] : 0;
    const uint32_t listed = __ballot_sync(kFullMask, mark != 0);
    const int slot = count + __popc(listed & ((1u << lane_index()) - 1));
    if (mark != 0) to[slot] = query_block + (mark == 2 ? static_cast<int>(kFullBlock) : 0);
    count += __popc(listed);
  }
  if (lane_index() == 0) args.readers_count[row] = count;
}

struct ScatterArgs {
  const int* rows;
  const float* key_rope;  // or null
  int* first_place;       // [P * R]
  int* shared_rows;       // [1]: how many places are not the first of their row
  float* grad_keys;       // [N, Hkv, 32, E]
  float* grad_values;
  void* to_keys;  // pools
  void* to_values;
  int places, kv_heads, width, rope_width, page_shift;

  MC_DEVICE int64_t place_at(int place, int head) const {
    return ((int64_t{place / 32} * kv_heads + head) * 32 + place % 32) * width;
  }
};

__global__ void __launch_bounds__(kThreads) find_first_places_kernel(ScatterArgs args) {
  const int place = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (place >= args.places || args.rows[place] < 0) return;
  atomicMin(&args.first_place[args.rows[place]], place);
}

// One warp a place and head: turns the gradient of a rotated key back.
__global__ void __launch_bounds__(kThreads) rotate_back_kernel(ScatterArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp_index();
  const int place = static_cast<int>(item / args.kv_heads);
  if (place >= args.places || args.rows[place] < 0) return;
  if (args.first_place[args.rows[place]] != place && item % args.kv_heads == 0 &&
      lane_index() == 0) {
    atomicAdd(args.shared_rows, 1);
  }
  if (args.key_rope == nullptr) return;
  const int half = args.rope_width / 2;
  const float* table = args.key_rope + int64_t{place} * args.rope_width;
  float* grad = args.grad_keys + args.place_at(place, static_cast<int>(item % args.kv_heads));
  for (int j = lane_index(); j < half; j += kWarp) {
    const float cosine = table[j], sine = table[half + j];
    const float first = grad[j], second = grad[half + j];
    grad[j] = first * cosine + second * sine;
    grad[half + j] = second * cosine - first * sine;
  }
}

// One thread an element of a head: adds the places of a shared row to its first place, in order.
// Rows at several places are rare (prefixes that sequences share); without them this returns at
// once.
__global__ void __launch_bounds__(kThreads) add_shared_rows_kernel(ScatterArgs args) {
  if (*args.shared_rows == 0) return;
  const int head = static_cast<int>(blockIdx.y);
  const int e = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (e >= args.width) return;
  for (int place = 0; place < args.places; ++place) {
    const int row = args.rows[place];
    if (row < 0 || args.first_place[row] == place) continue;
    const int64_t to = args.place_at(args.first_place[row], head) + e;
    args.grad_keys[to] += args.grad_keys[args.place_at(place, head) + e];
    args.grad_values[to] += args.grad_values[args.place_at(place, head) + e];
  }
}

// One warp a place and head: the first place of a row writes it.
template <class T>
__global__ void __launch_bounds__(kThreads) scatter_rows_kernel(ScatterArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp_index();
  const int place = static_cast<int>(item / args.kv_heads);
  const int head = static_cast<int>(item % args.kv_heads);
  if (place >= args.places || args.rows[place] < 0) return;
  const int row = args.rows[place];
  if (args.first_place[row] != place) return;
  const int64_t page = row >> args.page_shift, slot = row & ((1 << args.page_shift) - 1);
  const int64_t to = (((page * args.kv_heads + head) << args.page_shift) + slot) * args.width;
  const int64_t from = args.place_at(place, head);
  for (int e = lane_index(); e < args.width; e += kWarp) {
    static_cast<T*>(args.to_keys)[to + e] = from_float<T>(args.grad_keys[from + e]);
    static_cast<T*>(args.to_values)[to + e] = from_float<T>(args.grad_values[from + e]);
  }
}

// One thread an element: sums the query heads that share a bias head, in order.
__global__ void __launch_bounds__(kThreads)
    sum_bias_kernel(const float* by_head, float* grad_bias, int heads, int bias_heads, int places) {
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (item >= int64_t{bias_heads} * places) return;
  const int each = heads / bias_heads, first = static_cast<int>(item / places) * each;
  float sum = 0.f;
  for (int head = first; head < first + each; ++head) {
    sum += by_head[int64_t{head} * places + item % places];
  }
  grad_bias[item] = sum;
}

// The parts of the workspace, in order.
struct Workspace {
  uintptr_t base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* out = reinterpret_cast<T*>(base + static_cast<uintptr_t>(used));
    used += align256(count * static_cast<int64_t>(sizeof(T)));
    return out;
  }
};

struct Parts {
  void* rotated;
  float* lse2;
  float* delta;
  unsigned char* marks;
  int* readers_count;
  int* readers;
  float* grad_keys;
  float* grad_values;
  float* grad_bias;
  int* first_place;
  int* shared_rows;
  int64_t bytes;
};

Parts parts_of(const FocusedAttention& in, void* base) {
  Workspace workspace{reinterpret_cast<uintptr_t>(base)};
  const int64_t scalars = in.query_count() * in.query_heads();
  const int64_t pairs = in.plan_heads() * in.block_count() * in.query_block_count();
  const int64_t places = in.block_count() * kBlockPlaces;
  const int64_t grads = places * in.kv_heads() * in.width();
  Parts parts{};
  parts.rotated = workspace.take<char>(rotated_bytes(in));
  parts.lse2 = workspace.take<float>(scalars);
  parts.delta = workspace.take<float>(scalars);
  parts.marks = workspace.take<unsigned char>(pairs);
  parts.readers_count = workspace.take<int>(in.plan_heads() * in.block_count());
  parts.readers = workspace.take<int>(pairs);
  parts.grad_keys = workspace.take<float>(grads);
  parts.grad_values = workspace.take<float>(grads);
  parts.grad_bias = workspace.take<float>(in.bias.defined() ? in.query_heads() * places : 0);
  parts.first_place = workspace.take<int>(in.keys.shape[0] * in.page_rows());
  parts.shared_rows = workspace.take<int>(1);
  parts.bytes = workspace.used;
  return parts;
}

template <class T>
Status row_scalars(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                   const Parts& parts, const Exec& exec) {
  const int64_t rows = in.query_count() * in.query_heads();
  const float *lse = grads.lse.as<float>(), *grad_lse = grads.grad_lse.as<float>();
  const void *out = grads.out.data, *grad_out = grads.grad_out.data;
  return MC_LAUNCH(row_scalars_kernel<T>, dim3(blocks_for(rows, kWarps)), dim3(kThreads), 0,
                   exec.stream, out, grad_out, lse, grad_lse, parts.lse2, parts.delta, rows,
                   static_cast<int>(in.width()));
}

Status find_readers(const AttendArgs& args, const Parts& parts, const Exec& exec) {
  const int lists = args.plan_heads * args.query_blocks;
  const int rows = args.plan_heads * args.block_count;
  const TransposeArgs transpose{args.counts,         args.blocks,   parts.marks,
                                parts.readers_count, parts.readers, args.query_blocks,
                                args.block_count,    args.capacity, lists};
  MC_RETURN_IF_ERROR(fill_async(parts.marks, 0,
                                static_cast<size_t>(rows) * static_cast<size_t>(args.query_blocks),
                                exec.stream));
  MC_RETURN_IF_ERROR(MC_LAUNCH(mark_readers_kernel,
                               dim3(blocks_for(int64_t{lists} * args.capacity, kThreads)),
                               dim3(kThreads), 0, exec.stream, transpose));
  return MC_LAUNCH(list_readers_kernel, dim3(blocks_for(rows, kWarps)), dim3(kThreads), 0,
                   exec.stream, transpose, rows);
}

Status scatter(const FocusedAttention& in, const FocusedAttentionGrads& grads,
               const AttendArgs& args, const Parts& parts, const Exec& exec) {
  ScatterArgs to{};
  to.rows = args.rows;
  to.key_rope = in.key_rope.as<float>();
  to.first_place = parts.first_place;
  to.shared_rows = parts.shared_rows;
  to.grad_keys = parts.grad_keys;
  to.grad_values = parts.grad_values;
  to.to_keys = grads.grad_keys.data;
  to.to_values = grads.grad_values.data;
  to.places = args.block_count * static_cast<int>(kBlockPlaces);
  to.kv_heads = args.kv_heads;
  to.width = static_cast<int>(in.width());
  to.rope_width = static_cast<int>(in.rope_width());
  to.page_shift = args.page_shift;
  const auto pool_bytes = static_cast<size_t>(in.keys.numel() * dtype_bytes(in.q.dtype));
  MC_RETURN_IF_ERROR(fill_async(to.to_keys, 0, pool_bytes, exec.stream));
  MC_RETURN_IF_ERROR(fill_async(to.to_values, 0, pool_bytes, exec.stream));
  const auto row_bytes = static_cast<size_t>(in.keys.shape[0] * in.page_rows()) * sizeof(int);
  MC_RETURN_IF_ERROR(fill_async(to.first_place, 0x7f, row_bytes, exec.stream));
  MC_RETURN_IF_ERROR(fill_async(to.shared_rows, 0, sizeof(int), exec.stream));
  const dim3 block(kThreads);
  const dim3 by_warp(blocks_for(int64_t{to.places} * to.kv_heads, kWarps));
  MC_RETURN_IF_ERROR(MC_LAUNCH(find_first_places_kernel, dim3(blocks_for(to.places, kThreads)),
                               block, 0, exec.stream, to));
  MC_RETURN_IF_ERROR(MC_LAUNCH(rotate_back_kernel, by_warp, block, 0, exec.stream, to));
  const dim3 by_element(blocks_for(to.width, kThreads), static_cast<unsigned>(to.kv_heads));
  MC_RETURN_IF_ERROR(MC_LAUNCH(add_shared_rows_kernel, by_element, block, 0, exec.stream, to));
  switch (in.q.dtype) {
    case DType::kF32:
      return MC_LAUNCH(scatter_rows_kernel<float>, by_warp, block, 0, exec.stream, to);
    case DType::kBF16:
      return MC_LAUNCH(scatter_rows_kernel<bf16>, by_warp, block, 0, exec.stream, to);
    default: return MC_LAUNCH(scatter_rows_kernel<f16>, by_warp, block, 0, exec.stream, to);
  }
}

Status gradients(const FocusedAttention& in, const AttendArgs& args, const BackwardArgs& back,
                 const Exec& exec) {
  if (in.q.dtype == DType::kF32) {
    return backward_f32(args, back, static_cast<int>(in.width()), exec);
  }
  switch (in.width()) {
    case 64: return backward_mma_64(in.q.dtype, args, back, exec);
    case 128: return backward_mma_128(in.q.dtype, args, back, exec);
    default: return backward_mma_256(in.q.dtype, args, back, exec);
  }
}

}  // namespace

int64_t attend_backward_cuda_workspace_bytes(const FocusedAttention& in) {
  return parts_of(in, nullptr).bytes;
}

Status attend_backward_cuda(const FocusedAttention& in, const FocusedAttentionGrads& grads,
                            const TensorView& workspace, const Exec& exec) {
  const Parts parts = parts_of(in, workspace.data);
  AttendArgs args = attend_args(in);
  MC_RETURN_IF_ERROR(rotate_into(in, parts.rotated, args, exec));
  switch (in.q.dtype) {
    case DType::kF32: MC_RETURN_IF_ERROR(row_scalars<float>(in, grads, parts, exec)); break;
    case DType::kBF16: MC_RETURN_IF_ERROR(row_scalars<bf16>(in, grads, parts, exec)); break;
    default: MC_RETURN_IF_ERROR(row_scalars<f16>(in, grads, parts, exec)); break;
  }
  MC_RETURN_IF_ERROR(find_readers(args, parts, exec));
  BackwardArgs back{};
  back.grad_out = grads.grad_out.data;
  back.lse2 = parts.lse2;
  back.delta = parts.delta;
  back.grad_q = grads.grad_q.data;
  back.query_rope = in.query_rope.as<float>();
  back.rope_width = static_cast<int>(in.rope_width());
  back.readers_count = parts.readers_count;
  back.readers = parts.readers;
  back.grad_keys = parts.grad_keys;
  back.grad_values = parts.grad_values;
  back.grad_bias = grads.grad_bias.defined() ? parts.grad_bias : nullptr;
  MC_RETURN_IF_ERROR(gradients(in, args, back, exec));
  MC_RETURN_IF_ERROR(scatter(in, grads, args, parts, exec));
  if (!grads.grad_bias.defined()) return {};
  const int places = args.block_count * static_cast<int>(kBlockPlaces);
  const dim3 grid(blocks_for(int64_t{args.bias_heads} * places, kThreads));
  float* to = grads.grad_bias.as<float>();
  return MC_LAUNCH(sum_bias_kernel, grid, dim3(kThreads), 0, exec.stream, parts.grad_bias, to,
                   args.query_heads, args.bias_heads, places);
}

}  // namespace mc::focused
