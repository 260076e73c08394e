// Runs CUDA C++ kernels on the CPU. See README.md for what it finds and what it cannot find.
//
// Every thread of a block is a fibre: a stack of its own on one OS thread. __syncthreads and the
// warp operations switch to the scheduler, which goes on when the others have arrived. Blocks run
// one after another, or on several OS threads (emu_options().threads).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline int2 make_int2(int x, int y) {
  return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}

namespace mc::emu {

struct Options {
  unsigned seed = 0;     // 0: threads run in order; else: another order each turn
  unsigned threads = 1;  // OS threads that take blocks
};
inline Options& options() {
  static Options value;
  return value;
}

inline constexpr size_t kStackBytes = 64 * 1024;
inline constexpr int kWarpLanes = 32;

enum class State : uint8_t { kRunnable, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct PendingCopy {
  void* to;
  const void* from;
  int bytes, valid_bytes, group;
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  State state = State::kRunnable;
  uint3 thread_idx{};
  unsigned lane = 0, warp = 0;
  uint32_t mask = 0;
  std::vector<PendingCopy> copies;  // cp.async, carried out only when waited for
  int copy_group = 0;
};

struct WarpExchange {
  alignas(16) unsigned char slot[kWarpLanes][32];
  uint32_t arrived = 0;
};

struct ThreadBlock {
  std::vector<Fiber> fibers;
  std::vector<WarpExchange> warps;
  std::vector<unsigned char> smem;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  uint3 block_idx{};
  dim3 block_dim, grid_dim;
  unsigned at_barrier = 0, alive = 0;
  int votes = 0;  // of __syncthreads_or/and/count
  int vote_result = 0;
#if defined(__x86_64__)
  void* scheduler_stack_pointer = nullptr;
#else
  ucontext_t scheduler_context;
#endif
};

inline thread_local ThreadBlock* block = nullptr;

// ---- fibres
// --------------------------------------------------------------------------------------

#if defined(__x86_64__)
// Saves what the System V ABI lets a callee keep, and goes on with another stack.
extern "C" void mc_emu_switch(void** save_stack_pointer, void* load_stack_pointer);
asm(R"(
.text
.weak mc_emu_switch
.hidden mc_emu_switch
.type mc_emu_switch,@function
mc_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mc_emu_switch,.-mc_emu_switch
)");
#endif

inline void to_scheduler() {
  Fiber* self = block->current;
#if defined(__x86_64__)
  mc_emu_switch(&self->stack_pointer, block->scheduler_stack_pointer);
#else
  swapcontext(&self->context, &block->scheduler_context);
#endif
}

inline void run_until_next_stop(Fiber& fiber) {
  block->current = &fiber;
#if defined(__x86_64__)
  mc_emu_switch(&block->scheduler_stack_pointer, fiber.stack_pointer);
#else
  swapcontext(&block->scheduler_context, &fiber.context);
#endif
}

inline void fiber_main() {
  (*block->body)();
  block->current->state = State::kDone;
  --block->alive;
  to_scheduler();
  std::abort();  // a finished fibre is never resumed
}

inline void prepare(Fiber& fiber) {
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  top -= 6;  // the registers that the first switch pops
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#endif
}

// ---- barriers
// ------------------------------------------------------------------------------------

inline void block_barrier() {
  block->current->state = State::kAtBlockBarrier;
  ++block->at_barrier;
  to_scheduler();
}

inline int vote_barrier(bool vote) {
  block->votes += vote ? 1 : 0;
  block_barrier();
  const int result = block->vote_result;
  block_barrier();  // nobody votes again before all have read
  return result;
}

inline void warp_barrier(uint32_t mask) {
  Fiber* self = block->current;
  self->mask = mask;
  block->warps[self->warp].arrived |= 1u << self->lane;
  self->state = State::kAtWarpBarrier;
  to_scheduler();
}

// Shows `value` to the warp and calls read(slots) between two barriers.
template <class T, class Read>
auto exchange(uint32_t mask, const T& value, Read read) {
  static_assert(sizeof(T) <= sizeof(WarpExchange{}.slot[0]));
  Fiber* self = block->current;
  WarpExchange& warp = block->warps[self->warp];
  std::memcpy(warp.slot[self->lane], &value, sizeof value);
  warp_barrier(mask);
  auto result = read([&warp](unsigned lane) {
    T other;
    std::memcpy(&other, warp.slot[lane & 31], sizeof other);
    return other;
  });
  warp_barrier(mask);
  return result;
}

// True when every lane of the fibre's mask has arrived; wakes them.
inline bool release_warp(Fiber& fiber) {
  WarpExchange& warp = block->warps[fiber.warp];
  if ((warp.arrived & fiber.mask) != fiber.mask) return false;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if ((fiber.mask >> lane & 1) == 0) continue;
    Fiber& other = block->fibers[fiber.warp * kWarpLanes + lane];
    if (other.state != State::kAtWarpBarrier || other.mask != fiber.mask) {
      throw std::runtime_error("lanes of a warp disagree on the mask of a warp operation");
    }
    other.state = State::kRunnable;
  }
  warp.arrived &= ~fiber.mask;
  return true;
}

inline bool release_block() {
  if (block->at_barrier == 0 || block->at_barrier != block->alive) return false;
  for (Fiber& fiber : block->fibers) {
    if (fiber.state == State::kAtBlockBarrier) fiber.state = State::kRunnable;
  }
  block->at_barrier = 0;
  block->vote_result = block->votes;
  block->votes = 0;
  return true;
}

// ---- scheduler
// -----------------------------------------------------------------------------------

inline void run_block(ThreadBlock& current_block) {
  block = &current_block;
  const auto count = static_cast<unsigned>(block->fibers.size());
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = block->fibers[i];
    const dim3 dim = block->block_dim;
    fiber.thread_idx = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)};
    fiber.lane = i % kWarpLanes;
    fiber.warp = i / kWarpLanes;
    fiber.state = State::kRunnable;
    fiber.copies.clear();
    fiber.copy_group = 0;
    prepare(fiber);
    order[i] = i;
  }
  for (WarpExchange& warp : block->warps) warp.arrived = 0;
  block->at_barrier = 0;
  block->votes = 0;
  block->alive = count;
  std::mt19937 random(options().seed + block->block_idx.x);
  while (block->alive > 0) {
    bool progress = false;
    if (options().seed != 0) std::shuffle(order.begin(), order.end(), random);
    for (unsigned i : order) {
      Fiber& fiber = block->fibers[i];
      if (fiber.state == State::kAtWarpBarrier && !release_warp(fiber)) continue;
      if (fiber.state != State::kRunnable) continue;
      progress = true;
      run_until_next_stop(fiber);
    }
    progress |= release_block();
    if (!progress && block->alive > 0) {
      throw std::runtime_error("deadlock: a barrier that some threads never reach");
    }
  }
}

inline void check_launch(dim3 grid, dim3 dim, size_t smem_bytes) {
  const uint64_t threads = uint64_t{dim.x} * dim.y * dim.z;
  if (threads == 0 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("grid.y and grid.z end at 65535");
  if (grid.x > 0x7fffffffu) throw std::runtime_error("grid.x ends at 2^31-1");
  if (smem_bytes > 227 * 1024) throw std::runtime_error("shared memory ends at 232448 bytes");
}

// Returns what went wrong, or an empty string.
inline std::string launch(dim3 grid, dim3 dim, size_t smem_bytes,
                          const std::function<void()>& body) {
  const uint64_t total = uint64_t{grid.x} * grid.y * grid.z;
  const unsigned count = dim.x * dim.y * dim.z;
  std::atomic<uint64_t> next{0};
  std::mutex failure_mutex;
  std::string failure;
  auto take_blocks = [&] {
    ThreadBlock mine;
    mine.fibers.resize(count);
    mine.warps.resize((count + kWarpLanes - 1) / kWarpLanes);
    mine.block_dim = dim;
    mine.grid_dim = grid;
    mine.body = &body;
    mine.smem.resize(smem_bytes + 128);
    // Left uninitialised: touching 64 KiB for each of 1024 threads would cost more than the kernel.
    std::unique_ptr<char[]> stacks(new char[count * kStackBytes + 64]);
    char* base = stacks.get() + (64 - reinterpret_cast<uintptr_t>(stacks.get()) % 64);
    for (unsigned i = 0; i < count; ++i) mine.fibers[i].stack = base + i * kStackBytes;
    for (uint64_t i; (i = next++) < total;) {
      std::memset(mine.smem.data(), 0xff, mine.smem.size());  // NaN: shows what nobody wrote
      mine.block_idx = {static_cast<unsigned>(i % grid.x),
                        static_cast<unsigned>(i / grid.x % grid.y),
                        static_cast<unsigned>(i / grid.x / grid.y)};
      run_block(mine);
    }
  };
  auto worker = [&] {
    try {
      take_blocks();
    } catch (const std::exception& error) {
      next = total;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      failure = error.what();
    }
    block = nullptr;
  };
  try {
    check_launch(grid, dim, smem_bytes);
  } catch (const std::exception& error) {
    return error.what();
  }
  if (options().threads <= 1) {
    worker();
  } else {
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < options().threads; ++i) workers.emplace_back(worker);
    for (std::thread& thread : workers) thread.join();
  }
  return failure;
}

inline unsigned char* dynamic_smem() {
  const auto start = reinterpret_cast<uintptr_t>(block->smem.data());
  return reinterpret_cast<unsigned char*>((start + 127) & ~uintptr_t{127});
}

// A misaligned vector access is a fault on the device and would pass here unseen.
inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  std::fprintf(stderr, "cuda_emu: %s: address %p is not %zu-byte aligned\n", what, address, bytes);
  std::abort();
}

// ---- instructions behind the wrappers of device.cuh
// ----------------------------------------------

// Copies happen when they are waited for, so that a missing wait leaves NaN behind.
inline void cp_async(void* to, const void* from, int bytes, int valid_bytes) {
  check_aligned(to, bytes, "cp_async to");
  if (valid_bytes > 0) check_aligned(from, bytes, "cp_async from");
  Fiber* self = block->current;
  self->copies.push_back({to, from, bytes, valid_bytes, self->copy_group});
}
inline void cp_async_commit() {
  ++block->current->copy_group;
}
inline void cp_async_wait(int groups_in_flight) {
  Fiber* self = block->current;
  const int done = self->copy_group - groups_in_flight;
  std::erase_if(self->copies, [done](const PendingCopy& copy) {
    if (copy.group >= done) return false;
    std::memset(copy.to, 0, copy.bytes);
    std::memcpy(copy.to, copy.from, copy.valid_bytes);
    return true;
  });
}

inline void ldmatrix(uint32_t* out, const void* row, int count, bool transpose) {
  if (static_cast<int>(block->current->lane) < 8 * count) check_aligned(row, 16, "ldmatrix");
  const unsigned lane = block->current->lane;
  exchange(0xffffffffu, row, [&](auto row_of) {
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t pair[2];
      for (unsigned j = 0; j < 2; ++j) {
        const unsigned r = transpose ? 2 * (lane % 4) + j : lane / 4;
        const unsigned c = transpose ? lane / 4 : 2 * (lane % 4) + j;
        const auto* from = static_cast<const char*>(row_of(8 * matrix + r));
        std::memcpy(&pair[j], from + 2 * c, 2);
      }
      out[matrix] = uint32_t{pair[0]} | uint32_t{pair[1]} << 16;
    }
    return 0;
  });
}

template <class ToFloat>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ToFloat decode) {
  struct Fragment {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const unsigned lane = block->current->lane, group = lane / 4, pair = lane % 4;
  exchange(0xffffffffu, mine, [&](auto of) {
    float left[2][16], right[2][16];
    for (unsigned source = 0; source < 4; ++source) {
      const Fragment row = of(group * 4 + source);
      const Fragment columns[2] = {of(pair * 8 + source), of(pair * 8 + 4 + source)};
      for (unsigned high = 0; high < 2; ++high) {
        for (unsigned j = 0; j < 2; ++j) {
          const unsigned k = 8 * high + 2 * source + j;
          const unsigned shift = 16 * j;
          left[0][k] = decode(static_cast<uint16_t>(row.a[2 * high] >> shift));
          left[1][k] = decode(static_cast<uint16_t>(row.a[2 * high + 1] >> shift));
          right[0][k] = decode(static_cast<uint16_t>(columns[0].b[high] >> shift));
          right[1][k] = decode(static_cast<uint16_t>(columns[1].b[high] >> shift));
        }
      }
    }
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 16; ++k) d[i] += left[i / 2][k] * right[i % 2][k];
    }
    return 0;
  });
}

// Blocks may run on several OS threads, so atomics are real.
template <class T, class Combine>
T atomic_update(T* address, Combine combine) {
  std::atomic_ref<T> target(*address);
  T old = target.load(std::memory_order_relaxed);
  while (!target.compare_exchange_weak(old, combine(old))) {
  }
  return old;
}

}  // namespace mc::emu

// ---- the names of CUDA C++
// -----------------------------------------------------------------------

#define threadIdx (::mc::emu::block->current->thread_idx)
#define blockIdx (::mc::emu::block->block_idx)
#define blockDim (::mc::emu::block->block_dim)
#define gridDim (::mc::emu::block->grid_dim)

using std::max;
using std::min;

inline void __syncthreads() {
  mc::emu::block_barrier();
}
inline int __syncthreads_count(int vote) {
  return mc::emu::vote_barrier(vote != 0);
}
inline int __syncthreads_or(int vote) {
  return mc::emu::vote_barrier(vote != 0) != 0;
}
inline int __syncthreads_and(int vote) {
  return mc::emu::vote_barrier(vote == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  mc::emu::warp_barrier(mask);
}
inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline void __threadfence_block() {
  __threadfence();
}

// `width` splits a warp into pieces of that many lanes, as on the device.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = mc::emu::block->current->lane;
  const unsigned from = (lane & ~unsigned(width - 1)) | (unsigned(source) & unsigned(width - 1));
  return mc::emu::exchange(mask, value, [&](auto of) { return of(from); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = mc::emu::block->current->lane, from = lane ^ unsigned(lane_mask);
  const bool inside = (from & ~unsigned(width - 1)) <= (lane & ~unsigned(width - 1));
  return mc::emu::exchange(mask, value, [&](auto of) { return of(inside ? from : lane); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = mc::emu::block->current->lane;
  const bool inside = (lane & unsigned(width - 1)) >= delta;
  return mc::emu::exchange(mask, value, [&](auto of) { return of(inside ? lane - delta : lane); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = mc::emu::block->current->lane;
  const bool inside = (lane & unsigned(width - 1)) + delta < unsigned(width);
  return mc::emu::exchange(mask, value, [&](auto of) { return of(inside ? lane + delta : lane); });
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return mc::emu::exchange(mask, predicate, [&](auto of) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) != 0 && of(lane) != 0) votes |= 1u << lane;
    }
    return votes;
  });
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return mc::emu::exchange(mask, value, [&](auto of) {
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) != 0 && of(lane) == value) same |= 1u << lane;
    }
    return same;
  });
}
namespace mc::emu {
template <class T, class Combine>
T reduce(unsigned mask, T value, Combine combine) {
  return exchange(mask, value, [&](auto of) {
    T total = value;
    const unsigned self = block->current->lane;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) != 0 && lane != self) total = combine(total, of(lane));
    }
    return total;
  });
}
}  // namespace mc::emu
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return mc::emu::reduce(mask, value, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return mc::emu::reduce(mask, value, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return mc::emu::reduce(mask, value, [](T a, T b) { return b < a ? b : a; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return mc::emu::reduce(mask, value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __activemask() {
  return 0xffffffffu;
}

// int, unsigned, unsigned long long, float.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [value](T old) { return old | value; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return mc::emu::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}
template <class T>
T atomicInc(T* address, std::type_identity_t<T> limit) {
  return mc::emu::atomic_update(address, [limit](T old) { return old >= limit ? T{0} : old + 1; });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __float_as_int(float value) {
  return static_cast<int>(__float_as_uint(value));
}
inline float __int_as_float(int bits) {
  return __uint_as_float(static_cast<unsigned>(bits));
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __popcll(unsigned long long bits) {
  return __builtin_popcountll(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(unsigned(bits));
}
inline int __clzll(long long bits) {
  return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits));
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __ffsll(long long bits) {
  return __builtin_ffsll(bits);
}
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float x) {
  return 1.f / x;
}
inline float rsqrtf(float x) {
  return 1.f / sqrtf(x);
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float __saturatef(float x) {
  return x < 0.f ? 0.f : x > 1.f ? 1.f : x;
}
inline int __float2int_rn(float x) {
  return static_cast<int>(nearbyintf(x));
}
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8) {
    c += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
  }
  return c;
}
