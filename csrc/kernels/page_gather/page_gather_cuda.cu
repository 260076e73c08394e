// Copies move units of up to 16 bytes: `lanes` threads share a page, four units in flight each, and
// large pages are cut in slices so that few pages also fill the device. Decoding gives every thread
// eight values; encoding gives every row a warp.
#include "kernels/common/device.cuh"
#include "kernels/page_gather/page_gather.h"

namespace mc {
namespace {

constexpr int kThreads = 256;
constexpr int kAllBlocks = kResidentThreads / kThreads;  // as many threads as the device holds
constexpr int kInFlight = 4;

struct Pages {
  const int64_t* index;
  int64_t count;       // of index
  int64_t page_count;  // of the pool

  // -1 also for what lies outside.
  MC_DEVICE int64_t page(int64_t n) const {
    const int64_t page = __ldg(index + n);
    return page >= 0 && page < page_count ? page : -1;
  }
};

template <class Unit, bool kScatter>
__global__ void __launch_bounds__(kThreads)
    page_copy_kernel(Pages pages, Unit* __restrict__ pool, Unit* __restrict__ rows,
                     int64_t page_units) {
  const int64_t n = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (n >= pages.count) return;
  const int64_t page = pages.page(n);
  if (kScatter && page < 0) return;
  Unit* inside = pool + (page < 0 ? 0 : page) * page_units;
  Unit* outside = rows + n * page_units;
  const int64_t step = int64_t{blockDim.x} * gridDim.y;
  for (int64_t at = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; at < page_units;
       at += kInFlight * step) {
    Unit units[kInFlight] = {};
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t here = at + i * step;
      if (here < page_units && page >= 0) units[i] = kScatter ? outside[here] : inside[here];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t here = at + i * step;
      if (here < page_units) (kScatter ? inside : outside)[here] = units[i];
    }
  }
}

template <class Code, class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    page_decode_kernel(Pages pages, const Code* __restrict__ pool, const float* __restrict__ scales,
                       int64_t page_rows, int64_t width, T* __restrict__ rows) {
  const int64_t units = width / kVec, index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= pages.count * page_rows * units) return;
  const int64_t row = index / units, at = index % units * kVec;
  const int64_t page = pages.page(row / page_rows);
  Pack<T, kVec> out = {};
  if (page >= 0) {
    const int64_t from = page * page_rows + row % page_rows;
    const Pack<Code, kVec> codes = load_pack<kVec>(pool + from * width + at);
    const float scale = __ldg(scales + from);
#pragma unroll
    for (int v = 0; v < kVec; ++v) out.value[v] = from_float<T>(to_float(codes.value[v]) * scale);
  }
  store_pack(rows + row * width + at, out);
}

template <class Code, class T, int kVec>
__global__ void __launch_bounds__(kThreads, kAllBlocks)
    page_encode_kernel(Pages pages, Code* __restrict__ pool, float* __restrict__ scales,
                       int64_t page_rows, int64_t width, float largest,
                       const T* __restrict__ rows) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + warp_index();
  if (row >= pages.count * page_rows) return;  // whole warps
  const int64_t page = pages.page(row / page_rows);
  if (page < 0) return;
  const int64_t to = page * page_rows + row % page_rows;
  const T* from = rows + row * width;
  float highest = 0.f;
#pragma unroll 2
  for (int64_t at = int64_t{lane_index()} * kVec; at < width; at += kWarp * kVec) {
    const Pack<T, kVec> values = load_pack<kVec>(from + at);
#pragma unroll
    for (int v = 0; v < kVec; ++v) highest = fmaxf(highest, fabsf(to_float(values.value[v])));
  }
  highest = warp_max(highest);
  const float inverse = highest == 0.f ? 0.f : largest / highest;
#pragma unroll 1
  for (int64_t at = int64_t{lane_index()} * kVec; at < width; at += kWarp * kVec) {
    const Pack<T, kVec> values = load_pack<kVec>(from + at);
    Pack<Code, kVec> codes;
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      codes.value[v] = from_float<Code>(to_float(values.value[v]) * inverse);
    }
    store_pack(pool + to * width + at, codes);
  }
  if (lane_index() == 0) scales[to] = highest / largest;
}

Pages pages_of(const PageMoveArgs& args) {
  return {args.index.as<int64_t>(), args.index.shape[0], args.pool.shape[0]};
}

unsigned grid_for(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

template <class Unit, bool kScatter>
Status launch_copy(const Exec& exec, const PageMoveArgs& args, int64_t page_bytes) {
  const int64_t units = page_bytes / static_cast<int64_t>(sizeof(Unit));
  int lanes = 1;
  while (lanes < kThreads && lanes * kInFlight < units) lanes *= 2;
  const int64_t slices = units / (int64_t{lanes} * kInFlight);
  const dim3 block(lanes, kThreads / lanes);
  const dim3 grid(grid_for(args.index.shape[0], kThreads / lanes),
                  static_cast<unsigned>(slices < 1       ? 1
                                        : slices > 65535 ? 65535
                                                         : slices));
  return MC_LAUNCH((page_copy_kernel<Unit, kScatter>), grid, block, 0, exec.stream, pages_of(args),
                   args.pool.as<Unit>(), args.rows.as<Unit>(), units);
}

template <bool kScatter>
Status copy_pages(const Exec& exec, const PageMoveArgs& args) {
  const int64_t page_bytes = args.pool.shape[1] * args.pool.shape[2] * dtype_bytes(args.pool.dtype);
  const auto bits = static_cast<uint64_t>(page_bytes) |
                    reinterpret_cast<uintptr_t>(args.pool.data) |
                    reinterpret_cast<uintptr_t>(args.rows.data);
  if (bits % 16 == 0) return launch_copy<uint4, kScatter>(exec, args, page_bytes);
  if (bits % 8 == 0) return launch_copy<uint2, kScatter>(exec, args, page_bytes);
  if (bits % 4 == 0) return launch_copy<uint32_t, kScatter>(exec, args, page_bytes);
  if (bits % 2 == 0) return launch_copy<uint16_t, kScatter>(exec, args, page_bytes);
  return launch_copy<uint8_t, kScatter>(exec, args, page_bytes);
}

bool is_wide(const PageMoveArgs& args, int64_t vec) {
  const auto bits =
      reinterpret_cast<uintptr_t>(args.pool.data) | reinterpret_cast<uintptr_t>(args.rows.data);
  return args.pool.shape[2] % vec == 0 && bits % 32 == 0;
}

template <class Code, class T, int kVec>
Status launch_decode(const Exec& exec, const PageMoveArgs& args) {
  const int64_t page_rows = args.pool.shape[1], width = args.pool.shape[2];
  const int64_t units = args.index.shape[0] * page_rows * (width / kVec);
  return MC_LAUNCH((page_decode_kernel<Code, T, kVec>), dim3(grid_for(units, kThreads)),
                   dim3(kThreads), 0, exec.stream, pages_of(args), args.pool.as<Code>(),
                   args.scales.as<float>(), page_rows, width, args.rows.as<T>());
}

template <class Code, class T, int kVec>
Status launch_encode(const Exec& exec, const PageMoveArgs& args, float largest) {
  const int64_t page_rows = args.pool.shape[1], width = args.pool.shape[2];
  const int64_t rows = args.index.shape[0] * page_rows;
  return MC_LAUNCH((page_encode_kernel<Code, T, kVec>), dim3(grid_for(rows, kThreads / kWarp)),
                   dim3(kThreads), 0, exec.stream, pages_of(args), args.pool.as<Code>(),
                   args.scales.as<float>(), page_rows, width, largest, args.rows.as<T>());
}

template <class Code>
Status decode(const Exec& exec, const PageMoveArgs& args) {
  return with_float_type(args.rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / static_cast<int>(sizeof(T));
    return is_wide(args, kVec) ? launch_decode<Code, T, kVec>(exec, args)
                               : launch_decode<Code, T, 1>(exec, args);
  });
}

template <class Code>
Status encode(const Exec& exec, const PageMoveArgs& args, float largest) {
  return with_float_type(args.rows.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / static_cast<int>(sizeof(T));
    return is_wide(args, kVec) ? launch_encode<Code, T, kVec>(exec, args, largest)
                               : launch_encode<Code, T, 1>(exec, args, largest);
  });
}

}  // namespace

Status page_gather_cuda(const Exec& exec, const PageMoveArgs& args) {
  if (!args.scales.defined()) return copy_pages<false>(exec, args);
  if (args.pool.dtype == DType::kI8) return decode<int8_t>(exec, args);
  return decode<fp8>(exec, args);
}

Status page_scatter_cuda(const Exec& exec, const PageMoveArgs& args) {
  if (!args.scales.defined()) return copy_pages<true>(exec, args);
  if (args.pool.dtype == DType::kI8) return encode<int8_t>(exec, args, 127.f);
  return encode<fp8>(exec, args, kFp8Largest);
}

}  // namespace mc
