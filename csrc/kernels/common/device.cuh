// Every instruction that CUDA C++ cannot spell, behind a wrapper with two bodies: inline PTX for
// the device, and plain C++ for the emulation (MC_EMU). No other file contains `asm`, and no kernel
// contains <<<>>>. Needs sm_80; what only sm_90a has stands between `#if MC_SM90A` and is never
// emulated, so it must sit behind a launcher whose other branch is portable.
//
// Rules of a kernel that can be emulated: dynamic shared memory by MC_DYNAMIC_SMEM, full masks in
// warp operations, no thread leaves before the last barrier of its block.
#pragma once

#include "kernels/common/launch.h"
#include "kernels/common/scalar.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MC_SM90A 1
#else
#define MC_SM90A 0
#endif

#ifdef MC_EMU
#define MC_DEVICE inline __attribute__((always_inline))
#define MC_DYNAMIC_SMEM(name) unsigned char* name = ::mc::emu::dynamic_smem()
#else
#define MC_DEVICE __device__ __forceinline__
#define MC_DYNAMIC_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace mc {

inline constexpr uint32_t kFullMask = 0xffffffffu;
inline constexpr int kWarp = 32;

MC_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x) & 31;
}
MC_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x) >> 5;
}

// What one multiprocessor holds at once (CUDA programming guide, "compute capabilities"). As the
// second number of __launch_bounds__ a count of thread blocks caps the registers at what lets so
// many in; without it the compiler aims at a step of its own choice, and spills a little to get
// there.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ % 100 != 0 || __CUDA_ARCH__ >= 1200)
inline constexpr int kResidentThreads = 1536, kResidentSmemBytes = 100 << 10;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr int kResidentThreads = 2048, kResidentSmemBytes = 228 << 10;
#else
inline constexpr int kResidentThreads = 2048, kResidentSmemBytes = 164 << 10;
#endif
// Thread blocks that shared memory lets in, 1 KiB each for the system, and `most` at most.
constexpr int resident_blocks(size_t smem_bytes, int most) {
  const int blocks = kResidentSmemBytes / (static_cast<int>(smem_bytes) + 1024);
  return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// The same value, of which the compiler knows nothing more: what is computed from it inside a loop
// is computed there, and not kept in registers from before the loop.
MC_DEVICE int opaque(int value) {
#ifndef MC_EMU
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// ---- numbers
// -------------------------------------------------------------------------------------

// Two floats in one 32-bit register: `low` in bits 0..15, as mma and memory order want.
template <class T>
MC_DEVICE uint32_t pack2(float low, float high);
template <>
MC_DEVICE uint32_t pack2<bf16>(float low, float high) {
#ifdef MC_EMU
  return uint32_t{from_float<bf16>(low).bits} | uint32_t{from_float<bf16>(high).bits} << 16;
#else
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#endif
}
template <>
MC_DEVICE uint32_t pack2<f16>(float low, float high) {
#ifdef MC_EMU
  return uint32_t{from_float<f16>(low).bits} | uint32_t{from_float<f16>(high).bits} << 16;
#else
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#endif
}
template <class T>
MC_DEVICE float low_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair & 0xffffu)});
}
template <class T>
MC_DEVICE float high_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

// 2^x, about 2 ulp, subnormal results flushed to 0. exp(x) = exp2_fast(x * kLog2E).
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
MC_DEVICE float exp2_fast(float x) {
#ifdef MC_EMU
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
MC_DEVICE float log2_fast(float x) {
#ifdef MC_EMU
  return log2f(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---- memory
// --------------------------------------------------------------------------------------

// `kCount` neighbours that are loaded and stored by one instruction; the address must be a multiple
// of their size.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T value[kCount];
};
template <int kCount, class T>
MC_DEVICE Pack<T, kCount> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
template <class T, int kCount>
MC_DEVICE void store_pack(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// 16 bytes read once: not kept in L1.
MC_DEVICE uint4 load_streaming(const void* from) {
#ifdef MC_EMU
  uint4 out;
  emu::check_aligned(from, 16, "load_streaming");
  memcpy(&out, from, sizeof out);
  return out;
#else
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(from));
  return out;
#endif
}

// Copies 16 bytes from global to shared memory without waiting; `valid_bytes` < 16 fills the rest
// with zeros (0: nothing is read). Both addresses must be 16-byte aligned. The bytes are there
// after cp_async_commit and cp_async_wait<groups that may still be on their way>, then a barrier.
MC_DEVICE void cp_async16(void* smem, const void* global, int valid_bytes = 16) {
#ifdef MC_EMU
  emu::cp_async(smem, global, 16, valid_bytes);
#else
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(valid_bytes)
               : "memory");
#endif
}
MC_DEVICE void cp_async_commit() {
#ifdef MC_EMU
  emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsInFlight>
MC_DEVICE void cp_async_wait() {
#ifdef MC_EMU
  emu::cp_async_wait(kGroupsInFlight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsInFlight) : "memory");
#endif
}

// ---- matrix products
// -----------------------------------------------------------------------------

// Loads kCount 8x8 matrices of 16-bit values from shared memory. Lane i gives the address of row
// i%8 of matrix i/8 (x1: lanes 0..7, x2: 0..15). Lane t receives row t/4, columns 2*(t%4) and +1;
// with transpose, column t/4, rows 2*(t%4) and +1.
template <int kCount, bool kTranspose = false>
MC_DEVICE void ldmatrix(uint32_t (&out)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#ifdef MC_EMU
  emu::ldmatrix(out, row, kCount, kTranspose);
#else
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kCount == 4 && kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kCount == 2 && kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(from)
                 : "memory");
  }
#endif
}

// d += a * b for one warp: a is 16x16 by rows, b is 16x8 by columns, d is 16x8 in float.
// Lane t, g = t/4, c = 2*(t%4):  a[0] row g, columns c,c+1; a[1] row g+8; a[2] row g, columns
// c+8,c+9; a[3] row g+8, columns c+8,c+9.  b[0] rows c,c+1 of column g; b[1] rows c+8,c+9.
// d[0],d[1] row g, columns c,c+1; d[2],d[3] row g+8.
template <class T>
MC_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MC_EMU
  emu::mma_16x8x16(d, a, b, [](uint16_t bits) { return to_float(T{bits}); });
#else
  static_assert(kDTypeOf<T> == DType::kBF16 || kDTypeOf<T> == DType::kF16);
  if constexpr (kDTypeOf<T> == DType::kBF16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// ---- reductions
// ----------------------------------------------------------------------------------

// Sum and maximum over a warp, in every lane, always in the same order (same bits each run).
MC_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(kFullMask, value, step);
  return value;
}
MC_DEVICE float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, step));
  }
  return value;
}

// The same over a thread block of up to 1024 threads (x only, a multiple of 32); `scratch` is 32
// floats of shared memory. Contains two barriers: every thread must come here.
MC_DEVICE float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // scratch may still be read from an earlier call
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) >> 5;
  return warp_sum(lane_index() < warps ? scratch[lane_index()] : 0.f);
}
MC_DEVICE float block_max(float value, float* scratch) {
  value = warp_max(value);
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) >> 5;
  return warp_max(lane_index() < warps ? scratch[lane_index()] : -INFINITY);
}

}  // namespace mc
